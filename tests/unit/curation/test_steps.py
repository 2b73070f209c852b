"""Each step by hand: what it takes, what it says of it, and what it may not depend on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from posttrain.config.select import Budget, Decontaminate, Deduplicate, Keep, Score
from posttrain.curation.rows import Pool, Removed, Rows, Taken, Tools, random_order, require_whole
from posttrain.curation.steps.budget import keep_budget
from posttrain.curation.steps.decontaminate import decontaminate
from posttrain.curation.steps.deduplicate import deduplicate
from posttrain.curation.steps.score import _not_let_through, score_rows
from posttrain.data.read import read
from posttrain.errors import ConfigError, RowError
from posttrain.types import Task

LONG = "the quick brown fox jumps over the lazy dog and then it sleeps in the warm sun until the evening comes"


def pool_of(rows: list[dict[str, Any]], **options: Any) -> Pool:
    return Pool.of(Rows(read(rows, scan=False, **options)))


def answers(*texts: str, **columns: list[Any]) -> Pool:
    rows: list[dict[str, Any]] = [{"prompt": f"Question {n}?", "completion": text} for n, text in enumerate(texts)]
    for name, values in columns.items():
        for row, value in zip(rows, values, strict=True):
            row[name] = value
    return pool_of(rows)


def taken(removed: list[Removed] | tuple[Removed, ...]) -> list[tuple[int, str, int | None]]:
    return [(one.row, one.reason, one.nearest) for one in removed]


# ---------------------------------------------------------------- rows


def test_a_row_comes_back_with_every_column() -> None:
    row = {"prompt": "Grüß?", "completion": "ja", "meta": {"source": "web", "half": "\ud800", "n": [1, None]}, "x": 0.1}
    rows = pool_of([row]).rows
    assert rows.row(0) == row
    assert rows.column([0], "meta.source") == ["web"] and rows.column([0], "nothing") == [None]
    assert rows.example(0).row == rows.ref(0)


def test_the_text_of_each_kind() -> None:
    pairs = pool_of([{"prompt": "Q", "chosen": "good", "rejected": "bad"}]).rows
    assert (pairs.text(0, "prompt"), pairs.text(0, "answer"), pairs.all_texts(0)) == ("Q", "good", ["Q", "good", "bad"])
    tasks = pool_of([{"prompt": "2 + 2?", "answer": "4"}], kind=Task).rows
    assert tasks.text(0) == "2 + 2?\n\n4" and tasks.all_texts(0) == ["2 + 2?", "4"]


def test_a_draw_does_not_depend_on_the_order_of_the_rows() -> None:
    rows = [{"prompt": f"Q{n}", "completion": "A"} for n in range(40)]
    there = pool_of(rows).rows
    back = pool_of(rows[::-1]).rows
    drawn = [there.row(int(n))["prompt"] for n in random_order(there, np.arange(40), 7)[:9]]
    again = [back.row(int(n))["prompt"] for n in random_order(back, np.arange(40), 7)[:9]]
    assert drawn == again
    other = [there.row(int(n))["prompt"] for n in random_order(there, np.arange(40), 8)[:9]]
    assert drawn != other


def test_a_step_that_loses_a_row_is_caught() -> None:
    pool = answers("a", "b", "c")
    with pytest.raises(AssertionError, match="`broken`"):
        require_whole("broken", pool, Taken(np.array([0]), (Removed(1, "x", ""),)))


# ---------------------------------------------------------------- decontaminate


def test_a_planted_leak_goes_and_is_named(tmp_path: Path) -> None:
    question = "In which year did the small harbour town of Velm open its first public library to readers?"
    tests = tmp_path / "tests.jsonl"
    tests.write_text(json.dumps({"question": question, "answer": "1874"}))
    pool = pool_of(
        [
            {"prompt": "What is a library?", "completion": "A house of books."},
            {"prompt": f"Please answer. {question}", "completion": "In 1874."},
        ]
    )
    found = decontaminate(Decontaminate(kind="decontaminate", against=str(tests)), pool, Tools())
    assert taken(found.removed) == [(1, "contaminated", None)] and found.kept.tolist() == [0]
    assert "tests.jsonl" in found.removed[0].message and "In which year" in found.removed[0].message


# ---------------------------------------------------------------- deduplicate


def test_equal_and_near_rows_go_and_name_the_row_that_stays() -> None:
    changed = LONG.replace("evening", "morning")
    rows = [{"prompt": "Tell me a story.", "completion": text} for text in (LONG, "short", LONG, changed, "short")]
    found = deduplicate(Deduplicate(kind="deduplicate", near=0.7), pool_of(rows), Tools())
    assert taken(found.removed) == [(2, "duplicate", 0), (3, "near_duplicate", 0), (4, "duplicate", 1)]
    near = found.removed[1]
    assert near.similarity is not None and 0.7 <= near.similarity < 1
    exact = deduplicate(Deduplicate(kind="deduplicate", near=None), pool_of(rows), Tools())
    assert taken(exact.removed) == [(2, "duplicate", 0), (4, "duplicate", 1)]


def test_a_row_goes_only_for_one_that_is_near_to_it() -> None:
    """A chain: each is near to the next, the ends are not near to each other, so one of the ends stays."""
    words = [f"word{n}" for n in range(40)]
    chain = [" ".join([*(f"new{n}" for n in range(4 * k)), *words[4 * k :]]) for k in range(5)]
    pool = answers(*chain)
    found = deduplicate(Deduplicate(kind="deduplicate", of="answer", near=0.6), pool, Tools())
    assert found.removed and len(found.kept) > 1
    for one in found.removed:
        assert one.nearest in found.kept and one.similarity is not None and one.similarity >= 0.6


def test_the_partner_of_an_equal_row_stays_too() -> None:
    """Row 1 equals row 2, and both are near to row 0: row 2 must name row 0, for row 1 is not kept."""
    changed = LONG.replace("evening", "morning")
    rows = [{"prompt": "Tell me a story.", "completion": text} for text in (LONG, changed, changed)]
    found = deduplicate(Deduplicate(kind="deduplicate", near=0.7), pool_of(rows), Tools())
    assert taken(found.removed) == [(1, "near_duplicate", 0), (2, "duplicate", 0)]


def test_the_opposite_verdict_is_no_duplicate() -> None:
    pair = {"prompt": f"Which? {LONG}", "chosen": f"One. {LONG}", "rejected": f"Other. {LONG}"}
    turned = {**pair, "chosen": pair["rejected"], "rejected": pair["chosen"]}
    found = deduplicate(Deduplicate(kind="deduplicate"), pool_of([pair, turned, pair]), Tools())
    assert taken(found.removed) == [(2, "duplicate", 0)]


def test_the_row_with_the_higher_score_stays() -> None:
    pool = answers("same", "same", "same", "other", quality=[1, 3, None, 0])
    pool = pool_of([{**pool.rows.row(n), "prompt": "Q"} for n in range(4)])
    quality = Score(kind="score", score={"kind": "column", "column": "quality"})
    scored = pool.after(score_rows(quality, pool, Tools()))
    found = deduplicate(Deduplicate(kind="deduplicate", keep="quality"), scored, Tools())
    assert taken(found.removed) == [(0, "duplicate", 1), (2, "duplicate", 1)]


def test_tasks_without_answers_are_not_all_the_same_answer() -> None:
    pool = pool_of([{"prompt": f"{n} + 1?", "answer": "2"} for n in range(3)], kind=Task)
    found = deduplicate(Deduplicate(kind="deduplicate", of="answer"), pool, Tools())
    assert len(found.kept) == 3


# ---------------------------------------------------------------- score


def test_the_bounds_and_the_share_of_a_score() -> None:
    values = np.array([1.0, 5.0, np.nan, 3.0, 9.0, 4.0])
    removed = _not_let_through(Keep(least=2, most=8, top=0.5), "x", np.arange(6), values)
    # 1 is too low, 9 too high; of 5, 3, 4 half is two rows: 5 and 4
    assert taken(removed) == [(0, "below", None), (3, "not_highest", None), (4, "above", None)]
    removed = _not_let_through(Keep(bottom=0.2, unscored="drop"), "x", np.arange(6), values)
    assert [(one.row, one.reason) for one in removed] == [
        (1, "not_lowest"),
        (2, "unscored"),
        (3, "not_lowest"),
        (4, "not_lowest"),
        (5, "not_lowest"),
    ]


def test_rows_without_a_score_are_counted() -> None:
    pool = answers("a", "b", "c", quality=[1, None, float("nan")])
    found = score_rows(Score(kind="score", score={"kind": "column", "column": "quality"}), pool, Tools())
    assert len(found.kept) == 3 and found.notes[0].startswith("2 of 3 rows have no score `quality`")


# ---------------------------------------------------------------- budget


def test_the_best_rows_within_a_budget() -> None:
    pool = answers("a", "b", "c", "d", quality=[2, 9, None, 5])
    scored = pool.after(score_rows(Score(kind="score", score={"kind": "column", "column": "quality"}), pool, Tools()))
    found = keep_budget(Budget(kind="budget", rows=2), scored, Tools())
    assert found.kept.tolist() == [1, 3] and found.is_order
    found = keep_budget(Budget(kind="budget", share=0.5, by="quality", lowest=True), scored, Tools())
    assert found.kept.tolist() == [0, 3]
    everything = keep_budget(Budget(kind="budget", rows=9, by="quality"), scored, Tools())
    assert everything.kept.tolist() == [1, 3, 0, 2], "a row without a score comes last"
    assert everything.notes == ("the budget is 9 rows, and 4 are left: all of them are kept",)


def test_what_a_step_chose_first_is_what_a_budget_keeps() -> None:
    pool = answers("a", "b", "c", "d")
    chosen = pool.after(Taken(np.array([2, 0, 3]), (Removed(1, "x", ""),), is_order=True))
    assert chosen.kept.tolist() == [0, 2, 3]
    assert keep_budget(Budget(kind="budget", rows=2), chosen, Tools()).kept.tolist() == [2, 0]


def test_equal_scores_do_not_prefer_the_beginning_of_the_file() -> None:
    pool = answers(*(f"text {n}" for n in range(60)), quality=[1] * 60)
    scored = pool.after(score_rows(Score(kind="score", score={"kind": "column", "column": "quality"}), pool, Tools()))
    kept = keep_budget(Budget(kind="budget", rows=20), scored, Tools(seed=1)).kept
    assert sorted(kept.tolist()) != list(range(20))
    assert keep_budget(Budget(kind="budget", rows=20), scored, Tools(seed=1)).kept.tolist() == kept.tolist()


def test_no_order_of_choice() -> None:
    with pytest.raises(ConfigError, match="no step before it has chosen"):
        keep_budget(Budget(kind="budget", rows=1, by="choice"), answers("a"), Tools())


def test_tokens_of_nobody() -> None:
    with pytest.raises(ConfigError, match="no model is named whose tokens they are"):
        keep_budget(Budget(kind="budget", tokens=10), answers("a"), Tools())


def test_a_column_that_is_no_number_names_its_row() -> None:
    pool = answers("a", "b", quality=[1, "high"])
    with pytest.raises(RowError) as caught:
        score_rows(Score(kind="score", score={"kind": "column", "column": "quality"}), pool, Tools())
    assert "row 2" in str(caught.value) and "'high'" in str(caught.value)
    with pytest.raises(RowError, match="did you mean `quality`"):
        score_rows(Score(kind="score", score={"kind": "column", "column": "qualty"}), pool, Tools())
