"""FastAPI dependencies that live as long as the application."""

from .call.container import LifespanContainer, inject
from .call.sets import DependencySet, dependency_sets
from .call.view import View, current_container, get_container
from .call.worker import WorkerSummary, run_worker
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
from .see.graph import LifespanGraph, LifespanNode, LifespanUser
from .serve.applications import (
    LifespanFastAPI,
    enable_lifespan_scope,
    lifespan_container,
    lifespan_graph,
)

__all__ = [
    "DependencyCycleError",
    "DependencyScopeError",
    "DependencySet",
    "Depends",
    "Draining",
    "InvalidDependencyScope",
    "InvalidLifespanDependency",
    "LifespanContainer",
    "LifespanDependencyError",
    "LifespanEvent",
    "LifespanFastAPI",
    "LifespanGraph",
    "LifespanNode",
    "LifespanNotRunning",
    "LifespanTimeout",
    "LifespanUser",
    "RefreshError",
    "UnavailableLifespanDependency",
    "UninitializedLifespanDependency",
    "View",
    "WorkerSummary",
    "current_container",
    "dependency_sets",
    "enable_lifespan_scope",
    "get_container",
    "inject",
    "lifespan_container",
    "lifespan_graph",
    "run_worker",
]
