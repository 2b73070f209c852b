"""The package's names: one table loads them, one tells type checkers of them, one exports them; all three agree."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path

import pytest
from mypy import api

import posttrain as pt

ROOT = Path(__file__).parent.parent.parent
SOURCE = ROOT / "posttrain" / "__init__.py"


def for_checkers() -> dict[str, str]:
    """name -> module, as the imports under TYPE_CHECKING say."""
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name: str(node.module) for node in imports for alias in node.names}


def test_the_three_lists_agree() -> None:
    homes = vars(pt)["_HOMES"]
    assert for_checkers() == homes, "a name that checkers do not see is Any to them"
    assert sorted(pt.__all__) == sorted(homes) and len(set(pt.__all__)) == len(pt.__all__)


@pytest.mark.parametrize("name", sorted(pt.__all__))
def test_every_name_is_where_its_table_says(name: str) -> None:
    assert getattr(pt, name) is getattr(import_module(vars(pt)["_HOMES"][name]), name)


@pytest.mark.slow
def test_a_type_checker_knows_what_the_names_are(tmp_path: Path) -> None:
    program = tmp_path / "user.py"
    program.write_text('import posttrain as pt\n\nreveal_type(pt.Online("grpo"))\nreveal_type(pt.load_recipe("a"))\n')
    said, failed, _ = api.run([str(program), "--follow-imports=silent", "--no-error-summary"])
    assert "SamplingStage" in said and "Recipe" in said and '"Any"' not in said, said + failed
