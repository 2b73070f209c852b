"""What an error leaves behind: the last whole step, from which the run goes on bit for bit; and the best weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from posttrain.config import stage_fingerprint, what_changed
from posttrain.config.online import GRPO
from posttrain.errors import CheckpointError, NonFiniteError, RewardError
from posttrain.runs.folder import RunFolder
from posttrain.runs.progress import Progress
from posttrain.runs.records.stage import BestExamination
from posttrain.training import checkpoint
from posttrain.training.earlier import make_room
from posttrain.training.loop import Loop
from posttrain.training.pipeline import _is_done
from posttrain.training.run_record import Timed, begin_run
from posttrain.training.stages.kind import StageContext, StageIdentity
from posttrain.training.stages.sampling_end import conclude
from posttrain.types import Task
from tests.online import WHOLE, early_letters, lines, loop_of, run, save_start, source_of, untimed

SAME = StageIdentity("i", {})
MOVING: dict[str, Any] = {
    **WHOLE,
    "steps": 4,
    "kl_target": 0.01,
    "curriculum": {"kind": "pass_rate", "pass_at": 0.3},
    "examine": {"every_steps": 2},
    "checkpoint": {"every_steps": 50},
}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_start(tmp_path_factory.mktemp("start"))


class Said(Progress):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def weights(loop: Loop) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in loop.work.policy.model.named_parameters()}


def noisy(prompt: Any, completion: str, task: Task) -> float:
    """A reward that draws from torch's own stream, as a user's may."""
    return early_letters(prompt, completion, task) + 1e-3 * float(torch.rand(()))


def failing(times: int, error: Exception | None = None) -> Callable[..., float]:
    """`noisy` for so many completions, then an error."""
    left = [times]

    def noisy_(prompt: Any, completion: str, task: Task) -> float:
        left[0] -= 1
        if left[0] < 0:
            raise error or KeyError("level")
        return noisy(prompt, completion, task)

    noisy_.__name__ = "noisy"
    return noisy_


def same(whole: Loop, resumed: Loop, folders: tuple[Path, Path]) -> None:
    assert resumed.step == whole.step == 4
    assert untimed(resumed.folder.metrics()) == untimed(whole.folder.metrics())
    for name in ("rollouts.jsonl", "examinations.jsonl"):
        assert lines(folders[1], name) == lines(folders[0], name)
    expected, found = weights(whole), weights(resumed)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


# 3 held-out tasks are asked at the start, and each step scores 12 completions.
@pytest.mark.parametrize("scored", [3 + 12 + 5, 3 + 12 + 12 + 1], ids=["in a rollout", "in an examination"])
def test_a_reward_that_raises_loses_no_whole_step(start: Path, tmp_path: Path, scored: int, monkeypatch: Any) -> None:
    # The reward's source is part of what a run is: the one that fails has to be the one that does not.
    monkeypatch.setattr("posttrain.training.stages.sampling_inputs.content_of", lambda function: function.__name__)
    folders = tmp_path / "whole", tmp_path / "halves"
    whole = run(loop_of(start, folders[0], rewards=[noisy], **MOVING))
    said = Said()
    with pytest.raises(RewardError, match="raised KeyError"):
        run(loop_of(start, folders[1], rewards=[failing(scored)], progress=said, **MOVING))
    found = checkpoint.latest(folders[1] / "checkpoints")
    assert found is not None and found.step == (1 if scored < 3 + 24 else 2)
    assert any("RewardError after" in line and "which are saved" in line for line in said.lines)
    same(whole, run(loop_of(start, folders[1], rewards=[noisy], **MOVING)), folders)


def test_an_error_in_the_first_step_leaves_nothing_to_save(start: Path, tmp_path: Path) -> None:
    with pytest.raises(RewardError):
        run(loop_of(start, tmp_path, rewards=[failing(5)], **MOVING))
    assert checkpoint.latest(tmp_path / "checkpoints") is None


@pytest.mark.parametrize(
    "failure",
    [OSError("no space left"), SafetensorError("no space left"), CheckpointError("no space left", remedy="none")],
    ids=lambda failure: type(failure).__name__,
)
def test_the_error_is_raised_also_where_nothing_can_be_saved(
    failure: Exception, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise failure

    monkeypatch.setattr(checkpoint, "save", full)
    said = Said()
    with pytest.raises(RewardError, match="raised KeyError"):
        run(loop_of(start, tmp_path, rewards=[failing(3 + 12 + 5)], progress=said, **MOVING))
    assert any("could not be saved: no space left" in line for line in said.lines)


def test_an_engine_that_is_gone_loses_no_whole_step_either(start: Path, tmp_path: Path) -> None:
    loop = loop_of(start, tmp_path, steps=3, held_out=0, checkpoint={"every_steps": 50})
    engine, generate = source_of(loop).setup.sampler.engine, source_of(loop).setup.sampler.engine.generate

    def gone(*arguments: Any, **options: Any) -> Any:
        if loop.step == 2:
            raise ConnectionError("connection refused")
        return generate(*arguments, **options)

    engine.generate = gone  # type: ignore[method-assign]
    with pytest.raises(ConnectionError):
        run(loop)
    found = checkpoint.latest(tmp_path / "checkpoints")
    assert found is not None and found.step == 2


# ---------------------------------------------------------------- the best weights


def scored(loop: Loop, scores: dict[int, float]) -> None:
    """The examinations' scores, as they are told, whatever the answers were."""
    examiner = source_of(loop).setup.examiner
    judge = examiner._judge
    examiner._judge = lambda step, score: judge(step, scores[step])  # type: ignore[method-assign]


