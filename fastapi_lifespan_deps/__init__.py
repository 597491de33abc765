"""FastAPI dependencies that live as long as the application."""

from .call.container import LifespanContainer, inject
from .call.health import DependencyHealth, HealthReport
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
from .serve.health import add_health_routes

__all__ = [
    "DependencyCycleError",
    "DependencyHealth",
    "DependencyScopeError",
    "DependencySet",
    "Depends",
    "Draining",
    "HealthReport",
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
    "add_health_routes",
    "current_container",
    "dependency_sets",
    "enable_lifespan_scope",
    "get_container",
    "inject",
    "lifespan_container",
    "lifespan_graph",
    "run_worker",
]
