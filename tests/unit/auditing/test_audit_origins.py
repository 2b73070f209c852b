"""The audit reads who made the rows: makers, scores, rounds, draws that stand twice, the policy's own words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.auditing import AuditFinding, audit
from posttrain.auditing.origin_counts import Origins
from posttrain.data.origin import Origin, with_origin
from posttrain.types import RowRef


def row(number: int, origin: Origin | None) -> dict[str, Any]:
    plain = {"messages": [{"role": "user", "content": f"q{number}?"}, {"role": "assistant", "content": f"a{number}."}]}
    return plain if origin is None else with_origin(plain, origin)


def found(folder: Path, rows: list[dict[str, Any]], **options: Any) -> list[AuditFinding]:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return list(audit(path, checks=["origins"], progress=False, **options))


MIXED = [
    *(row(n, Origin("distil", "big", f"p, row {n}", seed=n, scores={"math": n / 4})) for n in range(5)),
    *(row(n, Origin("prompts/evol_instruct", "small", seed=n, details={"round": 1 + n % 2})) for n in range(5, 8)),
    *(row(n, None) for n in range(8, 10)),
]


def test_who_made_how_many(tmp_path: Path) -> None:
    [finding] = found(tmp_path, MIXED)
    assert finding.severity == "note" and finding.share == pytest.approx(0.8)
    assert "8 rows of 10 say which model made them: 5 by big (distil), 3 by small (prompts/evol" in finding.message
    assert "2 rows say nothing" in finding.message
    assert finding.message.endswith("scored by math: median 0.5, 0 to 1")
    assert finding.evidence["makers"] == {"big (distil)": 5, "small (prompts/evol_instruct)": 3}
    assert finding.evidence["without_origin"] == 2 and finding.evidence["largest_share_of_one_model"] == 0.5
    assert finding.evidence["rows_by_round"] == {
        "prompts/evol_instruct, round 1": 1,
        "prompts/evol_instruct, round 2": 2,
    }
    scores = {"n": 5, "min": 0.0, "q1": 0.25, "median": 0.5, "q3": 0.75, "max": 1.0}
    assert finding.evidence["scores"] == {"math": scores}
    json.dumps(finding.record())


def test_rows_that_say_nothing_give_no_finding(tmp_path: Path) -> None:
    assert found(tmp_path, [row(n, None) for n in range(4)]) == []
    assert found(tmp_path, [{**row(n, None), "origin": "forum"} for n in range(4)]) == [], "another tool's column"


def test_a_draw_that_stands_twice(tmp_path: Path) -> None:
    seeded, unseeded = Origin("distil", "big", "p, row 1", seed=3), Origin("distil", "big", "p, row 1")
    rows = [row(0, seeded), row(1, Origin("distil", "big", "p, row 2", seed=3)), row(2, seeded)]
    warning = found(tmp_path, rows)[0]
    assert warning.severity == "warning" and [ref.row for ref in warning.rows] == [3]
    assert [one.severity for one in found(tmp_path, [row(n, unseeded) for n in range(3)])] == ["note"]


def counted(policy: str, *origins: Origin) -> Origins:
    counts = Origins(policy)
    for number, origin in enumerate(origins, start=1):
        counts.add(RowRef("rows.jsonl", number), row(number, origin))
    return counts


def test_the_policys_own_words_are_told_from_others_and_from_scored_ones() -> None:
    own, scored = Origin("distil", "small"), Origin("best_of", "small", scores={"math": 1.0})
    counts = counted("small", own, scored, Origin("distil", "big"))
    assert [ref.row for ref in counts.own] == [1] and counts.own_scored == 1
    assert not counted("other", own, scored).own
