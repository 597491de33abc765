"""The package is laid out as its data flows: imports go one way, and nothing grows too large."""

import ast
import functools
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
from mccabe import PathGraphingAstVisitor

import fastapi_lifespan_deps

PACKAGE = Path(fastapi_lifespan_deps.__file__).parent

# From the bottom to the top: each may import what stands before it.
ORDER = (
    "exceptions",
    "absence",
    "events",
    "_compat",
    "declare.signature",
    "declare.provider",
    "declare.options",
    "declare.params",
    "declare.plan",
    "declare.collect",
    "declare.planning",
    "declare.doubts",
    "see.graph",
    "see.spans",
    "see.attributes",
    "see.metrics",
    "see.telemetry",
    "see.providers",
    "see.frames",
    "see.watch",
    "see.summary",
    "live.tasks",
    "live.entering",
    "live.instance",
    "live.supervisor",
    "live.generation",
    "live.holding",
    "live.values",
    "live.overrides",
    "live.asking",
    "live.refresh",
    "live.run",
    "call.order",
    "call.leaving",
    "call.health",
    "call.calls",
    "call.threads",
    "call.streams",
    "call.inject",
    "call.view",
    "call.sets",
    "call.sync",
    "call.container",
    "call.source",
    "call.signals",
    "call.stopping",
    "call.worker",
    "serve.binding",
    "serve.own_code",
    "serve.lifespan",
    "serve.routing",
    "serve.options",
    "serve.applications",
    "serve.health",
    "command.finding",
    "command.telling",
    "command.check",
    "command.graph",
    "command.timeline",
    "command.showing",
    "command.interrupts",
    "command.start",
    "command.worker",
    "command.cli",
    "__main__",
)


def source_of(module: str) -> str:
    return PACKAGE.joinpath(*module.split(".")).with_suffix(".py").read_text()


def lines_of_code(source: str) -> int:
    """The lines that are not blank, nor a comment, nor a string that stands for itself."""
    ignored = {
        tokenize.COMMENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
        tokenize.INDENT,
        tokenize.NEWLINE,
        tokenize.NL,
    }
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in ignored:
            code.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            assert node.end_lineno is not None
            code.difference_update(range(node.lineno, node.end_lineno + 1))
    return len(code)


def complexities(source: str) -> Iterator[tuple[str, int]]:
    visitor = PathGraphingAstVisitor()
    visitor.preorder(ast.parse(source), visitor)
    for graph in visitor.graphs.values():
        yield graph.entity, graph.complexity()


@functools.cache
def classes() -> dict[str, tuple[list[str], set[str]]]:
    """For each class of the package its bases, and the attributes that it sets of `self`."""
    found = {}
    for module in ORDER:
        for node in ast.walk(ast.parse(source_of(module))):
            if isinstance(node, ast.ClassDef):
                bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
                attributes = {
                    inner.attr
                    for inner in ast.walk(node)
                    if isinstance(inner, ast.Attribute)
                    and isinstance(inner.ctx, ast.Store)
                    and isinstance(inner.value, ast.Name)
                    and inner.value.id == "self"
                }
                found[node.name] = bases, attributes
    return found


def test_every_module_has_its_place() -> None:
    modules = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in PACKAGE.rglob("*.py")
    }
    assert {module for module in modules if not module.endswith("__init__")} == set(ORDER)


@pytest.mark.parametrize("module", ORDER)
def test_imports_go_one_way(module: str) -> None:
    tree = ast.parse(source_of(module))
    package = ["fastapi_lifespan_deps", *module.split(".")[:-1]]
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom):
            continue
        name = node.module or ""
        if node.level:
            name = ".".join([*package[: len(package) - node.level + 1], name])
        if name.startswith("fastapi_lifespan_deps."):
            imported = name.removeprefix("fastapi_lifespan_deps.")
            assert ORDER.index(imported) < ORDER.index(module)


@pytest.mark.parametrize("module", ORDER)
def test_no_module_is_too_long(module: str) -> None:
    assert lines_of_code(source_of(module)) <= 350


@pytest.mark.parametrize("module", ORDER)
def test_no_function_is_too_complex(module: str) -> None:
    assert [one for one in complexities(source_of(module)) if one[1] > 10] == []


@pytest.mark.parametrize("name", classes())
def test_no_class_has_too_many_attributes(name: str) -> None:
    known = classes()

    def attributes_of(name: str) -> set[str]:
        bases, attributes = known.get(name, ((), set()))
        return attributes.union(*map(attributes_of, bases))

    assert len(attributes_of(name)) <= 15


def test_what_counts_is_counted() -> None:
    lines = ['"""A text."""', "", "# one", "x = [", "    1,", "]", "def f():", '    """More."""']
    assert lines_of_code("\n".join([*lines, "    return x", ""])) == 5
    branches = "".join(f"    if a == {number}:\n        a += 1\n" for number in range(11))
    assert dict(complexities(f"def f(a):\n{branches}")) == {"f": 12}
