"""`skip`: with `limit` it takes part after part of a file, none twice and none left out, whatever rows are refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from posttrain.config import SFT
from posttrain.config.fingerprint import stage_fingerprint
from posttrain.config.settings import Data, ReadSettings
from posttrain.data.read import read
from posttrain.errors import ConfigError, EmptyDatasetError
from posttrain.runs.folder import StageFolder
from posttrain.training.rl.tasks import read_tasks
from posttrain.training.stages.policy_asked import prompts_of
from posttrain.training.stages.reading import read_data
from posttrain.types import Task


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Ten tasks, of which the fourth is none."""
    rows = [{"prompt": f"q{i}", "answer": str(i)} if i != 3 else {"prompt": 3, "answer": "3"} for i in range(10)]
    path = tmp_path / "tasks.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def questions(rows: Any) -> list[str]:
    return [str(row.prompt[-1].content) for row in rows]


def test_parts_of_a_file_meet_without_a_gap(file: Path) -> None:
    parts = [read(file, bad_rows="skip", skip=skip, limit=3) for skip in (0, 3, 6)]
    assert [q for part in parts for q in questions(part)] == [f"q{i}" for i in range(10) if i != 3]
    counts = parts[1].counts
    assert counts.skipped["before_skip"] == 3
    assert counts.read == counts.kept + sum(counts.skipped.values())
    assert [row.row.row for row in parts[1]] == [5, 6, 7]  # numbers are the file's


def test_nothing_is_left(file: Path) -> None:
    with pytest.raises(EmptyDatasetError, match="`skip` leaves out all that there are") as caught:
        read(file, bad_rows="skip", skip=9)
    assert caught.value.found == "skip: 9, of 9 good rows"


@pytest.mark.parametrize("skip", [-1, True, 1.5, "2"])
def test_no_number_of_rows(file: Path, skip: Any) -> None:
    with pytest.raises(ConfigError, match="`skip`"):
        read(file, skip=skip)


def test_tasks_of_a_recipe(file: Path) -> None:
    data = Data(path=str(file), bad_rows="skip", skip=2, limit=3)
    assert questions(read_tasks(data)) == ["q2", "q4", "q5"]
    assert questions(read_data(data, Task, file.parent / "rejected.jsonl")) == ["q2", "q4", "q5"]


def test_prompts_that_are_generated_are_skipped_first(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [*read([{"prompt": f"made{i}", "answer": "1"} for i in range(3)])]
    monkeypatch.setattr("posttrain.training.stages.policy_asked.tasks_of", lambda path: made)

    def asked(**keys: Any) -> list[str]:
        data = Data(path=["reasoning_gym:chain_sum?size=3", str(file)], bad_rows="skip", **keys)
        ctx: Any = SimpleNamespace(stage=SimpleNamespace(data=data), folder=StageFolder(file.parent / "stage"))
        ctx.folder.path.mkdir(exist_ok=True)
        return questions(prompts_of(ctx).tasks)

    assert asked(skip=1, limit=4) == ["made1", "made2", "q0", "q1"]
    assert asked(skip=4, limit=2) == ["q1", "q2"]
    assert asked(skip=0, limit=2) == ["made0", "made1"]


def test_only_generated_prompts_and_none_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posttrain.training.stages.policy_asked.tasks_of", lambda path: [])
    data = Data(path="reasoning_gym:chain_sum?size=3", skip=3)
    ctx: Any = SimpleNamespace(stage=SimpleNamespace(data=data), folder=StageFolder(tmp_path))
    with pytest.raises(EmptyDatasetError, match="no task is left"):
        prompts_of(ctx)


def test_older_stages_keep_their_fingerprint_and_a_skip_changes_it() -> None:
    def of(data: Any) -> str:
        return stage_fingerprint(SFT(data=data), data=["d"], start_model="m", seed=0)

    assert of("a.jsonl") == of({"path": "a.jsonl", "skip": 0}) != of({"path": "a.jsonl", "skip": 1})
    # The hash that this stage had before there was `skip`.
    assert of("a.jsonl") == BEFORE


BEFORE = "98a3578c1c745fc5e732958d82dd7be904db3db33a25efa76da982b43ec2faec"


def test_it_belongs_to_a_source(file: Path) -> None:
    with pytest.raises(ConfigError, match="`skip` belongs to one of the `sources`"):
        Data(sources=["a.jsonl", "b.jsonl"], skip=3)
    data = Data(sources=[{"path": "a.jsonl", "skip": 4}, "b.jsonl"])
    assert [part.skip for part in data.parts] == [4, 0]


def test_every_key_of_reading_reaches_the_reader() -> None:
    """A key that `keywords` does not pass on would be accepted in a recipe and do nothing."""
    places = {"path", "stage", "rows"}
    assert Data(path="a").keywords().keys() == (ReadSettings.model_fields.keys() - places) | {"rejected_path"}
