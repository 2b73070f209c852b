"""The package's imports, read from its source: what the test of the layers and the picture of them both stand on.

Nothing is imported, so every file counts, those that need a CUDA machine too. Imports inside functions and those for
type checkers only are read as well: a circle that happens to load is still two modules that cannot be read apart.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "posttrain"

LAYERS = {
    "types": 0,
    "outputs": 0,
    "errors": 0,
    "arguments": 0,
    "text_file": 0,
    "lazy_torch": 0,
    "sampling": 0,
    "intervals": 0,
    "embedded": 0,
    "losses": 1,
    "advantages": 1,
    "diagnostics": 1,
    "parallel": 1,
    "runs": 1,
    "data": 2,
    "config": 2,
    "report": 2,
    "models": 3,
    "rollout": 4,
    "rewards": 4,
    "auditing": 4,
    "starting": 4,
    "converting": 4,
    "environments": 4,
    "evaluate": 5,
    "curation": 5,
    "inference": 5,
    "serve": 5,
    "synthesis": 5,
    "planning": 5,
    "training": 6,
    "launching": 7,
    "sweeps": 7,
    "cli": 8,
    "board": 8,
    "__main__": 8,
}
"""Every part of the package and its layer; a part imports its own layer and those below, never one above."""

FOLDER_READERS = {
    "report": {"types", "outputs", "errors", "arguments", "intervals", "diagnostics", "runs"},
    "board": {"types", "outputs", "errors", "intervals", "diagnostics", "runs", "report"},
}
"""Parts that read run folders and files only, and what they may import for that."""


@dataclass(frozen=True, slots=True)
class Import:
    """`from posttrain.data import read` -> Import("posttrain.data", ("read",), when_loaded=True, for_types=False)"""

    source: str
    names: tuple[str, ...]
    """Empty for `import posttrain.data`."""
    when_loaded: bool
    """Whether it happens when the module is loaded, not in a function later."""
    for_types: bool

    def dotted(self) -> Iterator[str]:
        """All that it could mean: the source, and each name as if it were a module in it."""
        yield self.source
        yield from (f"{self.source}.{name}" for name in self.names)

    def modules(self, known: Mapping[str, Path]) -> Iterator[str]:
        """The modules of the package that it needs. A package from which a module is taken is not one of them:
        `__init__` of it runs too, and would close a circle with every module that it re-exports."""
        for name in [f"{self.source}.{name}" for name in self.names] or [self.source]:
            module = name if name in known else self.source
            if module in known:
                yield module


class Imports(ast.NodeVisitor):
    """Collects the imports of one module."""

    def __init__(self, module: str, is_package: bool):
        self.package = module if is_package else module.rpartition(".")[0]
        self.imports: list[Import] = []
        self.depth = 0
        self.for_types = False

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> None:
        self.depth += 1
        self.generic_visit(node)
        self.depth -= 1

    visit_AsyncFunctionDef = visit_FunctionDef
    visit_Lambda = visit_FunctionDef

    def visit_If(self, node: ast.If) -> None:
        if "TYPE_CHECKING" in ast.unparse(node.test):
            before, self.for_types = self.for_types, True
            for statement in node.body:
                self.visit(statement)
            self.for_types = before
            for statement in node.orelse:
                self.visit(statement)
        else:
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._add(alias.name, ())

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        parts = self.package.split(".")
        base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
        source = ".".join(part for part in (base, node.module) if part)
        self._add(source, tuple(alias.name for alias in node.names))

    def _add(self, source: str, names: tuple[str, ...]) -> None:
        self.imports.append(Import(source, names, self.depth == 0 and not self.for_types, self.for_types))


def modules(package: Path = PACKAGE) -> dict[str, Path]:
    """Every module of the package: {"posttrain.data.read": .../read.py, "posttrain.data": .../__init__.py}."""
    paths = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return paths


@cache
def imports_of(module: str, path: Path) -> list[Import]:
    """Read once: a dozen tests and the picture ask for those of the whole package."""
    visitor = Imports(module, path.name == "__init__.py")
    visitor.visit(ast.parse(path.read_text(encoding="utf-8")))
    return visitor.imports


def part_of(module: str) -> str | None:
    """posttrain.data.read -> data; None for the package itself."""
    words = module.split(".")
    return words[1] if len(words) > 1 and words[0] == "posttrain" else None


def module_graph(known: Mapping[str, Path], *, types: bool = True) -> dict[str, set[str]]:
    """Which module imports which; `types` counts the imports for type checkers too.

    The package's own `__init__` is left out: its lazy table names everything, and nothing imports it.
    """
    graph: dict[str, set[str]] = {}
    for module, path in known.items():
        if part_of(module) is not None:
            wanted = [item for item in imports_of(module, path) if types or not item.for_types]
            graph[module] = {name for item in wanted for name in item.modules(known) if part_of(name)} - {module}
    return graph


def part_graph(known: Mapping[str, Path]) -> dict[str, set[str]]:
    """Which part of the package imports which: {"rollout": {"models", "data", ...}, ...}."""
    graph: dict[str, set[str]] = {}
    for module, targets in module_graph(known).items():
        parts = graph.setdefault(str(part_of(module)), set())
        parts |= {str(part_of(target)) for target in targets} - {str(part_of(module))}
    return graph


def circles(graph: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """The sets of nodes that reach each other: strongly connected components of two or more (Tarjan 1972)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    components: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = lowest[node] = len(order)
        stack.append(node)
        for target in graph.get(node, ()):
            if target not in order:
                visit(target)
                lowest[node] = min(lowest[node], lowest[target])
            elif target in stack:
                lowest[node] = min(lowest[node], order[target])
        if lowest[node] == order[node]:
            start = stack.index(node)
            components.append(sorted(stack[start:]))
            del stack[start:]

    for node in graph:
        if node not in order:
            visit(node)
    return sorted(component for component in components if len(component) > 1)
