"""What strategies found as rows: worked by hand, and read back equal."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from posttrain.data.read import read
from posttrain.inference.rows import pairs, steps, winners, write_rows
from posttrain.inference.scorers import ABSTAINED
from posttrain.types import Comparison, Demonstration, Message, StepwiseFeedback
from tests.inference import run, scripted

TOOL = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}}


def solution(*draws: str, chosen: int | None = 0, answer: str | None = None):
    solving = scripted({"2 + 2?": draws}, sampling={"max_new_tokens": 40})
    nodes = run(solving.sample(len(draws)))
    return solving.solution(None if chosen is None else nodes[chosen], answer=answer)


def texts(comparison: Comparison) -> list[str | None]:
    return [response[-1].content for response in comparison.responses]


def test_winners_are_the_answers_that_were_found() -> None:
    kept = winners([solution("4", "5"), solution("4", chosen=None, answer="four")])
    assert [row.messages[-1].content for row in kept.rows] == ["4", "four"] and not kept.without
    assert kept.rows[0].messages[0].content == "2 + 2?" and str(kept.rows[0].row) == "prompts, row 1"


@pytest.mark.parametrize(
    ("found", "score", "reason"),
    [
        (solution("", "5"), 1.0, "no_answer"),
        (solution("4", chosen=None), 1.0, "no_answer"),
        (solution("4..."), 1.0, "cut"),
        (solution("4"), 0.5, "low_score"),
        (solution("4"), None, "not_judged"),
        (solution("4"), ABSTAINED, "not_judged"),
        (solution("4 <eos>"), 1.0, "special_tokens"),
        (solution("4"), 1.0, None),
    ],
)
def test_what_is_no_winner_is_named(found, score, reason) -> None:
    kept = winners([found], scores=[score], least_score=1.0, special=re.compile("<eos>"))
    assert [why for _, why in kept.without] == ([] if reason is None else [reason])
    assert len(kept.rows) == (reason is None)


def test_pairs_are_the_best_and_the_worst_and_of_equal_scores_the_earlier() -> None:
    kept = pairs([solution("4", "5", "four", "6")], [[1.0, 0.0, 1.0, 0.0]])
    (row,) = kept.rows
    assert texts(row) == ["4", "5"] and row.scores == (1.0, 0.0) and row.winner == 0


@pytest.mark.parametrize(
    ("draws", "scores", "reason"),
    [
        (["4", "5"], [1.0, 1.0], "same_score"),
        (["4", "4"], [1.0, 0.9], "same_text"),
        (["4", "5..."], [1.0, 0.0], "one_answer"),  # cut: rejected for an end that the limit made
        (["4", "5"], [1.0, None], "one_answer"),
        (["4", "5"], [ABSTAINED, None], "not_judged"),
        (["4", "5 <eos>"], [1.0, 0.0], "one_answer"),
    ],
)
def test_what_makes_no_pair_is_named(draws, scores, reason) -> None:
    kept = pairs([solution(*draws)], [scores], special=re.compile("<eos>"))
    assert kept.rows == [] and [why for _, why in kept.without] == [reason]
    assert str(kept) == f"0 rows; prompts that gave none: 1 {reason}"


def test_steps_come_from_whoever_labels_them() -> None:
    def labelled(found, right):
        return [
            StepwiseFeedback(found.task.prompt, ("one", "two"), (1.0, float(bool(right(node)))), found.task.row)
            for node in found.answers
        ]

    kept = steps([solution("4", "5")], lambda node: node.answer == "4", labelled)
    assert [row.labels for row in kept.rows] == [(1.0, 1.0), (1.0, 0.0)]
    kept = steps([solution("4")], lambda node: None, lambda found, right: [])
    assert [why for _, why in kept.without] == ["no_steps"]


@pytest.mark.parametrize("with_tools", [False, True])
def test_every_kind_of_row_is_read_back_equal(tmp_path: Path, with_tools: bool) -> None:
    found = solution("4", "5\nor 6", "four")
    if with_tools:
        found = replace(found, task=replace(found.task, tools=(TOOL,)))
    task = found.task
    demonstrations = winners([found]).rows
    comparisons = pairs([found], [[0.25, -1.5, 0.0]]).rows
    labelled = [StepwiseFeedback(task.prompt, ("3 * 4 = 12", "so 14"), (1.0, None), task.row, task.tools)]
    for rows in (demonstrations, comparisons, labelled):
        path = tmp_path / f"{type(rows[0]).__name__}.jsonl"
        assert write_rows(path, rows) == len(rows) == 1
        again = list(read(path))
        assert [replace(row, row=task.row) for row in again] == rows


def test_a_conversation_before_the_answer_stays(tmp_path: Path) -> None:
    found = solution("4")
    prompt = (Message("system", "Be short."), Message("user", "Hi"), Message("assistant", "Hi."), Message("user", "?"))
    found = replace(found, task=replace(found.task, prompt=prompt))
    write_rows(tmp_path / "rows.jsonl", winners([found]).rows)
    (row,) = read(tmp_path / "rows.jsonl")
    # Nobody found the assistant's turn in the prompt: it is not imitated, as in a row of prompt and completion.
    given = tuple(replace(turn, train=False if turn.role == "assistant" else None) for turn in prompt)
    assert isinstance(row, Demonstration) and row.messages == (*given, Message("assistant", "4"))
    assert [turn.train for turn in row.messages] == [None, None, False, None, None]


def test_an_answer_with_a_nul_makes_no_row_that_cannot_be_read(tmp_path: Path) -> None:
    found = [solution("4\0", "5", "66"), solution("4", "5\0\0", "66")]
    kept = winners(found)
    assert len(kept.rows) == 1 and [why for _, why in kept.without] == ["bad_character"]
    compared = pairs(found, [[3.0, 1.0, 2.0]] * 2)
    assert [texts(row) for row in compared.rows] == [["66", "5"], ["4", "66"]]

    def labelled(one, right):
        return [StepwiseFeedback(one.task.prompt, (node.answer,), (1.0,), one.task.row) for node in one.answers]

    labels = steps(found, lambda node: True, labelled)
    for rows in (kept.rows, compared.rows, labels.rows):
        assert write_rows(tmp_path / "rows.jsonl", rows) == len(list(read(tmp_path / "rows.jsonl")))
    assert len(labels.rows) == 4
    kept = steps(found, lambda node: True, labelled, special=re.compile("[456]"))
    assert not kept.rows and {why for _, why in kept.without} == {"bad_character", "special_tokens"}


def test_texts_of_any_script_are_read_back_equal(tmp_path: Path) -> None:
    text = '\u00fc \u6570\u636e \U0001f642\u2028\u202e\ud7ff"\\u\r\n.'
    found = solution(text, "5")
    found = replace(found, task=replace(found.task, prompt=(Message("system", text), *found.task.prompt)))
    for rows in (winners([found]).rows, pairs([found], [[0.25, -1.5]]).rows):
        write_rows(tmp_path / "rows.jsonl", rows)
        assert [replace(row, row=found.task.row) for row in read(tmp_path / "rows.jsonl")] == rows
