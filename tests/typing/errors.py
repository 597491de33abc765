"""The attributes of errors."""

from collections.abc import Callable
from typing import Any, assert_type

from fastapi import exceptions

from fastapi_lifespan_deps import (
    DependencyCycleError,
    DependencyScopeError,
    InvalidDependencyScope,
    InvalidLifespanDependency,
    LifespanDependencyError,
    UninitializedLifespanDependency,
)
from fastapi_lifespan_deps.exceptions import Step


def check(
    unknown: InvalidDependencyScope,
    invalid: InvalidLifespanDependency,
    scope: DependencyScopeError,
    cycle: DependencyCycleError,
    missing: UninitializedLifespanDependency,
) -> None:
    base: list[LifespanDependencyError] = [unknown, invalid, scope, cycle, missing]
    fastapis: list[exceptions.FastAPIError] = [*base]
    fastapis_own: exceptions.DependencyScopeError = scope

    assert_type(unknown.scope, object)
    assert_type(invalid.dependency, object)
    assert_type(scope.provider, Callable[..., Any])
    assert_type(scope.parameter, str)
    assert_type(scope.path, tuple[Step, ...])
    assert_type(cycle.path, tuple[Step, ...])
    assert_type(missing.provider, Callable[..., Any])
    assert_type(scope.path[0].label, str)
    assert_type(scope.path[0].call, Callable[..., Any] | None)
    assert_type(scope.path[0].note, str)
    del fastapis, fastapis_own
