"""docs/reference.md has every public name, with the parameters, types and errors that it has."""

import inspect
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib.util import module_from_spec, spec_from_file_location
from typing import Any

import pytest

import fastapi_lifespan_deps
from tests.processes import ROOT
from tests.test_house import classes

PAGE = (ROOT / "docs/reference.md").read_text()
ERRORS_PAGE = (ROOT / "docs/reference/errors.md").read_text()
NAMES = fastapi_lifespan_deps.__all__
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def script() -> Any:
    spec = spec_from_file_location("reference", ROOT / "scripts/reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPT = script()


def section(name: str) -> str:
    """What stands below the heading of a public name."""
    sections = re.split(r"^### ", PAGE, flags=re.MULTILINE)
    (found,) = (text for text in sections if text.splitlines()[0] == name)
    return re.split(r"^## ", found, flags=re.MULTILINE)[0]


def spans(name: str) -> list[str]:
    """What the text of a section shows as code."""
    return re.findall(r"`([^`]+)`", FENCE.sub("", section(name)))


def called(name: str) -> Iterator[Callable[..., Any]]:
    """The function, or the public methods."""
    thing = getattr(fastapi_lifespan_deps, name)
    if not isinstance(thing, type):
        yield thing
        return
    for method in SCRIPT.functions(thing).values():
        yield getattr(method, "__func__", method)


def parameters(name: str) -> set[str]:
    """The names of the parameters, but for those that are passed on or only have a position."""
    passed_on = ("self", "cls", "args", "kwargs")
    return {one for call in called(name) for one in inspect.signature(call).parameters}.difference(
        passed_on
    )


def attributes(name: str) -> set[str]:
    thing = getattr(fastapi_lifespan_deps, name)
    return {*SCRIPT.attributes(thing)} if isinstance(thing, type) else set()


def public_methods(name: str) -> set[str]:
    thing = getattr(fastapi_lifespan_deps, name)
    found = {*SCRIPT.functions(thing)} if isinstance(thing, type) else set()
    return {one for one in found if not one.startswith("__")}


FUNCTIONS = [name for name in NAMES if inspect.isfunction(getattr(fastapi_lifespan_deps, name))]
CLASSES = [name for name in NAMES if isinstance(getattr(fastapi_lifespan_deps, name), type)]
ERRORS = [
    name
    for name in CLASSES
    if issubclass(
        getattr(fastapi_lifespan_deps, name), fastapi_lifespan_deps.LifespanDependencyError
    )
]


def test_signatures_and_types_are_those_of_the_code() -> None:
    """Else run scripts/reference.py."""
    assert SCRIPT.SHOWN.read_text() == SCRIPT.text()


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_has_a_section_that_begins_with_its_signature(name: str) -> None:
    shown = f'```python\n--8<-- "docs_src/reference.txt:{name}"\n```\n'
    assert section(name).startswith(f"{name}\n\n{shown}")


def test_only_public_names_have_a_signature() -> None:
    assert sorted(re.findall(r"reference\.txt:(\w+)", PAGE)) == sorted(NAMES)


@pytest.mark.parametrize("name", [*FUNCTIONS, *CLASSES])
def test_every_parameter_attribute_and_method_is_told_of(name: str) -> None:
    words = {word for span in spans(name) for word in re.findall(r"\w+", span)}
    assert parameters(name) | attributes(name) | public_methods(name) <= words


@pytest.mark.parametrize("name", [*FUNCTIONS, *CLASSES])
def test_tables_have_what_there_is(name: str) -> None:
    """Whatever a row is about is a parameter, or an attribute."""
    for kind, known in (("argument", parameters(name)), ("attribute", attributes(name))):
        for table in re.findall(rf"^\| {kind} \|.*\n(?:\|.*\n?)*", section(name), re.MULTILINE):
            for row in table.splitlines()[2:]:
                first = row.split(" | ")[0]
                for told in re.findall(r"`\*{0,2}(\w+)`", first):
                    assert told in known


@pytest.mark.parametrize("name", [*FUNCTIONS, *CLASSES])
def test_calls_are_shown_with_arguments_that_there_are(name: str) -> None:
    known = {call.__name__: inspect.signature(call).parameters for call in called(name)}
    for span in spans(name):
        if (match := re.fullmatch(r"(?:[\w ]+\.)?(\w+)\((.*)\).*", span)) and match[1] in known:
            for argument in re.findall(r"(\w+)=", match[2]):
                assert argument in known[match[1]], span


@pytest.mark.parametrize("name", [*FUNCTIONS, *CLASSES])
def test_every_error_that_a_docstring_tells_of_is_there(name: str) -> None:
    words = {word for span in spans(name) for word in re.findall(r"\w+", span)}
    thing = getattr(fastapi_lifespan_deps, name)
    for one in (thing, *called(name)):
        docstring = inspect.getdoc(one) or ""
        _, _, raises = docstring.partition("\nRaises:\n")
        told = re.match(r"(?:    .*\n?|\n)*", raises)
        assert told is not None
        errors = set(re.findall(r"^    (\w+):", told[0], re.MULTILINE))
        assert errors - {"Exception"} <= words


@pytest.mark.parametrize("name", ERRORS)
def test_every_error_is_below_errors_and_on_its_page(name: str) -> None:
    *_, errors = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    assert errors.startswith("Errors\n")
    assert f"### {name}\n" in errors
    assert f"`{name}`" in ERRORS_PAGE or f"## {name}\n" in ERRORS_PAGE


@pytest.mark.parametrize("name", CLASSES)
def test_every_attribute_that_is_set_has_a_type(name: str) -> None:
    """What an `__init__` sets without an annotation in the class isn't seen by the script."""
    _, stored = classes()[name]
    public = {one for one in stored if not one.startswith("_")}
    assert public <= attributes(name)


def test_every_extra_is_told_of() -> None:
    """Those of users; the others are for the example application, in a checkout."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {*project["optional-dependencies"]}
    texts = [page.read_text() for page in (ROOT / "docs").rglob("*.md")]
    named = {one for text in texts for one in re.findall(r"fastapi-lifespan-deps\[(\w+)\]", text)}
    assert extras - {"ray", "serving"} <= named <= extras


def test_a_type_is_shown_alike_on_all_releases_of_python() -> None:
    assert sys.version_info >= (3, 11)
    assert SCRIPT.shown(dict[str, list[int] | None]) == "dict[str, list[int] | None]"
    assert SCRIPT.shown(Callable[[Any], object]) == "Callable[[Any], object]"


def test_what_counts_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A parameter that is renamed, or new, is missed in both places."""

    def inject(fn: Callable[..., Any], *, strict: bool = False) -> Callable[..., Any]:
        return fn

    monkeypatch.setattr(fastapi_lifespan_deps, "inject", inject)
    with pytest.raises(AssertionError):
        test_signatures_and_types_are_those_of_the_code()
    with pytest.raises(AssertionError):
        test_every_parameter_attribute_and_method_is_told_of("inject")
    monkeypatch.setattr(fastapi_lifespan_deps.View, "peek", lambda self: None, raising=False)
    with pytest.raises(AssertionError):
        test_every_parameter_attribute_and_method_is_told_of("View")
