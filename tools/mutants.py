"""Mutants: small faults planted into source text, each a place where a test ought to fail.

    mutants_of("a = max(b, 0)\n")   # [Mutant(1, "max -> min", "a = min(b, 0)\n"), Mutant(1, "0 -> 1", ...)]

Operators follow the usual sets (DeMillo, Lipton and Sayward 1978; those of mutmut and Cosmic Ray), with a few that
numerical code fails by: a dropped `detach` or `abs`, `mean` for `sum`, a refusal that never comes, a filter that lets
everything through. The text is edited in place, so that a mutant differs from the source by what it says and no more.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True, slots=True)
class Mutant:
    """One planted fault: Mutant(12, "< -> <=", source)."""

    line: int
    change: str
    source: str
    """The whole file with the fault in it."""


COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Lt: "<=",
    ast.LtE: "<",
    ast.Gt: ">=",
    ast.GtE: ">",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.Is: "is not",
    ast.IsNot: "is",
    ast.In: "not in",
    ast.NotIn: "in",
}
ARITHMETIC: dict[type[ast.operator], str] = {
    ast.Add: "-",
    ast.Sub: "+",
    ast.Mult: "/",
    ast.Div: "*",
    ast.FloorDiv: "*",
    ast.Mod: "+",
    ast.Pow: "*",
    ast.BitAnd: "|",
    ast.BitOr: "&",
}
SWAPPED = {"min": "max", "amin": "amax", "sum": "mean", "any": "all", "zeros_like": "ones_like", "zeros": "ones"}
SWAPPED |= {value: name for name, value in SWAPPED.items()}
"""Names of calls that stand for one another's mistake."""
DROPPED = ("detach", "abs", "double", "float", "square", "neg", "exp", "log", "clone", "contiguous", "bool")
"""Methods without arguments that a mutant leaves out: `x.detach()` becomes `x`."""


def mutants_of(source: str) -> list[Mutant]:
    """Every mutant of a module, in the order of its lines; none that is the source itself or no Python."""
    at, mutants = _Places(source), []
    for statement in ast.parse(source).body:
        # Whether a mutant compiles is asked of the statement that it changes: whole files would take minutes.
        lines = [statement.lineno, *(node.lineno for node in getattr(statement, "decorator_list", []))]
        first, last = at.starts[min(lines) - 1], at.starts[statement.end_lineno or statement.lineno]
        edits = dict.fromkeys(edit for node in _code(ast.Module([statement], [])) for edit in _edits(node, at))
        for start, end, text, change, line in edits:
            changed = source[first:start] + text + source[end:last]
            if changed != source[first:last] and _compiles(changed):
                mutants.append(Mutant(line, change, source[:first] + changed + source[last:]))
    return sorted(mutants, key=lambda mutant: mutant.line)


_Edit = tuple[int, int, str, str, int]
"""From and to which character, the new text, what it is called, and the line."""


def _code(tree: ast.AST) -> Iterator[ast.expr | ast.stmt | ast.comprehension]:
    """The nodes that run: no annotation, no docstring, no type alias, no import."""
    for field, value in ast.iter_fields(tree):
        if field in ("annotation", "returns", "type_comment", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, ast.Import | ast.ImportFrom | ast.JoinedStr):
                continue
            if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
                continue
            if isinstance(child, ast.expr | ast.stmt | ast.comprehension):
                yield child
            yield from _code(child)


def _edits(node: ast.AST, at: _Places) -> Iterator[_Edit]:
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in COMPARISONS:
        yield at.between(node.left, node.comparators[0], COMPARISONS[type(node.ops[0])])
    elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC and not _is_text(node):
        yield at.between(node.left, node.right, ARITHMETIC[type(node.op)])
    elif isinstance(node, ast.BoolOp):
        yield at.between(node.values[0], node.values[1], "or" if isinstance(node.op, ast.And) else "and")
    elif isinstance(node, ast.UnaryOp):
        yield at.replaced(node, at.text(node.operand))
    elif isinstance(node, ast.Constant):
        yield from _constants(node, at)
    elif isinstance(node, ast.Call):
        yield from _calls(node, at)
    elif isinstance(node, ast.IfExp):
        yield at.replaced(node.test, "True")
    elif isinstance(node, ast.If) and any(
        isinstance(line, ast.Raise | ast.Continue | ast.Return) for line in node.body
    ):
        yield at.replaced(node.test, "False")
    elif isinstance(node, ast.comprehension):
        for condition in node.ifs:
            yield at.replaced(condition, "True")


def _constants(node: ast.Constant, at: _Places) -> Iterator[_Edit]:
    value = node.value
    if isinstance(value, bool):
        yield at.replaced(node, str(not value))
    elif isinstance(value, int):
        yield at.replaced(node, str(value + 1))
    elif isinstance(value, float):
        yield at.replaced(node, repr(value * 2 if value else 1.0))


def _calls(node: ast.Call, at: _Places) -> Iterator[_Edit]:
    name = node.func
    called = name.attr if isinstance(name, ast.Attribute) else name.id if isinstance(name, ast.Name) else ""
    if called in SWAPPED:
        end = at.end(name)
        yield end - len(called), end, SWAPPED[called], f"{called} -> {SWAPPED[called]}", node.lineno
    if isinstance(name, ast.Attribute) and called in DROPPED and not node.args and not node.keywords:
        yield at.end(name.value), at.end(node), "", f".{called}() dropped", node.lineno


def _is_text(node: ast.BinOp) -> bool:
    """Texts and lists that are put together: their mutants raise TypeError and prove nothing."""
    literal = (ast.JoinedStr, ast.List, ast.ListComp, ast.Tuple, ast.Dict)
    sides = (node.left, node.right)
    return any(isinstance(s, literal) or (isinstance(s, ast.Constant) and isinstance(s.value, str)) for s in sides)


class _Places:
    """Where nodes stand in the text; the tree counts columns in bytes of UTF-8."""

    def __init__(self, source: str):
        self.source = source
        self.lines = source.splitlines(keepends=True)
        self.starts = [0, *accumulate(map(len, self.lines))]

    def _at(self, line: int, column: int) -> int:
        return self.starts[line - 1] + len(self.lines[line - 1].encode()[:column].decode())

    def start(self, node: ast.expr) -> int:
        return self._at(node.lineno, node.col_offset)

    def end(self, node: ast.expr) -> int:
        return self._at(node.end_lineno or node.lineno, node.end_col_offset or 0)

    def text(self, node: ast.expr) -> str:
        return self.source[self.start(node) : self.end(node)]

    def replaced(self, node: ast.expr, text: str) -> _Edit:
        old = " ".join(self.text(node).split())
        return self.start(node), self.end(node), text, f"{old} -> {text}", node.lineno

    def between(self, left: ast.expr, right: ast.expr, text: str) -> _Edit:
        """The operator between two operands; brackets and line breaks around it stay."""
        start, end = self.end(left), self.start(right)
        gap = self.source[start:end]
        old = gap.strip(" ()\n\\\t")
        at = start + gap.index(old) if old else start
        return at, at + len(old), text, f"{old} -> {text}", left.end_lineno or left.lineno


def _compiles(source: str) -> bool:
    try:
        compile(source, "mutant", "exec")
    except SyntaxError:  # an operator with a comment beside it: that mutant is left out
        return False
    return True
