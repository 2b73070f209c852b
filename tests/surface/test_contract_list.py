"""The table of facts in tests/contracts/README.md and the files that test them say the same."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

CONTRACTS = Path(__file__).parents[1] / "contracts"
FILES = sorted(CONTRACTS.glob("test_*.py"))
ROW = re.compile(r"\| T(?P<number>\d\d) \| (?P<fact>[^|]*(?:\\\|[^|]*)*) \| (?P<files>[^|]+) \|")
LINK = re.compile(r"\[(?P<name>\w+)\]\(test_(?P=name)\.py\)")


def rows_of(text: str) -> dict[str, list[str]]:
    """The files of every number, in the order of the table; a line of it that is no row is an error."""
    table = [line for line in text.splitlines() if line.startswith("| T")]
    rows = {}
    for line in table:
        match = ROW.fullmatch(line)
        assert match and len(match["fact"]) > 20, f"this line of the table is no row: {line}"
        names = LINK.findall(match["files"])
        assert ", ".join(f"[{name}](test_{name}.py)" for name in names) == match["files"], line
        assert match["number"] not in rows, f"T{match['number']} has two rows"
        rows[match["number"]] = [f"test_{name}.py" for name in names]
    return rows


def test_every_file_has_its_row_and_every_row_its_files() -> None:
    rows = rows_of((CONTRACTS / "README.md").read_text(encoding="utf-8"))
    files: dict[str, list[str]] = {}
    for path in FILES:
        match = re.match(r"test_t(\d\d)_\w+\.py", path.name)
        assert match, f"{path.name} is not named after a fact's number"
        files.setdefault(match[1], []).append(path.name)
    assert rows == files
    assert list(rows) == sorted(rows)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_says_its_number_and_where_the_list_is(path: Path) -> None:
    words = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    number = path.name.removeprefix("test_t")[:2]
    assert re.match(rf"T{number}\b|(T\d\d(, | and ))+T\d\d\b", words) and f"T{number}" in words.splitlines()[0]
    assert words.endswith("The facts are listed in tests/contracts/README.md.")
