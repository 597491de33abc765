"""Sets: what installed packages offer to start, or to put in the place of something, by name."""

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from fastapi import params

from fastapi_lifespan_deps.exceptions import LifespanDependencyError

GROUP = "fastapi_lifespan_deps"

# What is started, or what is put in the place of what.
DependencySet = Sequence[Any] | Mapping[Callable[..., Any], Callable[..., Any]]


def dependency_sets(group: str = GROUP) -> dict[str, DependencySet]:
    """The sets of dependencies that installed packages offer, by name.

    A package offers some with an entry point that names a dictionary. In it, a list is what to
    start: providers, or what `Depends(provider, scope="lifespan", ...)` returns. A mapping is
    overrides.

    Args:
        group: the entry points' group.

    Raises:
        LifespanDependencyError: two packages offer a set of the same name, or something is no set.

    Example:
        ```python
        # in pyproject.toml: [project.entry-points.fastapi_lifespan_deps]
        #                   models = "my_models:SETS"
        SETS = {"cpu": [get_model], "fake": {get_model: get_fake_model}}
        ```
    """
    sets: dict[str, DependencySet] = {}
    offered_by: dict[str, EntryPoint] = {}
    for point in entry_points(group=group):
        for name, found in _loaded(point).items():
            if name in sets:
                first, second = _named(offered_by[name]), _named(point)
                raise LifespanDependencyError(
                    f"The set of dependencies {name!r} is offered twice, by {first} and by "
                    f"{second}. Uninstall one of them, or let it use another name."
                )
            sets[name], offered_by[name] = found, point
    return sets


def _loaded(point: EntryPoint) -> Mapping[str, DependencySet]:
    try:
        sets = point.load()
    except Exception as error:
        error.add_note(f"{_named(point)} offers sets of dependencies, and cannot be imported.")
        raise
    if not isinstance(sets, Mapping):
        raise LifespanDependencyError(
            f"{_named(point)} offers a `{type(sets).__name__}` as sets of dependencies. It must be "
            'a dictionary by name: {"cpu": [get_model], "fake": {get_model: get_fake_model}}.'
        )
    for name, found in sets.items():
        if isinstance(found, Mapping):
            wrong = [one for one in (*found, *found.values()) if not callable(one)]
        elif isinstance(found, Sequence) and not isinstance(found, str):
            wrong = [one for one in found if not (callable(one) or isinstance(one, params.Depends))]
        else:
            wrong = [found]
        if wrong or not isinstance(name, str):
            raise LifespanDependencyError(
                f"{_named(point)} offers {name!r}, which is no set: {wrong or name!r}. Give, by a "
                "name, a list of providers, or a mapping of overrides."
            )
    return sets


def _named(point: EntryPoint) -> str:
    package = f"the package {point.dist.name}" if point.dist is not None else "a package"
    return f"{package} ({point.name} = {point.value})"


def chosen(
    name: str | None, group: str = GROUP
) -> tuple[list[Any], dict[Callable[..., Any], Callable[..., Any]]]:
    """What to start, and what to override: the set of that name, or the only one."""
    sets = dependency_sets(group)
    if name is None and len(sets) == 1:
        [name] = sets
    if name is None or name not in sets:
        asked = "No set of dependencies is named" if name is None else f"No set is named {name!r}"
        known = f"Choose from {', '.join(map(repr, sorted(sets)))}" if sets else "There is none"
        raise LifespanDependencyError(
            f"{asked}. {known}: they are what installed packages offer by the entry point group "
            f"{group!r}."
        )
    found = sets[name]
    return ([], dict(found)) if isinstance(found, Mapping) else (list(found), {})
