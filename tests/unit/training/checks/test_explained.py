"""Every line that a preflight can have is explained, in the table and on the page made of it."""

from __future__ import annotations

import ast
from io import StringIO
from pathlib import Path

from rich.console import Console

import posttrain
from posttrain.cli.proof import show_preflight
from posttrain.training.checks.explained import EXPLAINED
from posttrain.training.checks.preflight import Check, Preflight
from tools.preflight_reference import page

PACKAGE = Path(posttrain.__file__).parent


def names_of_checks() -> set[str]:
    """The first argument of every Check(...) of the package, both sides of a condition included."""
    names: set[str] = set()
    for path in [*(PACKAGE / "training").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "Check":
                first = node.args[0]
                sides = [first.body, first.orelse] if isinstance(first, ast.IfExp) else [first]
                names |= {side.value for side in sides if isinstance(side, ast.Constant)}  # type: ignore[misc]
    return names


def test_every_check_has_an_explanation_and_every_explanation_a_check() -> None:
    names = names_of_checks()
    assert len(names) > 15 and names == set(EXPLAINED)


def test_the_page_is_made_of_the_table() -> None:
    """After a change that is meant: python -m tools.preflight_reference > docs/preflight.md"""
    assert (PACKAGE.parent / "docs" / "preflight.md").read_text(encoding="utf-8") == page()


def test_explain_says_under_each_line_what_it_proves() -> None:
    said = []
    for explain in (False, True):
        screen = StringIO()
        proven = Preflight((Check("leak", "no leak between branches", "pass", "0.0 nats"),), ())
        show_preflight(Console(file=screen, width=300), "dpo", proven, explain=explain)
        said.append(screen.getvalue())
    plain, explained = said
    assert EXPLAINED["leak"].proves not in plain
    row = EXPLAINED["leak"]
    assert all(text in explained for text in (row.proves, row.matters, row.otherwise))
