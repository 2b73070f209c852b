"""Every interval that a user is shown comes from `posttrain.intervals`: no other file draws resamples for one or knows
how many standard errors 95 % are."""

from __future__ import annotations

import ast
from pathlib import Path

from posttrain import intervals

PACKAGE = Path(__file__).parent.parent.parent / "posttrain"
OWN = {"wilson", "bootstrap", "paired_difference", "from_error"}
"""Functions that only that module may define."""


def test_no_other_module_makes_an_interval_of_its_own() -> None:
    assert vars(intervals).keys() >= OWN
    for path in sorted(PACKAGE.rglob("*.py")):
        if path == PACKAGE / "intervals.py":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert not defined & OWN, path
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, float):
                assert round(node.value, 2) != 1.96, f"{path}:{node.lineno}"
            if isinstance(node, ast.ImportFrom) and node.module == "posttrain.intervals":
                names = {alias.name for alias in node.names}
                assert not names & {"Z", "RESAMPLES"}, f"{path}:{node.lineno} has constants of an interval"
