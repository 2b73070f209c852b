"""A method without a gradient, planted behind terms that have one: found by the preflight, and in the first step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.config.online import Online, OnlineStage
from posttrain.errors import PreflightError, TrainingError
from posttrain.losses.pairwise import PAIRWISE
from posttrain.losses.policy_metrics import explain_zero_loss
from posttrain.losses.surrogates import SURROGATES, Surrogate, TokenLoss
from posttrain.runs.folder import StageFolder
from posttrain.runs.progress import Progress
from posttrain.training import checkpoint
from posttrain.training.checks.gradient import check_gradient
from posttrain.training.checks.preflight import Check
from posttrain.training.loop import Loop
from posttrain.training.source import RowSource
from posttrain.types import TokenTree
from tests.fixtures import make_tree
from tests.online import loop_of, run, save_start
from tests.training import work_of


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_start(tmp_path_factory.mktemp("start"))


@pytest.fixture
def dead(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """GRPO's surrogate as a bug would leave it: a number like any other, without a way back to the policy."""

    def constant(ratio_N: Tensor, advantage_N: Tensor, logprob_N: Tensor, parameters: Any) -> TokenLoss:
        return TokenLoss(-ratio_N.detach() * advantage_N)

    own = SURROGATES["clip"]
    table = {**SURROGATES, "clip": Surrogate(constant, own.formula, own.defaults)}
    monkeypatch.setattr("posttrain.losses.policy.SURROGATES", table)
    yield


BESIDE: list[dict[str, Any]] = [
    {},  # the KL's two sides are equal but for rounding: its gradient was taken for the policy's
    {"choices": {"kl": "none"}},
    {"entropy_weight": 0.01},
    {"choices": {"kl": "none", "parameters": {}}, "entropy_weight": 0.01},
    {"updates_per_rollout": 2},
]


