"""Comparisons as feedback, and feedback behind a line that says what it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from posttrain.data.recast import Condition, Recast, as_feedback, conditioned, read_as, recast_note
from posttrain.errors import DataError, RowError
from posttrain.types import Comparison, Feedback, Message, RowRef
from tests.fixtures import chat

PAIR = {"prompt": "Who?", "chosen": "I am Pia.", "rejected": "What."}
JUDGED = {"prompt": "Who?", "completion": "I am Pia.", "label": True}


def write(path: Path, *rows: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answer(text: str) -> tuple[Message, ...]:
    return (Message("assistant", text),)


def test_a_comparison_becomes_one_good_and_one_bad_answer() -> None:
    row = Comparison(chat("q"), (answer("no"), answer("yes")), winner=1, row=RowRef("p.jsonl", 3))
    good, bad = as_feedback(row)
    assert (good.response, good.good, bad.response, bad.good) == (answer("yes"), True, answer("no"), False)
    assert good.row == bad.row == row.row and good.prompt == row.prompt


def test_of_a_ranked_list_the_best_and_the_worst_speak() -> None:
    texts = (answer("c"), answer("a"), answer("b"))
    row = Comparison(chat("q"), texts, winner=1, row=RowRef("l.jsonl", 1), ranking=(1, 2, 0))
    assert [(each.response, each.good) for each in as_feedback(row)] == [(answer("a"), True), (answer("c"), False)]


def test_pairs_are_read_for_a_feedback_method_and_said_so(tmp_path: Path) -> None:
    pairs = read_as(write(tmp_path / "pairs.jsonl", PAIR, {**PAIR, "prompt": "And?"}), Feedback)
    assert pairs.kind is Comparison
    rows = list(Recast(pairs, Feedback))
    assert [row.good for row in rows] == [True, False, True, False]
    assert rows == list(Recast(pairs, Feedback)), "it can be read again"
    assert recast_note(pairs, Feedback).startswith("2 comparisons are taken apart")
    assert recast_note(pairs, Comparison) is None


def test_feedback_stays_feedback_and_other_rows_are_refused(tmp_path: Path) -> None:
    judged = read_as(write(tmp_path / "kto.jsonl", JUDGED), Feedback)
    assert judged.kind is Feedback and recast_note(judged, Feedback) is None
    assert list(Recast(judged, Feedback)) == list(judged)
    with pytest.raises(DataError):
        read_as(write(tmp_path / "sft.jsonl", {"prompt": "q", "completion": "a"}), Feedback)
    with pytest.raises(DataError):
        read_as(tmp_path / "kto.jsonl", Comparison)


@pytest.mark.parametrize(
    ("place", "prompt", "expected"),
    [
        ("system", chat("q"), (Message("system", "good"), Message("user", "q"))),
        ("system", chat("q", system="Be Pia."), (Message("system", "Be Pia.\n\ngood"), Message("user", "q"))),
        ("user", chat("q"), (Message("user", "q\n\ngood"),)),
        ("user", chat("q", "a", "r"), (*chat("q", "a"), Message("user", "r\n\ngood"))),
    ],
)
def test_where_the_line_stands(place: str, prompt: tuple[Message, ...], expected: tuple[Message, ...]) -> None:
    row = Feedback(prompt, answer("a"), True, RowRef("k.jsonl", 1))
    condition = Condition("good", "bad", place)  # type: ignore[arg-type]
    assert conditioned(row, condition).prompt == expected
    assert conditioned(row, condition).response == row.response
    bad = conditioned(Feedback(prompt, answer("a"), False, row.row), condition).prompt
    assert [message.content.replace("bad", "good") for message in bad] == [message.content for message in expected]


def test_a_prompt_without_a_user_turn_has_no_place_for_the_line() -> None:
    row = Feedback((Message("system", "s"),), answer("a"), True, RowRef("k.jsonl", 4))
    with pytest.raises(RowError, match="none") as caught:
        conditioned(row, Condition("good", "bad", "user"))
    assert "k.jsonl, row 4" in str(caught.value)
