"""FastAPI dependencies that live as long as the application."""

from .applications import LifespanFastAPI, enable_lifespan_scope
from .container import LifespanContainer, get_container
from .events import LifespanEvent
from .exceptions import (
    DependencyCycleError,
    DependencyScopeError,
    InvalidDependencyScope,
    InvalidLifespanDependency,
    LifespanDependencyError,
    LifespanNotRunning,
    LifespanTimeout,
    RefreshError,
    UnavailableLifespanDependency,
    UninitializedLifespanDependency,
)
from .params import Depends
from .refresh import Draining

__all__ = [
    "DependencyCycleError",
    "DependencyScopeError",
    "Depends",
    "Draining",
    "InvalidDependencyScope",
    "InvalidLifespanDependency",
    "LifespanContainer",
    "LifespanDependencyError",
    "LifespanEvent",
    "LifespanFastAPI",
    "LifespanNotRunning",
    "LifespanTimeout",
    "RefreshError",
    "UnavailableLifespanDependency",
    "UninitializedLifespanDependency",
    "enable_lifespan_scope",
    "get_container",
]
