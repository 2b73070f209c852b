"""docs/architecture.md walks through the code by files and names: each must be there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
STEPS = re.findall(r"^\|[^|]+\| `([\w/]+\.py)` \| `(\w+)` \|$", PAGE, re.MULTILINE)
FILES = sorted(set(re.findall(r"`((?:tests/)?[\w/]+\.py)`", PAGE)))


def names_of(path: Path) -> set[str]:
    """What a module defines at its top level, annotated assignments included."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names


def test_the_walks_are_long_enough_to_be_walks() -> None:
    assert len(STEPS) > 40, "the tables' rows are no longer read; keep the form | what | `file.py` | `name` |"


@pytest.mark.parametrize(("file", "name"), STEPS)
def test_a_step_of_a_walk_is_where_the_page_says(file: str, name: str) -> None:
    path = ROOT / "posttrain" / file
    assert path.exists(), f"docs/architecture.md names {file}"
    assert name in names_of(path), f"docs/architecture.md looks for {name} in {file}"


@pytest.mark.parametrize("file", FILES)
def test_a_file_of_the_page_is_there(file: str) -> None:
    assert (ROOT / file).exists() or (ROOT / "posttrain" / file).exists()
