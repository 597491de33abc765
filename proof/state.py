"""What a result depends on: the code, the prover itself, and the releases of what is used."""

import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from .servers import Server
from .tree import tree_hash

State = dict[str, Any]


def states(servers: Iterable[Server], lie: str = "") -> dict[str, State]:
    """The state for each server, by its name."""
    common = {
        "tree": tree_hash(),
        "proof": tree_hash(["proof"]),
        "python": platform.python_version(),
        **({"lie": lie} if lie else {}),
    }
    return {
        server.name: {**common, "packages": {name: _release(name) for name in packages(server)}}
        for server in servers
    }


def _release(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def packages(server: Server) -> list[str]:
    return ["fastapi", "starlette", "anyio", server.package, *server.needs]


def described(some: Iterable[State]) -> str:
    """All of them, in a line."""
    some = list(some)
    versions = {name: version for state in some for name, version in state["packages"].items()}
    known = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"Tree {some[0]['tree']}; Python {some[0]['python']}, {known}."
