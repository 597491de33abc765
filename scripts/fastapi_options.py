"""Writes fastapi_lifespan_deps/serve/options.py: the options of `FastAPI`, for type checkers.

    .venv/bin/python scripts/fastapi_options.py

Run it when a release of FastAPI has brought an option: tests/test_application_options.py says so.
"""

import ast
import builtins
import inspect
import subprocess
import sys
from pathlib import Path

import fastapi
from fastapi import applications

TARGET = Path(__file__).parents[1] / "fastapi_lifespan_deps/serve/options.py"
# What takes more here than in FastAPI: functions that declare lifespan dependencies.
HOOKS = "Sequence[Callable[..., Any]] | None"
WIDER = {"lifespan": None, "on_startup": HOOKS, "on_shutdown": HOOKS}

HEAD = '''"""The options of `FastAPI`, for type checkers. Made by scripts/fastapi_options.py.

From FastAPI {version}. At run time nothing of it is looked at, so it fits every release.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
{imports}


class FastAPIOptions(TypedDict, total=False):
    """What `LifespanFastAPI` passes on to `FastAPI`."""

{options}
'''


def annotations() -> dict[str, ast.expr]:
    """The types of the options, without what documents them."""
    tree = ast.parse(inspect.getsource(applications.FastAPI.__init__).lstrip())
    function = tree.body[0]
    assert isinstance(function, ast.FunctionDef)
    found = {}
    for argument in function.args.kwonlyargs:
        annotation = argument.annotation
        if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Annotated":
            assert isinstance(annotation.slice, ast.Tuple)
            annotation = annotation.slice.elts[0]
        assert annotation is not None
        wider = WIDER.get(argument.arg, ast.unparse(annotation))
        if wider is not None:
            found[argument.arg] = ast.parse(wider, mode="eval").body
    return found


class Names(ast.NodeTransformer):
    """Finds out where names come from; what is private is `Any`."""

    def __init__(self) -> None:
        self.imports: set[str] = set()

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if hasattr(builtins, node.id):
            return node
        if node.id.startswith("_"):
            node = ast.Name("Any")
        value = getattr(applications, node.id, None)
        if inspect.ismodule(value):
            parent, _, name = value.__name__.rpartition(".")
            self.imports.add(f"    from {parent} import {name}")
        else:
            module = "typing" if node.id == "Any" else value.__module__.partition("._")[0]
            self.imports.add(f"    from {module} import {node.id}")
        return node


def main() -> None:
    names = Names()
    options = [
        f"    {name}: {ast.unparse(names.visit(annotation))}"
        for name, annotation in annotations().items()
    ]
    TARGET.write_text(
        HEAD.format(
            version=fastapi.__version__,
            imports="\n".join(sorted(names.imports)),
            options="\n".join(options),
        )
    )
    ruff = [sys.executable, "-m", "ruff"]
    subprocess.run([*ruff, "format", "--quiet", TARGET], check=True)
    subprocess.run([*ruff, "check", "--quiet", "--fix", TARGET], check=True)


if __name__ == "__main__":
    main()
