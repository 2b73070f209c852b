"""Columns that no format reads: categories by name, by usual name, and what has none; the audit's check of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from posttrain.auditing import audit
from posttrain.data import read
from posttrain.data.row_columns import categories_of
from posttrain.errors import DataError
from posttrain.types import RowRef


def written(path: Path, **columns: str) -> Path:
    rows = [{"prompt": f"{i}?", "chosen": "yes", "rejected": "no", **columns} for i in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_named_column_wins_over_a_usual_one_and_that_over_none(tmp_path: Path) -> None:
    rows = read(written(tmp_path / "a.jsonl", topic="sums", source="web"))
    name = rows.sources[0].name
    assert categories_of(rows, "topic") == {RowRef(name, row): "sums" for row in (1, 2, 3)}
    assert set(categories_of(rows, None).values()) == {"web"}
    assert categories_of(read(written(tmp_path / "b.jsonl", topic="sums")), None) == {}
    with pytest.raises(DataError, match="did you mean `topic`"):
        categories_of(rows, "topics")


def biased(path: Path, shares: dict[str, float], each: int = 120) -> Path:
    """Of each kind, in such a share of the rows the longer side wins."""
    draw = np.random.default_rng(0)
    lines = []
    for kind, share in shares.items():
        for row in range(each):
            words = [" ".join(draw.choice(list("abcdefghij"), size)) for size in (12, 8)]
            chosen, rejected = words if row < share * each else reversed(words)
            lines.append({"prompt": f"{kind} {row}?", "chosen": chosen, "rejected": rejected, "category": kind})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_bias_that_the_whole_hides_is_found_by_category(tmp_path: Path) -> None:
    rows = read(biased(tmp_path / "pairs.jsonl", {"maths": 0.9, "prose": 0.1, "talk": 0.5}))
    assert not [one for one in audit(rows, checks=["length_bias"]) if one.severity == "warning"]
    found = list(audit(rows, checks=["category_length"]))
    assert [(one.evidence["category"], one.evidence["longer_chosen_share"]) for one in found] == [
        ("maths", 0.9),
        ("prose", 0.1),
    ]
    assert "the shorter side is chosen in 90" in found[1].message


def test_even_lengths_small_kinds_and_rows_without_one_are_silent(tmp_path: Path) -> None:
    even = read(biased(tmp_path / "even.jsonl", {"maths": 0.5, "prose": 0.55}))
    assert not list(audit(even, checks=["category_length"]))
    few = read(biased(tmp_path / "few.jsonl", {"maths": 1.0}, each=40))
    assert not list(audit(few, checks=["category_length"]))
    with pytest.raises(DataError, match="no row has the column"):
        audit(even, category="kind")
