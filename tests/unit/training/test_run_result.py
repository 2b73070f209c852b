"""What a finished run offers to a program: its figures, a summary, curves, its model, and a page in a notebook."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import posttrain as pt
from posttrain.errors import ConfigError, MissingExtraError, SourceError, UnknownKeyError
from posttrain.runs.folder import RunFolder
from posttrain.training.run_result import Course, Run
from tests.chat_templates import CHATML
from tests.fake_run import write_fake_run
from tests.fixtures import byte_tokenizer, tiny_model


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.open(write_fake_run(tmp_path / "quickstart"))


def test_a_run_is_opened_by_its_folder_or_its_stages(run: Run) -> None:
    assert (run.stage, run.steps) == ("dpo", 120)
    assert Run.open(run.folder / "sft").stage == "sft", "a stage's own folder"
    with pytest.raises(UnknownKeyError, match="did you mean `dpo`"):
        Run.open(run.folder, "dpoo")
    with pytest.raises(SourceError, match="there is no run here"):
        Run.open(run.folder / "nothing")


def test_metrics_are_a_table_with_a_column_for_each_value(run: Run) -> None:
    table = run.metrics("held_out")
    assert list(table.columns[:4]) == ["step", "epoch", "seconds", "split"]
    assert table.loss.iloc[0] == pytest.approx(0.6931, abs=1e-4) and set(table.split) == {"held_out"}
    assert len(run.metrics()) == len(run.metrics("train")) + len(table)
    with pytest.raises(UnknownKeyError, match="did you mean `held_out`"):
        run.metrics("heldout")


def test_without_pandas_metrics_are_rows(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    first = run.metrics("held_out")[0]
    assert (first["step"], first["split"]) == (0, "held_out") and "reward_accuracy" in first


def test_a_run_without_a_measurement_has_the_columns_all_the_same(tmp_path: Path) -> None:
    table = Run(tmp_path / "none", "sft", 0).metrics()
    assert len(table) == 0 and list(table.step) == []


def test_the_summary_says_how_held_out_figures_went(run: Run) -> None:
    summary = run.summary()
    losses = [line.values["loss"] for line in run.lines("held_out")]
    course = summary.held_out["loss"]
    assert (course.first, course.last, course.best) == (losses[0], losses[-1], min(losses))
    assert summary.held_out["reward_accuracy"].best == max(
        line.values["reward_accuracy"] for line in run.lines("held_out")
    )
    assert summary.held_out["length_chosen"] == Course(12.0, summary.held_out["length_chosen"].last, None, None)
    said = str(summary)
    assert "dpo: done, 120 steps" in said and "held-out loss" in said and "alarm" in said and "report.html" in said
    assert str(run) == said and repr(run).startswith("Run('")
    # A path to a folder that is not there would be taken for the model.
    assert str(run.folder / "dpo" / "model") in said
    shutil.rmtree(run.folder / "dpo" / "model")
    assert "none is written" in str(run.summary())


def test_suites_and_alarms_stand_in_the_summary(run: Run) -> None:
    summary = run.summary()
    before, after = summary.suites["identity.match"]
    assert before is not None and (before.value, round(after.value, 4)) == (0.0, 0.9583)
    assert [alarm.split(" at step ")[0] for alarm in summary.alarms] == [alarm["name"] for alarm in run.alarms()]
    said = str(summary)
    assert "identity.match" in said and "0 -> 0.9583" in said and "gradient_spike at step 77: " in said


def line(step: int, **values: float | None) -> dict[str, Any]:
    return {"step": step, "split": "held_out" if step % 2 == 0 else "train", "values": values}


def half_done(folder: Path) -> Path:
    """A stage with a model, and one that was stopped in its fourth step."""
    first, second = (RunFolder(folder).stage(name) for name in ("sft", "dpo"))
    for stage in (first, second):
        stage.path.mkdir(parents=True)
        stage.write_stage(name=stage.name, method=stage.name, status="running")
    first.model.mkdir()
    measured = [line(0, loss=0.7, odd=3.0), line(1, loss=0.7), line(2, loss=0.4, odd=1.0), line(3, loss=None)]
    measured.append(line(4, loss=0.4, odd=None))
    (second.path / "metrics.jsonl").write_text("".join(json.dumps(content) + "\n" for content in measured))
    stages = [{"name": name, "method": name, "status": "running"} for name in ("sft", "dpo")]
    (folder / "run.json").write_text(json.dumps({"schema": 2, "status": "interrupted", "stages": stages}))
    return folder


def test_a_run_that_was_stopped_is_opened_too(tmp_path: Path) -> None:
    folder = half_done(tmp_path / "mine")
    assert Run.open(folder).stage == "sft", "the last stage that has a model"
    run = Run.open(folder, "dpo")
    assert run.steps == 3, "as far as it came"
    # The earliest of equals; what is not finite is no point of a curve; of `odd` nobody knows which way is better.
    assert run.summary().held_out == {"loss": Course(0.7, 0.4, 0.4, 2), "odd": Course(3.0, 1.0, None, None)}
    with pytest.raises(ConfigError, match="status: running"):
        run.load()
    (RunFolder(folder).stage("sft").model).rmdir()
    assert Run.open(folder).stage == "dpo", "the last that has begun"


def test_a_reward_model_is_loaded_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path / "mine", "judge", 1)
    run.model.mkdir(parents=True)
    asked: list[Any] = []
    monkeypatch.setattr("posttrain.training.run_result.resolve", lambda path: path)
    monkeypatch.setattr("posttrain.training.run_result.is_reward_folder", lambda source: True)
    monkeypatch.setattr("posttrain.training.run_result.load_reward", lambda path, **how: asked.append((path, how)))
    run.load(dtype="bf16")
    assert asked == [(run.model, {"dtype": "bf16", "device": "cpu", "model_code": "refuse"})]


def test_a_notebook_shows_the_summary_with_its_text_escaped(run: Run) -> None:
    odd = Run(run.folder.rename(run.folder.parent / "<b>"), "dpo", 1)
    assert "&lt;b&gt;" in odd._repr_html_() and "<b>" not in odd._repr_html_()


def test_curves_of_both_splits(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    drawing = run.plot("loss")
    assert drawing._repr_png_().startswith(b"\x89PNG"), "a notebook would show `<Figure size 700x400>`"
    axes = drawing.axes[0]
    assert [line.get_label() for line in axes.lines] == ["train", "held-out"]
    assert [line.get_marker() for line in axes.lines] == ["None", "o"]
    assert axes.get_ylabel() == "Loss (nats)"
    with pytest.raises(UnknownKeyError, match="did you mean `reward_margin`"):
        run.plot("reward_margn")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'posttrain\[notebook\]'"):
        run.plot()


def test_the_model_of_a_run_is_loaded(tmp_path: Path) -> None:
    run = Run(tmp_path / "mine", "sft", 1)
    with pytest.raises(ConfigError, match="no model"):
        run.load()
    tokenizer = byte_tokenizer(CHATML, specials=("<|im_start|>", "<|im_end|>"))
    tiny_model(vocab=len(tokenizer)).save_pretrained(run.model)
    tokenizer.save_pretrained(run.model)
    loaded = run.load(dtype="bf16")
    assert str(loaded.model.dtype) == "torch.bfloat16" and loaded.source.folder == run.model


def test_the_public_name_is_this_one() -> None:
    assert pt.Run is Run
