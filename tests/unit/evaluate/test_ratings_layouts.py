"""Rows of votes and games: every layout by hand, and every bad row by its name; the verb on top of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import posttrain as pt
from posttrain.cli.app import app
from posttrain.errors import RowError, SourceError
from posttrain.evaluate.ratings.layouts import read_games

OWN = {"prompt": "2 + 2?", "model_a": "start", "model_b": "dpo", "winner": "model_b"}


def played(*rows: Any) -> list[tuple[Any, ...]]:
    return [
        (one.prompt, one.model_a, one.model_b, one.points, one.response_a, one.response_b, one.weight)
        for one in read_games(list(rows)).games
    ]


def test_posttrains_own_rows() -> None:
    assert played(OWN) == [("2 + 2?", "start", "dpo", 0.0, None, None, 1.0)]
    for winner, points in {
        "model_a": 1.0, "A": 1.0, "start": 1.0, "b": 0.0, "dpo": 0.0, "tie": 0.5, "Tie (bothbad)": 0.5
    }.items():  # fmt: skip
        assert played({**OWN, "winner": winner})[0][3] == points, winner
    texts = {**OWN, "response_a": "5", "response_b": "4", "weight": 2}
    assert played(texts) == [("2 + 2?", "start", "dpo", 0.0, "5", "4", 2.0)]
    soft = {key: value for key, value in OWN.items() if key != "winner"} | {"score": 0.25}
    assert played(soft)[0][3] == 0.25
    # Policies that are called a and b, the other way round.
    assert played({**OWN, "model_a": "b", "model_b": "a", "winner": "a"})[0][3] == 0.0


def test_rows_that_nobody_judged_are_counted_and_are_no_games() -> None:
    read = read_games([OWN, {**OWN, "winner": None}, {**OWN, "winner": ""}])
    assert (len(read.games), read.rows, read.unjudged) == (1, 3, 2)
    assert "2 comparisons have no verdict" in pt.rate([OWN, {**OWN, "winner": None}, {**OWN, "winner": ""}]).notes[0]


def test_lmarenas_rows() -> None:
    asked = {"role": "user", "content": "Hi"}
    row = {
        "question_id": "58210e39",
        "model_a": "chatglm-6b",
        "model_b": "koala-13b",
        "winner": "tie (bothbad)",
        "conversation_a": [asked, {"role": "assistant", "content": "Yo"}],
        "conversation_b": [asked, {"role": "assistant", "content": "Hello."}],
    }
    (one,) = played(row)
    assert one[1:] == ("chatglm-6b", "koala-13b", 0.5, "Yo", "Hello.", 1.0) and json.loads(one[0]) == [asked]
    flags = {"winner_model_a": 0, "winner_model_b": 1, "winner_tie": 0}
    shared = {"prompt": "Hi", "model_a": "x", "model_b": "y", "response_a": "Yo", "response_b": "Hey"}
    assert played({**shared, **flags}) == [("Hi", "x", "y", 0.0, "Yo", "Hey", 1.0)]


def test_alpacaevals_rows() -> None:
    row = {
        "instruction": "Hi",
        "output_1": "Yo",
        "generator_1": "base",
        "output_2": "Hello.",
        "generator_2": "mine",
        "preference": 1.9,
    }
    (one,) = played(row)
    assert one[:3] == ("Hi", "base", "mine") and one[3] == pytest.approx(0.1) and one[4:] == ("Yo", "Hello.", 1.0)
    assert [played({**row, "preference": value})[0][3] for value in (1, 2.0, 1.5, 0)] == [1.0, 0.0, 0.5, 0.5]
    assert read_games([{**row, "preference": None}, {**row, "preference": float("nan")}]).unjudged == 2


def test_arena_hards_rows() -> None:
    row = {"uid": "q1", "model": "mine", "baseline": "o3", "games": [{"score": "B>>A"}, {"score": "A=B"}]}
    assert played(row) == [
        ("q1", "o3", "mine", 0.0, None, None, 3.0),
        ("q1", "mine", "o3", 0.5, None, None, 1.0),
    ]
    old = {"question_id": "q1", "model": "mine", "games": [{"score": "A<B"}, {"score": None}]}
    assert played(old) == [("q1", "baseline", "mine", 0.0, None, None, 1.0)]
    assert read_games([old]).unjudged == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"winner": "dop"}, "names neither side"),
        ({"winner": 1}, "names neither side"),
        ({"model_a": ""}, "`model_a` is no name"),
        ({"model_b": None}, "`model_b` is no name"),
        ({"prompt": None}, "`prompt` is no prompt"),
        ({"prompt": "  "}, "`prompt` is no prompt"),
        ({"response_a": 3}, "`response_a` is no answer"),
        ({"response_b": [{"role": "user", "content": 3}]}, "`response_b` is no answer"),
        ({"weight": "2"}, "`weight` is no number"),
        ({"winner_model_a": 1, "winner_tie": 1, "winner_model_b": 0}, "name no winner"),
    ],
)
def test_a_bad_row_is_refused_by_name(change: dict[str, Any], words: str) -> None:
    with pytest.raises(RowError, match=words) as error:
        read_games([OWN, {**OWN, **change}])
    assert "row 2" in str(error.value.where) and error.value.found is not None and error.value.remedy


def test_other_bad_rows_are_refused_by_name(tmp_path: Path) -> None:
    shared = {"model": "m", "uid": "q"}
    for row, words in (
        ({"model_a": "x", "model_b": "y"}, "no layout"),
        ({}, "no layout"),
        ({"model_a": "x", "model_b": "y", "prompt": "1", "score": 2}, "`score` is no share"),
        ({"model_a": "x", "model_b": "y", "prompt": "1", "score": True}, "`score` is no share"),
        ({**shared, "games": [{"score": "A>B"}]}, "no pair of games"),
        ({**shared, "games": [{"score": "A>B"}, {"score": "A"}]}, "no verdict"),
        ({"instruction": "1", "output_1": "", "output_2": "", "preference": 3}, "no preference"),
        ({"instruction": "1", "output_1": "", "output_2": "", "preference": 1}, "`generator_1` is no name"),
    ):
        with pytest.raises(RowError, match=words):
            read_games([row])
    with pytest.raises(SourceError):
        read_games(str(tmp_path / "nowhere.jsonl"))


def test_the_verb_prints_tables_and_writes_figures(tmp_path: Path) -> None:
    path, out = tmp_path / "votes.jsonl", tmp_path / "out.json"
    names = ("start", "sft", "dpo")
    rows = [
        {"prompt": f"q{number}", "model_a": a, "model_b": b, "winner": b if number % 3 else a}
        for number in range(12)
        for a, b in (names[:2], names[1:], (names[0], names[2]))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = CliRunner().invoke(app, ["rate", str(path), "--anchor", "start", "--out", str(out)])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "36 games, 12 prompts" and lines[1].split() == ["rating", "wins", "over", "start", "games"]
    assert [line.split()[0] for line in lines[2:5]] == ["dpo", "sft", "start"]
    assert any(line.split() == ["dpo", "-", "67", "%", "67", "%"] for line in lines)
    assert any("36 of 36 games have no responses" in line for line in lines)
    record = json.loads(out.read_text())
    assert record["anchor"] == "start" and record["policies"][0]["win_rate"]["value"] == pytest.approx(8 / 12)
    shown = CliRunner().invoke(app, ["rate", str(path), "--anchor", "start", "--json", "--style", "none"])
    assert json.loads(shown.stdout)["policies"] == record["policies"]
    two = CliRunner().invoke(app, ["rate", str(path), "--model", "start", "--model", "dpo"])
    assert "12 games, 12 prompts" in two.stdout and "24 games of other policies are left out" in two.stdout
    refused = CliRunner().invoke(app, ["rate", str(path), "--anchor", "strat"])
    assert refused.exit_code == 2 and "did you mean `start`" in refused.stderr