OPTIONS: dict[str, Any] = {
    **WHOLE,
    "steps": 4,
    "examine": {"every_steps": 1},
    "checkpoint": {"every_steps": 2, "keep": 1},
}


class Killed(BaseException):
    """As sudden as `kill -9`."""


def killed_in_step_4(start: Path, folder: Path, scores: dict[int, float], **options: Any) -> dict[int, Any]:
    """Killed when step 3 is done: the checkpoint is step 2's, and step 3 was examined. The weights after each step."""
    loop, seen = loop_of(start, folder, **{**OPTIONS, **options}), {}
    scored(loop, scores)
    engine, generate = source_of(loop).setup.sampler.engine, source_of(loop).setup.sampler.engine.generate

    def dying(*arguments: Any, **named: Any) -> Any:
        seen.setdefault(loop.step, weights(loop))
        if loop.step == 3 and source_of(loop).setup.examiner._last == 3:
            raise Killed
        return generate(*arguments, **named)

    engine.generate = dying  # type: ignore[method-assign]
    with pytest.raises(Killed):
        run(loop)
    return seen


def test_a_replay_that_is_not_the_same_ends_with_the_best_of_its_own(start: Path, tmp_path: Path) -> None:
    """Step 1 was the best of the checkpoint; then step 3 was better, and after the resume, by rounding, is not."""
    seen = killed_in_step_4(start, tmp_path, {0: 0.1, 1: 0.5, 2: 0.2, 3: 0.9})
    assert {path.name for path in (tmp_path / "best").iterdir()} == {
        "step-00000001.safetensors",
        "step-00000003.safetensors",
    }
    loop = loop_of(start, tmp_path, **OPTIONS)
    scored(loop, {3: 0.3, 4: 0.4})
    run(loop)
    assert loop.folder.stage().best == BestExamination(1, 0.5) and loop.folder.stage().best_lost is None
    assert all(torch.equal(seen[1][name], p) for name, p in weights(loop).items())


def test_what_no_checkpoint_refers_to_is_removed(start: Path, tmp_path: Path) -> None:
    loop = loop_of(start, tmp_path, **OPTIONS)
    scored(loop, {0: 0.1, 1: 0.2, 2: 0.3, 3: 0.4, 4: 0.5})
    run(loop)
    names = {path.name for path in (tmp_path / "best").iterdir()}
    assert names == {"step-00000002.safetensors", "step-00000004.safetensors"}


