"""FastAPI dependencies that live as long as the application."""

from .applications import LifespanFastAPI, enable_lifespan_scope
from .container import LifespanContainer, get_container
from .exceptions import (
    DependencyCycleError,
    DependencyScopeError,
    InvalidDependencyScope,
    InvalidLifespanDependency,
    LifespanDependencyError,
    UninitializedLifespanDependency,
)
from .params import Depends

__all__ = [
    "DependencyCycleError",
    "DependencyScopeError",
    "Depends",
    "InvalidDependencyScope",
    "InvalidLifespanDependency",
    "LifespanContainer",
    "LifespanDependencyError",
    "LifespanFastAPI",
    "UninitializedLifespanDependency",
    "enable_lifespan_scope",
    "get_container",
]
