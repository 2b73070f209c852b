"""T64: a run that stops and goes on equals one that does not, bit for bit (accelerate PR#4071).

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from posttrain.errors import CheckpointError, ResumeError
from posttrain.runs.folder import StageFolder
from posttrain.runs.progress import Progress
from posttrain.runs.records.logs import HeldOutRow, MetricsLine
from posttrain.training.loop import Loop
from tests.fixtures import tiny_model
from tests.training import run_loop, weights_of, work_of

TIMED = ("tokens_per_second",)


class Killed(BaseException):
    """As sudden as `kill -9`: nothing in the package catches it."""


def model_of(kind: str) -> Any:
    model = tiny_model("llama", vocab=97)
    if kind == "full":
        return model
    torch.manual_seed(5)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.1)
    return get_peft_model(model, config)


def records(folder: Path) -> list[MetricsLine]:
    return [
        replace(line, seconds=None, values={name: value for name, value in line.values.items() if name not in TIMED})
        for line in StageFolder(folder).metrics()
    ]


def killed_run(method: str, kind: str, folder: Path, at_step: int, mid_accumulation: bool) -> None:
    """Run until `at_step` steps are taken (or half of the next one's micro-batches are done), then die."""
    work = work_of(method, model=model_of(kind), dropout=kind == "lora" and method == "sft")
    stage_folder = StageFolder(folder)
    loop = Loop(work, stage_folder, Progress())
    forward, calls = type(work.policy).forward, {"step": 0}

    def dying(self: Any, *args: Any, **kwargs: Any) -> Any:
        if loop.step == at_step and torch.is_grad_enabled():
            calls["step"] += 1
            if calls["step"] > (1 if mid_accumulation else 0):
                raise Killed
        return forward(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(work.policy), "forward", dying)
        with pytest.raises(Killed):
            loop.run()
    stage_folder.close()  # the operating system does this for a process that dies


Whole = Callable[[str, str], tuple[list[dict[str, Any]], dict[str, torch.Tensor]]]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """What a run that is not stopped wrote, and its weights; one run for all the places where others stop."""

    @cache
    def of(method: str, kind: str) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp("whole")
        work = work_of(method, model=model_of(kind), dropout=kind == "lora" and method == "sft")
        run_loop(work, folder)
        return records(folder), weights_of(work)

    return of


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("sft", "full"),
        ("sft", "lora"),
        ("dpo", "full"),
        ("dpo", "lora"),
        ("simpo", "full"),
        ("orpo", "full"),
        ("kto", "full"),
        ("kto", "lora"),
        ("bco", "full"),
        ("aot", "full"),
    ],
)
@pytest.mark.parametrize(("at_step", "mid_accumulation"), [(5, False), (5, True), (4, False)])
def test_resumed_equals_uninterrupted(
    tmp_path: Path, uninterrupted: Whole, method: str, kind: str, at_step: int, mid_accumulation: bool
) -> None:
    """14 rows, 4 a step: an epoch ends with step 4, checkpoints come after steps 3 and 6."""
    lines, weights = uninterrupted(method, kind)

    killed_run(method, kind, tmp_path / "resumed", at_step, mid_accumulation)
    torch.manual_seed(12345)  # a fresh process has another global state
    resumed = work_of(method, model=model_of(kind), dropout=kind == "lora" and method == "sft")
    loop = run_loop(resumed, tmp_path / "resumed")

    assert loop.step == 8
    assert records(tmp_path / "resumed") == lines
    for name, weight in weights.items():
        assert torch.equal(weight, weights_of(resumed)[name]), name


def test_a_run_that_died_while_exporting_repeats_nothing(tmp_path: Path) -> None:
    run_loop(work_of(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.jsonl")}
    again = work_of()
    assert run_loop(again, tmp_path).step == 8
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.jsonl")} == before
    assert {pair.when for pair in StageFolder(tmp_path).lines(HeldOutRow)} == {"start", "end"}


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    from dataclasses import replace

    run_loop(work_of(epochs=1), tmp_path)
    with pytest.raises(ResumeError, match="changed since"):
        run_loop(replace(work_of(epochs=1), identity="another"), tmp_path)


def test_a_torn_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    run_loop(work_of(epochs=1), tmp_path)
    newest = sorted((tmp_path / "checkpoints").glob("step-*"))[-1]
    content = (newest / "weights.safetensors").read_bytes()
    (newest / "weights.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"weights\.safetensors is not what was saved"):
        run_loop(work_of(epochs=1), tmp_path)
    (newest / "weights.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks weights\.safetensors"):
        run_loop(work_of(epochs=1), tmp_path)


def test_old_checkpoints_go_and_unfinished_ones_do_not_count(tmp_path: Path) -> None:
    work = work_of(epochs=3)
    (tmp_path / "checkpoints" / ".writing-step-00000099").mkdir(parents=True)
    run_loop(work, tmp_path)
    assert [path.name for path in sorted((tmp_path / "checkpoints").glob("step-*"))] == [
        "step-00000009",
        "step-00000012",
    ]