@pytest.mark.parametrize("how", ["gone", "altered"])
def test_best_weights_that_are_lost_do_not_end_a_finished_run(start: Path, tmp_path: Path, how: str) -> None:
    killed_in_step_4(start, tmp_path, {0: 0.1, 1: 0.9, 2: 0.2, 3: 0.3})
    if how == "gone":
        shutil.rmtree(tmp_path / "best")
    else:
        (tmp_path / "best" / "step-00000001.safetensors").write_bytes(b"torn")
    said = Said()
    loop = loop_of(start, tmp_path, progress=said, **OPTIONS)
    scored(loop, {3: 0.3, 4: 0.4})
    run(loop)
    assert loop.step == 4 and loop.folder.stage().best is None
    assert any("WARNING" in line and "ends with those of step 4" in line for line in said.lines)
    assert any("ends with those of step 4" in warning for warning in conclude(loop.folder))
    loop.folder.close()


def test_a_run_may_be_resumed_with_the_last_weights(start: Path, tmp_path: Path) -> None:
    killed_in_step_4(start, tmp_path, {0: 0.1, 1: 0.9, 2: 0.2, 3: 0.3})
    loop = loop_of(start, tmp_path, **{**OPTIONS, "examine": {"every_steps": 1, "keep": "last"}})
    scored(loop, {3: 0.3, 4: 0.4})
    run(loop)
    assert loop.step == 4 and loop.folder.stage().examine_keep == "last" and loop.folder.stage().best is None


def test_which_weights_are_kept_is_no_part_of_what_a_run_is(tmp_path: Path) -> None:
    best, last = GRPO(data="a.jsonl"), GRPO(data="a.jsonl", examine={"keep": "last"})
    inputs: dict[str, Any] = {"data": ["x"], "start_model": "y", "seed": 0}
    assert stage_fingerprint(best, **inputs) == stage_fingerprint(last, **inputs)
    assert what_changed(best.model_dump(mode="json"), last) == []
    other = GRPO(data="a.jsonl", examine={"every_steps": 3})
    assert stage_fingerprint(best, **inputs) != stage_fingerprint(other, **inputs)


def test_a_finished_stage_is_run_again_for_other_weights(start: Path, tmp_path: Path) -> None:
    loop = run(loop_of(start, tmp_path, steps=1))
    (loop.folder.model).mkdir()
    record = replace(loop.folder.stage(), status="done", quick_identity="i")
    best, last = (
        StageContext(GRPO(data="a.jsonl", examine={"keep": keep}), start, loop.folder, 0, Progress(), identity=SAME)
        for keep in ("best", "last")
    )
    assert _is_done(record, best) and not _is_done(record, last)
    assert _is_done(replace(record, examine_keep="last"), last)


def test_a_finished_stage_that_ended_with_other_weights_is_kept(start: Path, tmp_path: Path) -> None:
    """`examine.keep` is in no hash, since a run may be resumed with the other; of a finished one it is the result."""
    loop = run(loop_of(start, tmp_path / "grpo", steps=1))
    loop.folder.write_stage(name="grpo", method="grpo", status="done", quick_identity="i")
    folder = RunFolder(tmp_path)
    stage = GRPO(data="a.jsonl", examine={"keep": "last"})
    ctx = StageContext(stage, start, loop.folder, 0, Said(), identity=SAME)
    begin_run(folder, "mine", [stage])
    with Timed(folder, loop.folder, stage) as timed:
        make_room(ctx, folder, timed)
    replaced = folder.stage("grpo.1").stage().replaced
    assert replaced is not None and replaced.because == ("`examine.keep` best -> last",)


def test_broken_weights_take_no_checkpoints_place(start: Path, tmp_path: Path) -> None:
    said = Said()
    loop = loop_of(start, tmp_path, steps=3, held_out=0, checkpoint={"every_steps": 1, "keep": 1}, progress=said)
    engine, generate = source_of(loop).setup.sampler.engine, source_of(loop).setup.sampler.engine.generate

    def broken(*arguments: Any, **options: Any) -> Any:
        if loop.step == 1:
            with torch.no_grad():
                next(p for p in loop.work.policy.model.parameters() if p.requires_grad).fill_(float("nan"))
            loop.saver.latest = None
        return generate(*arguments, **options)

    engine.generate = broken  # type: ignore[method-assign]
    with pytest.raises(NonFiniteError):
        run(loop)
    assert any("its weights are not finite" in line for line in said.lines)
