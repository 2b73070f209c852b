"""The first rows are shown before all rows are read: a wrong mask is seen at once, and not after half an hour."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from posttrain.config import parse_recipe
from posttrain.data.encode import Encoder
from posttrain.errors import EncodingError, RowError
from posttrain.runs.progress import Phase, Progress
from posttrain.runs.records.preflight import DecodedRow
from posttrain.training.pipeline import check_recipe
from posttrain.training.stages import reading
from tests.online import save_start


@pytest.fixture
def recipe(tmp_path: Path) -> Any:
    save_start(tmp_path / "start")
    rows = [json.dumps({"prompt": f"{i}?", "completion": f"{i}."}) for i in range(70)]
    (tmp_path / "rows.jsonl").write_text("\n".join([*rows, "{"]) + "\n")
    text = "name: big\nmodel: ./start\nstages:\n  - {method: sft, data: rows.jsonl}\n"
    return parse_recipe(text, [f"out={tmp_path / 'runs'}", f"model={tmp_path / 'start'}"], folder=tmp_path)


def test_the_first_rows_are_shown_before_the_others_are_looked_at(recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[str, list[str]]] = []

    def show(stage: str, rows: Sequence[DecodedRow]) -> None:
        shown.append((stage, ["".join(piece.text for piece in row.pieces if piece.trained) for row in rows]))

    def encode(*_: Any, **__: Any) -> Any:
        raise AssertionError("row 71 is refused before anything is encoded")

    monkeypatch.setattr(reading, "encode", encode)
    # The file's last line is broken: it is found by looking at all rows, which comes after the first are shown.
    with pytest.raises(RowError) as refused:
        check_recipe(recipe, show_first=show)
    assert "71" in str(refused.value)
    assert shown == [("sft", ["0.<|im_end|>", "1.<|im_end|>", "2.<|im_end|>"])]


def first_shown(folder: Path, data: str, more: str = "") -> list[list[str]]:
    """The texts that train in the rows of each call."""
    shown: list[list[str]] = []
    text = f"name: big\nmodel: ./start\nstages:\n  - {{method: sft, data: {data}, preflight: off{more}}}\n"
    recipe = parse_recipe(text, [f"out={folder / 'runs'}", f"model={folder / 'start'}"], folder=folder)
    check_recipe(
        recipe,
        show_first=lambda _, rows: shown.append(
            ["".join(piece.text for piece in row.pieces if piece.trained).removesuffix("<|im_end|>") for row in rows]
        ),
    )
    return shown


def test_only_rows_that_will_train_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_start(tmp_path / "start")
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"prompt": "{i}?", "completion": "{i}."}}\n' for i in range(9)))
    (tmp_path / "held.jsonl").write_text('{"prompt": "h?", "completion": "h."}\n')
    assert first_shown(tmp_path, "{path: rows.jsonl, limit: 2}", ", held_out: 0") == [["0.", "1."]]
    assert first_shown(tmp_path, "rows.jsonl", ", held_out: held.jsonl") == [["0.", "1.", "2."]]

    real = Encoder.example

    def refused(self: Encoder, row: Any) -> Any:
        if row.row.row == 1:
            raise EncodingError("the template refuses this row", remedy="leave it out")
        return real(self, row)

    monkeypatch.setattr(Encoder, "example", refused)
    with pytest.raises(EncodingError, match="the template refuses this row"):
        first_shown(tmp_path, "rows.jsonl")
    assert first_shown(tmp_path, "{path: rows.jsonl, bad_rows: skip}", ", held_out: 0") == [["1.", "2.", "3."]]


def test_tasks_are_counted_while_they_are_read_and_their_rewards_tried(tmp_path: Path) -> None:
    save_start(tmp_path / "start")
    (tmp_path / "tasks.jsonl").write_text("".join(f'{{"prompt": "{i}?", "answer": "{i}"}}\n' for i in range(20)))
    text = (
        "name: tasks\nstages:\n  - {method: grpo, data: tasks.jsonl, steps: 1, held_out: 0, rewards: [{kind: math}], "
    )
    text += "preflight: off, sampling: {max_new_tokens: 4}}\n"
    recipe = parse_recipe(text, [f"out={tmp_path / 'runs'}", f"model={tmp_path / 'start'}"], folder=tmp_path)
    ended: dict[str, float] = {}

    class Counted(Progress):
        def show_end(self, phase: Phase) -> None:
            ended[phase.title] = phase.done

    check_recipe(recipe, progress=Counted())
    assert ended["grpo: reading the tasks"] == 20 and ended["grpo: trying the rewards"] == 20
