"""FastAPI dependencies that live as long as the application."""

from .declare.params import Depends
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
from .live.refresh import Draining
from .serve.applications import LifespanFastAPI, enable_lifespan_scope, lifespan_container
from .serve.container import LifespanContainer, get_container

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
    "lifespan_container",
]
