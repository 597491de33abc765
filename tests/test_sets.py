"""Sets of dependencies that installed packages offer by entry point."""

import sys
from collections.abc import Callable, Iterator
from importlib import import_module, invalidate_caches
from pathlib import Path

import pytest

from fastapi_lifespan_deps import (
    Depends,
    LifespanContainer,
    LifespanDependencyError,
    dependency_sets,
)

MODELS = """
from fastapi_lifespan_deps import Depends

def get_model() -> str:
    return "real"

def get_fake() -> str:
    return "fake"

SETS = {
    "cpu": [get_model],
    "options": (Depends(get_model, scope="lifespan", refresh_every=3600),),
    "fake": {get_model: get_fake},
}
NO_SETS = [get_model]
WRONG = {"wrong": ["get_model"]}
WRONG_TOO = {"wrong": 3}
NO_LIST = {"wrong": Depends(get_model)}
NO_OVERRIDE = {"wrong": {get_model: Depends(get_fake)}}
NO_NAME = {3: [get_model]}
"""

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Put packages where installed ones are found, each with entry points."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "offered_models.py").write_text(MODELS)

    def install(package: str, *points: str, group: str = "fastapi_lifespan_deps") -> None:
        found = tmp_path / f"{package}-1.0.dist-info"
        found.mkdir()
        (found / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (found / "entry_points.txt").write_text("\n".join([f"[{group}]", *points]))
        invalidate_caches()

    yield install
    sys.modules.pop("offered_models", None)


def test_there_are_none() -> None:
    assert dependency_sets() == {}
    with pytest.raises(LifespanDependencyError) as caught:
        LifespanContainer.from_set()
    assert str(caught.value) == (
        "No set of dependencies is named. There is none: they are what installed packages offer by "
        "the entry point group 'fastapi_lifespan_deps'."
    )


def test_the_sets_of_all_packages_are_found_by_name(install: Install) -> None:
    install("models", "models = offered_models:SETS")
    install("others", "others = offered_models:SETS", group="other")
    assert dependency_sets() == import_module("offered_models").SETS
    assert list(dependency_sets("other")) == ["cpu", "options", "fake"]


def test_a_list_is_started_and_a_mapping_overrides(install: Install) -> None:
    install("models", "models = offered_models:SETS")
    get_model = import_module("offered_models").get_model

    def read(model: str = Depends(get_model, scope="lifespan")) -> str:
        return model

    with LifespanContainer.from_set("cpu").sync() as running:
        assert running[get_model] == "real"
    with LifespanContainer.from_set("options").sync() as running:
        assert running[get_model] == "real"
    assert LifespanContainer.from_set("fake").run(read) == "fake"
    container = LifespanContainer.from_set("fake", overrides={get_model: lambda: "mine"})
    assert container.run(read) == "mine"


def test_the_only_set_needs_no_name(install: Install) -> None:
    install("models", "models = offered_models:SETS", group="many")
    with pytest.raises(LifespanDependencyError) as caught:
        LifespanContainer.from_set(group="many")
    assert "No set of dependencies is named. Choose from 'cpu', 'fake', 'options'" in str(
        caught.value
    )
    Path(sys.path[0], "offered_models.py").write_text(MODELS + "\nONE = {'one': [get_model]}")
    del sys.modules["offered_models"]
    invalidate_caches()
    install("one", "one = offered_models:ONE", group="one")
    get_model = import_module("offered_models").get_model

    with LifespanContainer.from_set(group="one").sync() as running:
        assert running[get_model] == "real"


def test_an_unknown_name_is_told_with_the_known_ones(install: Install) -> None:
    install("models", "models = offered_models:SETS")
    with pytest.raises(LifespanDependencyError) as caught:
        LifespanContainer.from_set("gpu")
    assert str(caught.value).startswith(
        "No set is named 'gpu'. Choose from 'cpu', 'fake', 'options': "
    )


def test_two_packages_must_not_offer_the_same(install: Install) -> None:
    install("models", "models = offered_models:SETS")
    install("copies", "copies = offered_models:SETS")
    with pytest.raises(LifespanDependencyError) as caught:
        dependency_sets()
    text = str(caught.value)
    assert "The set of dependencies 'cpu' is offered twice" in text
    assert "the package models (models = offered_models:SETS)" in text
    assert "the package copies (copies = offered_models:SETS)" in text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("NO_SETS", "offers a `list` as sets of dependencies. It must be a dictionary by name"),
        ("WRONG", "offers 'wrong', which is no set: ['get_model']. Give, by a name"),
        ("NO_LIST", "which is no set: [Depends("),
        ("NO_OVERRIDE", "which is no set: [Depends("),
        ("NO_NAME", "offers 3, which is no set: 3. Give, by a name"),
        ("WRONG_TOO", "offers 'wrong', which is no set: [3]. Give, by a name"),
    ],
)
def test_what_is_no_set_is_told(install: Install, name: str, text: str) -> None:
    install("models", f"models = offered_models:{name}")
    with pytest.raises(LifespanDependencyError) as caught:
        dependency_sets()
    assert str(caught.value).startswith("the package models (models = offered_models:")
    assert text in str(caught.value)


def test_a_set_that_cannot_be_imported_is_named(install: Install) -> None:
    install("models", "models = offered_models:MISSING")
    with pytest.raises(AttributeError) as caught:
        dependency_sets()
    assert caught.value.__notes__ == [
        "the package models (models = offered_models:MISSING) offers sets of dependencies, and "
        "cannot be imported."
    ]