@pytest.mark.parametrize("options", BESIDE, ids=str)
def test_the_preflight_is_not_deceived(dead: None, start: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(PreflightError, match="its gradient is exactly 0") as caught:
        loop_of(start, tmp_path, **options)
    assert "choices" in caught.value.remedy


def test_a_shared_value_model_does_not_hide_it(dead: None, start: Path, tmp_path: Path) -> None:
    with pytest.raises(PreflightError, match="its gradient is exactly 0"):
        loop_of(start, tmp_path, "ppo", value_backbone="shared", completions_per_prompt=2)


@pytest.mark.parametrize("options", [{}, {"entropy_weight": 0.01}], ids=str)
def test_a_run_ends_in_the_step_that_shows_it(dead: None, start: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    loop = loop_of(start, tmp_path, preflight={"on_failure": "warn"}, held_out=0, steps=4, **options)
    with pytest.raises(TrainingError, match=r"step 1: dead_learning: the .*gradient is exactly 0"):
        run(loop)
    found = checkpoint.latest(tmp_path / "checkpoints")
    assert found is not None and found.step == 1
    (values,) = [record.values for record in loop.folder.metrics("train")]
    assert values["policy_slope"] == 0 and values["advantage_magnitude"] > 0
    assert values["grad_norm"] > 0 or "entropy_weight" not in options
    with pytest.raises(TrainingError, match="step 2: dead_learning"):  # resumed without a change, it ends again
        run(loop_of(start, tmp_path, preflight={"on_failure": "warn"}, held_out=0, steps=4, **options))


def test_a_loss_that_no_weight_moves_is_a_named_error(dead: None, start: Path, tmp_path: Path) -> None:
    loop = loop_of(start, tmp_path, preflight={"on_failure": "warn"}, held_out=0, choices={"kl": "none"})
    with pytest.raises(TrainingError, match="the loss does not depend on any weight that trains"):
        run(loop)


def test_who_asks_for_it_trains_on(dead: None, start: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"alarms": {"off": ["dead_learning"]}}
    assert run(loop_of(start, tmp_path, preflight={"on_failure": "warn"}, held_out=0, **options)).step == 2


def test_tied_groups_are_no_dead_loss(start: Path, tmp_path: Path) -> None:
    def zero(prompt: Any, completion: str, task: Any) -> float:
        return 0.0

    loop = run(loop_of(start, tmp_path, rewards=[zero], held_out=0, choices={"kl": "none"}))
    assert loop.step == 2 and not [alarm for alarm in loop.folder.alarms() if alarm.name == "dead_learning"]
    assert all(record.values["grad_norm"] == 0 for record in loop.folder.metrics("train"))


def test_a_zero_loss_is_explained_only_where_something_is_learned() -> None:
    values = {"policy_loss": 0.0, "advantage_magnitude": 0.7, "grad_norm": 1.2, "policy_slope": 0.3}
    assert explain_zero_loss(values) is not None
    assert explain_zero_loss({**values, "grad_norm": 0.0}) is None
    assert explain_zero_loss({**values, "policy_slope": 0.0}) is None


# ---------------------------------------------------------------- offline


def check_of(work: Any, rows: Sequence[TokenTree] | None = None) -> Check:
    return check_gradient(work.policy, work.reference, work.algorithm, rows or work.rows)


@pytest.mark.parametrize("method", PAIRWISE)
def test_every_pairwise_objective_has_a_gradient_of_its_own(method: str) -> None:
    rows = [make_tree([1, 5], [6, 7], [8, 9, 10], margin=1.0), make_tree([1, 4], [7, 7, 3], [5], margin=0.5)]
    check = check_of(work_of(method, rows=rows))
    assert check.status == "pass", check.detail


def test_a_comparison_that_is_dead_does_not_hide_behind_a_likelihood(monkeypatch: pytest.MonkeyPatch) -> None:
    work = work_of("dpo_nll")
    assert check_of(work).status == "pass"
    own = work.algorithm.loss

    def without(*arguments: Any, **named: Any) -> Any:
        out = own(*arguments, **named)
        return replace(out, teaching=torch.zeros(()))

    check = check_of(replace(work, algorithm=replace(work.algorithm, loss=without)))
    assert check.status == "fail" and "`dpo_nll` does not depend on the model" in check.detail


class Behind:
    """A reference that the policy is far ahead of, on the right side: every pair is separated."""

    def __init__(self, work: Any):
        self._work = work

    @torch.no_grad()
    def logprobs(self, batch: Any) -> Tensor:
        own_N = self._work.policy(batch).logprobs_N
        chosen_N = batch.branch_N % 2 == 0
        return own_N + torch.where(chosen_N, -30.0, 30.0)


def test_a_hinge_that_is_done_at_the_start_is_no_fault() -> None:
    work = work_of("hinge")
    assert check_of(replace(work, reference=Behind(work))).status == "pass"


def test_an_offline_source_that_fails_loses_no_whole_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def weights(loop: Loop) -> list[Tensor]:
        return [p.detach().clone() for p in loop.work.policy.model.parameters()]

    options: dict[str, Any] = {"checkpoint": {"every_steps": 50}}
    whole = run(Loop(work_of(**options), StageFolder(tmp_path / "whole"), Progress()))
    at = RowSource.at

    def torn(self: RowSource, step: int) -> Any:
        if step == 3:
            raise OSError("input/output error")
        return at(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(RowSource, "at", torn)
        with pytest.raises(OSError, match="input/output"):
            run(Loop(work_of(**options), StageFolder(tmp_path / "halves"), Progress()))
    found = checkpoint.latest(tmp_path / "halves" / "checkpoints")
    assert found is not None and found.step == 3
    resumed = run(Loop(work_of(**options), StageFolder(tmp_path / "halves"), Progress()))
    assert resumed.step == whole.step == 8
    assert all(torch.equal(one, other) for one, other in zip(weights(whole), weights(resumed), strict=True))


def test_the_stage_says_when_its_policy_is_the_sampler() -> None:
    one, two = Online("grpo"), Online("grpo", updates_per_rollout=2)
    assert isinstance(one, OnlineStage) and isinstance(two, OnlineStage)
    assert one.on_policy and not two.on_policy
    assert not one.follows_kl and Online("rloo").follows_kl  # type: ignore[attr-defined]
