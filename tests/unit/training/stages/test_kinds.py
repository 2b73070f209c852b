"""Every method has a kind, the nearest row of the table counts, and nothing else asks what kind a stage is."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import ClassVar, Literal

import pytest

import posttrain.training
from posttrain.config import DPO, GRPO, SFT, STAGES, Correction, Reward, StageSettings, TrainingStage, data_of
from posttrain.config import base as config_base
from posttrain.config import online as config_online
from posttrain.config import stages as config_stages
from posttrain.config.base import Output, RowStage
from posttrain.config.online import PPO, OnlineDPO, OnlineStage, SamplingStage
from posttrain.runs.folder import RunFolder, StageFolder
from posttrain.runs.progress import Progress
from posttrain.runs.records.stage import DataCounts
from posttrain.training.pipeline import _with_data
from posttrain.training.stages.correction import CORRECTION
from posttrain.training.stages.kind import (
    OUTPUT_NAMES,
    MakingKind,
    StageContext,
    StageIdentity,
    TrainingKind,
    row_of_type,
)
from posttrain.training.stages.reward import REWARD
from posttrain.training.stages.rows import ROWS
from posttrain.training.stages.run import run_stage
from posttrain.training.stages.sampling import LEARNERS, SAMPLING
from posttrain.training.stages.table import KINDS, kind_of_stage

MOST_QUESTIONS = 15


def test_the_table_by_hand() -> None:
    assert kind_of_stage(SFT()) is ROWS and kind_of_stage(DPO()) is ROWS
    assert kind_of_stage(Reward()) is REWARD  # a RowStage too: the nearest row counts
    assert kind_of_stage(GRPO()) is SAMPLING and kind_of_stage(OnlineDPO()) is SAMPLING
    assert kind_of_stage(Correction()) is CORRECTION


@pytest.mark.parametrize("method", STAGES)
def test_every_method_has_a_kind_with_its_settings_output(method: str) -> None:
    settings = STAGES[method]
    kind = KINDS[next(above for above in settings.__mro__ if above in KINDS)]
    assert kind.outputs == settings.OUTPUTS and kind.outputs in OUTPUT_NAMES
    assert isinstance(kind, TrainingKind) == issubclass(settings, TrainingStage)


def test_ppo_has_a_learner_of_its_own() -> None:
    assert row_of_type(LEARNERS, PPO()) is not row_of_type(LEARNERS, GRPO())
    assert row_of_type(LEARNERS, GRPO()) is LEARNERS[OnlineStage]


def test_a_type_without_a_row_is_named() -> None:
    class Odd(StageSettings):
        OUTPUTS: ClassVar[Output] = "data"
        method: Literal["odd"] = "odd"

    with pytest.raises(KeyError, match="Odd"):
        kind_of_stage(Odd())


def test_a_stage_that_trains_nothing_has_the_records_of_one_that_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(ctx: StageContext[Correction], inputs: str) -> DataCounts:
        running = ctx.folder.stage()
        assert (running.status, running.output, inputs) == ("running", None, "read before")
        return DataCounts.from_json({"kept": 3})

    kind: MakingKind[Correction, str] = MakingKind("data", lambda ctx: "read before", make)
    monkeypatch.setattr("posttrain.training.stages.run.kind_of_stage", lambda stage: kind)
    folder = StageFolder(tmp_path / "correction")
    (folder.path).mkdir()
    (folder.path / "dropped.jsonl").write_text("of an earlier attempt")
    ctx = StageContext(Correction(), "embedded", folder, 0, Progress(), identity=StageIdentity("i", {"data": "d"}))
    assert run_stage(ctx) is None
    record = folder.stage()
    assert (record.output, record.quick_identity) == ("data.jsonl", "i")
    assert record.data is not None and record.data.kept == 3
    assert (
        not (folder.path / "dropped.jsonl").exists()
        and "method: correction" in (folder.path / "config.yaml").read_text()
    )


def test_rows_of_an_earlier_stage_are_found_for_every_key_of_every_kind(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    stage = _with_data(Correction(data={"stage": "a"}, keep={"stage": "b"}), run)
    assert {key: data.path for key, data in data_of(stage).items()} == {
        "data": (str(tmp_path / "a" / "data.jsonl"),),
        "keep": (str(tmp_path / "b" / "data.jsonl"),),
    }
    held_out = _with_data(SFT(data="rows.jsonl", held_out={"stage": "a"}), run)
    assert data_of(held_out)["held_out"].path == (str(tmp_path / "a" / "data.jsonl"),)
    assert data_of(held_out)["data"].path == ("rows.jsonl",)


# ---------------------------------------------------------------- who asks


def stage_types() -> set[str]:
    """The names of all types of settings, those of single methods included."""
    found = {StageSettings.__name__, TrainingStage.__name__, RowStage.__name__, SamplingStage.__name__}
    for module in (config_base, config_online, config_stages):
        found |= {
            name for name, value in vars(module).items() if isinstance(value, type) and issubclass(value, StageSettings)
        }
    return found


def questions(folder: Path) -> list[str]:
    """Every `isinstance(..., type of stage settings)` in a folder: ["loop.py: isinstance(stage, RowStage)"]."""
    types = stage_types()
    return [
        f"{path.relative_to(folder)}: {ast.unparse(node)}"
        for path in sorted(folder.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance"
        if types & {name.id for name in ast.walk(node.args[1]) if isinstance(name, ast.Name)}
    ]


def test_few_places_ask_what_kind_a_stage_is() -> None:
    found = questions(Path(posttrain.training.__file__).parent)
    assert len(found) <= MOST_QUESTIONS, "a kind's own way is a function of its row in KINDS:\n" + "\n".join(found)


def test_a_planted_question_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = isinstance(work.stage, PPOStage | Reward) or isinstance(stage.adapter, LoRA)")
    assert questions(tmp_path) == ["a.py: isinstance(work.stage, PPOStage | Reward)"]
