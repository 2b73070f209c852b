"""Trackers: what they are told, what a resumed stage tells again, and that none of them reaches the run."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

import posttrain as pt
from posttrain.config import SFT, parse_recipe, stage_fingerprint
from posttrain.config.settings import Log
from posttrain.errors import ConfigError, MissingExtraError, UnknownKeyError
from posttrain.runs.folder import StageFolder
from posttrain.runs.records.evaluation import Figure, SuiteScores
from posttrain.runs.records.logs import Alarm, MetricsLine
from posttrain.runs.records.tracking import StageTracking
from posttrain.training.tracking import feed as feeds
from posttrain.training.tracking import tracking as module
from posttrain.training.tracking.follow import Follower
from posttrain.training.tracking.trackers import table
from posttrain.training.tracking.trackers.table import TRACKERS, require_trackers
from posttrain.training.tracking.trackers.tracker import TrackedStage, TrackerKind, described
from posttrain.training.tracking.trackers.wandb import require_login
from posttrain.training.tracking.tracking import Tracking, flat


@dataclass
class Heard:
    """A tracker that writes down what it is told."""

    stage: TrackedStage
    scalars_told: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    texts: list[tuple[int, str, str]] = field(default_factory=list)
    closed: str | None = None

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.scalars_told.append((step, dict(values)))

    def text(self, step: int, name: str, text: str) -> None:
        self.texts.append((step, name, text))

    def flush(self) -> None:
        pass

    def close(self, status: str) -> None:
        self.closed = status

    def steps_of(self, name: str) -> list[int]:
        return [step for step, values in self.scalars_told if name in values]


def line(step: int, split: str = "train", **values: float | None) -> MetricsLine:
    return MetricsLine(step, step / 10, float(step), split, values or {"loss": 1.0 / (step + 1)}, {})


def alarm(step: int) -> Alarm:
    return Alarm("gradient_spike", "warning", step, "the norm is 14 times its median", {}, "lower the rate")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[StageFolder]:
    folder = StageFolder(tmp_path / "mine" / "dpo")
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.write_stage(name="dpo", method="dpo", started="2026-03-01T12:00:00+00:00")
    yield folder
    folder.close()


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[Heard]:
    """Every tracker that was opened; `wandb` and `tensorboard` write down, and need no package."""
    opened: list[Heard] = []

    def open_heard(stage: TrackedStage, settings: Mapping[str, Any]) -> Heard:
        opened.append(Heard(stage))
        return opened[-1]

    kinds = {
        "wandb": TrackerKind("json", "wandb", open_heard),
        "tensorboard": TrackerKind("json", "tensorboard", open_heard, is_folder=True),
    }
    monkeypatch.setattr(module, "TRACKERS", kinds)
    return opened


def tracking(folder: StageFolder, said: list[str] | None = None, kinds: tuple[str, ...] = ("wandb",)) -> Tracking:
    said = said if said is not None else []
    return Tracking(
        [{"kind": kind} for kind in kinds],
        folder.path.parent,
        folder,
        {"method": "dpo", "optimizer": {"clip_norm": 1.0}},
        say=said.append,
        status=lambda error: "done" if error is None else "failed",
        every=0.01,
    )


def wait_for(met: Callable[[], bool], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


# ---------------------------------------------------------------- what is told


def test_a_tracker_is_told_every_line_by_our_names_alarms_and_suites(folder: StageFolder, heard: list[Heard]) -> None:
    with tracking(folder):
        folder.append(line(0, "held_out", loss=0.7))
        folder.append(line(1, loss=0.69, grad_norm=None))
        folder.append(alarm(1))
        wait_for(lambda: bool(heard and heard[0].texts))
        folder.append(line(2, loss=0.6))  # while it runs, and at its end
        folder.write(SuiteScores({"identity": {"match": Figure(0.94, 0.87, 0.98, 64)}}))
    (told,) = heard
    assert told.scalars_told == [
        (0, {"held_out/loss": 0.7}),
        (1, {"train/loss": 0.69, "progress/epoch": 0.1, "progress/seconds": 1.0}),
        (1, {"alarm/gradient_spike": 1.0}),
        (2, {"train/loss": 0.6, "progress/epoch": 0.2, "progress/seconds": 2.0}),
        (
            2,
            {
                "suite/identity.match": 0.94,
                "suite/identity.match/low": 0.87,
                "suite/identity.match/high": 0.98,
            },
        ),
    ]
    assert told.texts == [(1, "alarm/gradient_spike", "warning: the norm is 14 times its median. lower the rate")]
    assert told.closed == "done"
    assert told.stage.name == "mine/dpo" and told.stage.config == {"method": "dpo", "optimizer.clip_norm": "1.0"}


def test_a_failed_stage_closes_its_tracker_as_failed(folder: StageFolder, heard: list[Heard]) -> None:
    with pytest.raises(ValueError, match="the stage"), tracking(folder):
        raise ValueError("the stage")
    assert heard[0].closed == "failed"


def test_the_names_have_our_titles_and_units() -> None:
    assert described("train/loss")[0] == "Loss (nats)"
    assert described("held_out/reward_margin")[0] == "Reward margin"
    assert described("progress/epoch") == ("progress/epoch", "")
    assert flat({"a": {"b": None, "c": [1, 2]}, "d": True}) == {"a.b": "null", "a.c": "[1, 2]", "d": "True"}


# ---------------------------------------------------------------- resumed


def test_a_resumed_stage_goes_on_in_its_run_and_tells_no_step_twice(folder: StageFolder, heard: list[Heard]) -> None:
    with pytest.raises(KeyboardInterrupt), tracking(folder):
        for step in range(1, 6):
            folder.append(line(step))
        folder.append(line(5, "held_out"))
        folder.append(alarm(4))
        raise KeyboardInterrupt
    folder.truncate_after(3, measured=False)  # the checkpoint: steps 4 and 5 are taken again
    with tracking(folder):
        for step in range(4, 8):
            folder.append(line(step))
        folder.append(alarm(4))
        folder.append(line(5, "held_out"))
    first, second = heard
    assert first.stage.id == second.stage.id and not first.stage.resumed and second.stage.resumed
    assert first.steps_of("train/loss") == [1, 2, 3, 4, 5] and second.steps_of("train/loss") == [6, 7]
    assert first.steps_of("held_out/loss") == [5] and second.steps_of("held_out/loss") == []
    assert first.steps_of("alarm/gradient_spike") == [4] and second.steps_of("alarm/gradient_spike") == []


def test_a_killed_run_loses_a_point_rather_than_tell_it_twice(folder: StageFolder, heard: list[Heard]) -> None:
    """The note is stored before the tracker hears of it."""
    noted: list[Any] = []
    with tracking(folder):
        wait_for(lambda: bool(heard))
        record = heard[0].scalars

        def scalars(step: int, values: Mapping[str, float]) -> None:
            noted.append(json.loads((folder.path / "tracking.json").read_text())["trackers"][0]["steps"])
            record(step, values)

        heard[0].scalars = scalars  # type: ignore[method-assign]
        folder.append(line(1))
    assert noted[0] == {"train": 1}


def test_a_stage_that_begins_anew_is_another_run(folder: StageFolder, tmp_path: Path, heard: list[Heard]) -> None:
    kinds = ("wandb", "tensorboard")
    with tracking(folder, kinds=kinds):
        folder.append(line(1))
    (tmp_path / "mine" / "tracking" / "tensorboard" / "dpo").mkdir(parents=True)  # as TensorBoard's writer makes it
    folder.forget_logs()
    folder.write_stage(started="2026-03-02T12:00:00+00:00")
    with tracking(folder, kinds=kinds):
        folder.append(line(1))
    ids = {(told.stage.id, told.stage.resumed) for told in heard}
    assert len(ids) == 4 and not any(resumed for _, resumed in ids)
    assert ("dpo-2", False) in ids
    assert [told.steps_of("train/loss") for told in heard] == [[1]] * 4


def test_a_log_is_followed_by_whole_lines_and_through_a_rewrite(
    folder: StageFolder,
) -> None:
    follower = Follower(folder.path, MetricsLine)
    assert follower.new() == []
    folder.append(line(1))
    folder.append(line(2))
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "split": "tr')
    assert [found.step for found in follower.new()] == [1, 2]
    assert follower.new() == []
    folder.truncate_after(1)
    assert [found.step for found in follower.new()] == [1]


# ---------------------------------------------------------------- failures


def test_a_tracker_that_raises_is_named_once_and_the_run_goes_on(
    folder: StageFolder, heard: list[Heard], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def broken(step: int, values: Mapping[str, float]) -> None:
        raise SystemExit("the server is gone\nwith a second line")

    with tracking(folder, said, ("wandb", "tensorboard")):
        wait_for(lambda: len(heard) == 2)
        next(told for told in heard if not told.stage.id.startswith("dpo")).scalars = broken  # type: ignore[method-assign]
        for step in range(1, 4):
            folder.append(line(step))
            time.sleep(0.02)
    assert len(said) == 1 and "the tracker wandb" in said[0] and "the server is gone" in said[0]
    whole = next(told for told in heard if told.stage.id == "dpo")
    assert whole.steps_of("train/loss") == [1, 2, 3] and whole.closed == "done"


def test_a_tracker_that_cannot_be_opened_is_named_once(folder: StageFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(stage: TrackedStage, settings: Mapping[str, Any]) -> Any:
        raise ConnectionError("refused")

    monkeypatch.setattr(module, "TRACKERS", {"mlflow": TrackerKind("json", "mlflow", refuse)})
    said: list[str] = []
    with tracking(folder, said, ("mlflow",)):
        pass
    assert len(said) == 1 and "ConnectionError: refused" in said[0]


def test_a_tracker_that_hangs_delays_the_run_by_no_more_than_its_patience(
    folder: StageFolder, heard: list[Heard], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "PATIENCE", 0.1)
    monkeypatch.setattr(module, "WATCH_SECONDS", 0.02)
    said: list[str] = []
    release = threading.Event()
    began = time.monotonic()
    with tracking(folder, said):
        wait_for(lambda: bool(heard))
        heard[0].scalars = lambda step, values: bool(release.wait(20))  # type: ignore[assignment, method-assign]
        folder.append(line(1))
        wait_for(lambda: bool(said))  # while the stage still runs
        folder.append(line(2))
    assert time.monotonic() - began < 5
    assert len(said) == 1 and "has not answered" in said[0]
    release.set()
    wait_for(lambda: not any(thread.name == "posttrain-wandb" for thread in threading.enumerate()))
    assert heard[0].closed is None and heard[0].texts == []  # it came back, and is told no more


# ---------------------------------------------------------------- settings


def test_settings_name_trackers_alone_or_with_keys() -> None:
    sft: Any = SFT

    def log_of(**log: Any) -> Log:
        found: Log = sft(log=log).log
        return found

    log = log_of(to=["tensorboard", {"kind": "wandb", "project": "mine"}])
    assert [tracker["kind"] for tracker in log.trackers] == ["tensorboard", "wandb"]
    assert log.trackers[1]["mode"] == "offline" and log.trackers[1]["project"] == "mine"
    assert log_of(to="mlflow").trackers[0]["uri"] is None
    for wrong, message in (
        ({"to": ["tensorbord"]}, "tensorboard"),
        ({"to": ["wandb", {"kind": "wandb"}]}, "twice"),
        (
            {"to": [{"kind": "mlflow", "uri": "http://me:secret@host"}]},
            "MLFLOW_TRACKING_USERNAME",
        ),
        ({"to": [{"kind": "wandb", "mode": "on"}]}, "offline"),
    ):
        with pytest.raises(ConfigError, match=message) as refused:
            sft(log=wrong)
        assert "secret" not in str(refused.value)


def test_trackers_change_no_fingerprint_and_come_back_from_yaml(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}\n")
    data = f"method: sft, data: {tmp_path}/a.jsonl"
    recipe = parse_recipe(f"schema: 1\nname: mine\nmodel: embedded\nstages:\n  - {{{data}, log: {{to: [wandb]}}}}\n")
    assert parse_recipe(recipe.to_yaml()).stages == recipe.stages

    given: dict[str, Any] = {"data": ["x"], "start_model": "y", "seed": 0}
    plain = recipe.stages[0].changed(log={})
    assert stage_fingerprint(recipe.stages[0], **given) == stage_fingerprint(plain, **given)


def test_what_is_missing_is_refused_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = replace(TRACKERS["wandb"], package="no_such_package")
    monkeypatch.setattr(table, "TRACKERS", {**TRACKERS, "wandb": missing})
    with pytest.raises(MissingExtraError, match=r"sft\.log\.to") as refused:
        require_trackers([{"kind": "wandb"}], "sft.log.to")
    assert "pip install 'posttrain[wandb]'" in str(refused.value)
    with pytest.raises(UnknownKeyError, match="tensorboard"):
        require_trackers([{"kind": "tensorbord"}])
    with pytest.raises(MissingExtraError):
        pt.train({"method": "dpo", "log": {"to": "wandb"}}, "embedded", [], out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_wandb_online_needs_a_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    with pytest.raises(ConfigError, match="WANDB_API_KEY"):
        require_login({"mode": "online"}, "log.to")
    require_login({"mode": "offline"}, "log.to")
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password 0123\n")
    (tmp_path / ".netrc").chmod(0o600)
    require_login({"mode": "online"}, "log.to")
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    with pytest.raises(ConfigError):
        require_login({"mode": "online"}, "log.to")


def test_tracking_json_survives_what_it_does_not_know() -> None:
    record = StageTracking.from_json({"started": "x", "trackers": [{"kind": "wandb", "id": "a"}, 3]})
    assert [state.kind for state in record.trackers] == ["wandb"] and record.trackers[0].steps == {}
