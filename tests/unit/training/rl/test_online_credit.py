"""What a rollout's odd responses do to the others of their group: cut, empty, without a token, too long, unjudged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from posttrain.advantages import Rollout as Credit
from posttrain.advantages import advantages
from posttrain.config.online import Online
from posttrain.losses.kl import KLWeight
from posttrain.rewards.rubric import Scored
from posttrain.rollout.engine import Completion, FinishReason, Versions
from posttrain.training.checks.of_rollouts import own_columns
from posttrain.training.rl.engines import Sampler
from posttrain.training.rl.learners import PolicyGradient
from posttrain.training.rl.metrics import rollout_metrics
from posttrain.training.rl.rollouts import Group, Prompt, Response, Rollout, decide
from posttrain.types import Batch, Message, RowRef, Task
from tests.online import lines, loop_of, save_start, source_of

TASK = Task((Message("user", "?"),), answer="4", row=RowRef("tasks.jsonl", 1))
STOP, OWN = 2, -1.0
ENDED, LONE, CUT = FinishReason.STOP_TOKEN, FinishReason.EMPTY, FinishReason.LENGTH


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_start(tmp_path_factory.mktemp("start"))


def response(ids: Sequence[int], reward: float | None, finish: FinishReason = ENDED) -> Response:
    return Response(Completion(tuple(ids), (OWN,) * len(ids), finish), "", Scored(reward), reward)


def rollout_of(*responses: Response, drop: bool = False) -> Rollout:
    groups = (Group(Prompt(TASK, (1, 5), 0), responses),)
    decide(groups, drop_truncated=drop)
    return Rollout(groups, 1, 0)


class Nearby:
    """A reference that finds each token `apart` nats less likely than the policy does."""

    kind = "live"

    def __init__(self, apart: float):
        self.apart = apart

    def logprobs(self, batch: Batch, *, temperature: float = 1.0) -> torch.Tensor:
        return torch.full((batch.count.tokens,), OWN - self.apart)


def learner(method: str, apart: float = 1.0, **options: Any) -> PolicyGradient:
    stage: Any = Online(method, **options)
    policy: Any = SimpleNamespace(device=torch.device("cpu"), is_sharded=False)
    reference = Nearby(apart) if stage.row.needs_reference else None
    return PolicyGradient(stage, policy, KLWeight(stage.parameters.get("kl_beta", 0.0)), 64, reference)


def advantages_of(rollout: Rollout) -> list[float]:
    return [float(one.columns["advantages"][0]) for one in rollout.groups[0].branches]


# ---------------------------------------------------------------- sampling that ran ahead


def ahead(*ages: int, train_version: int = 5) -> Rollout:
    """A group whose completions were sampled so many steps before they train."""
    made = []
    for number, age in enumerate(ages):
        one = response([7 + number, STOP], float(number))
        made.append(replace(one, completion=replace(one.completion, versions=Versions(train_version - age, 5))))
    return replace(rollout_of(*made), version=train_version)


@pytest.mark.parametrize(("ages", "computed"), [((0, 0), 0), ((0, 2), 1)])
def test_a_kl_of_old_completions_is_of_the_trainers_policy_and_not_of_the_engines(
    ages: tuple[int, int], computed: int
) -> None:
    """The reference is 1 nat from the engine's log-probs and 1.5 from the trainer's at the step's start."""
    one, calls = learner("rloo", kl_beta=0.5), []

    def forward(batch: Batch, wants: Any) -> Any:
        calls.append(batch)
        return SimpleNamespace(logprobs_N=torch.full((batch.count.tokens,), OWN + 0.5))

    forward.device, forward.is_sharded = torch.device("cpu"), False  # type: ignore[attr-defined]
    one.policy = forward  # type: ignore[assignment]
    rollout = ahead(*ages)
    one.trees(rollout, rollout.groups)
    assert len(calls) == computed
    # Rewards 0 and 1, two tokens each: both lose the same KL, so each is against the other.
    assert advantages_of(rollout) == pytest.approx([-1.0, 1.0])
    assert one.end_of_step({})["kl_sequence_reference"] == pytest.approx(3.0 if computed else 2.0)


def test_old_completions_carry_their_age_and_fresh_ones_nothing() -> None:
    old, fresh = ahead(0, 2), ahead(0, 0)
    for rollout in (old, fresh):
        learner("dapo").trees(rollout, rollout.groups)
    assert [one.columns["staleness"].tolist() for one in old.responses] == [[0.0, 0.0], [2.0, 2.0]]
    assert all("staleness" not in one.columns for one in fresh.responses)


def test_the_probes_of_the_gradient_have_no_mismatch() -> None:
    """A mask that took a probe out for the engine's rounding would leave the preflight without a gradient."""
    rollout = ahead(0, 0)
    policy: Any = lambda batch, _: SimpleNamespace(logprobs_N=torch.full((batch.count.tokens,), OWN + 0.5))  # noqa: E731
    policy.device, policy.is_sharded = torch.device("cpu"), False
    (tree,) = own_columns(Online("grpo"), policy, rollout.groups[0].trees())
    for branch in tree.branches:
        assert branch.columns["sampler_logprobs"].tolist() == branch.columns["old_logprobs"].tolist() == [-0.5, -0.5]


def test_ratios_from_the_engine_need_no_forward_pass_for_old_logprobs() -> None:
    """The learner's policy here can compute nothing."""
    rollout = ahead(0, 2)
    choices = {"proximal": "sampler"}
    learner("dapo", updates_per_rollout=2, choices=choices).trees(rollout, rollout.groups)
    assert all("old_logprobs" not in one.columns for one in rollout.responses)
    with pytest.raises(TypeError):
        learner("dapo", updates_per_rollout=2).trees(ahead(0, 0), ahead(0, 0).groups)


# ---------------------------------------------------------------- a KL in the reward


@pytest.mark.parametrize(("drop", "expected"), [(True, [2.75, 0.5]), (False, [2.75, 0.5, -3.25])])
def test_a_kl_in_the_reward_charges_those_that_are_left_out(drop: bool, expected: list[float]) -> None:
    """1 nat a token, beta 1/2; rewards 1, 0, 0 less 1, 1.5 and 4 are 0, -1.5, -4, each against the mean of the rest."""
    rollout = rollout_of(response([7, STOP], 1.0), response([7, 8, STOP], 0.0), response([7] * 8, 0.0, CUT), drop=drop)
    taught = learner("rloo", kl_beta=0.5, truncated="drop" if drop else "keep").trees(rollout, rollout.groups)
    assert advantages_of(rollout) == pytest.approx(expected)
    (tree,) = taught[0]
    assert [len(branch.ids) for branch in tree.branches] == ([2, 3] if drop else [2, 3, 8])
    assert [line.mask[0] for line in rollout.records()] == [True, True, not drop]


def test_the_kind_of_kl_is_the_one_that_the_reward_is_charged() -> None:
    """k2 of 2 nats is 2: rewards 0, 0 less 2 and 6 tokens of it are -4 and -12."""
    rollout = rollout_of(response([7, STOP], 0.0), response([7] * 5 + [STOP], 0.0))
    learner("rloo", 2.0, kl_beta=1.0, choices={"kl": "k2"}).trees(rollout, rollout.groups)
    assert advantages_of(rollout) == pytest.approx([8.0, -8.0])
    rollout = rollout_of(response([7, STOP], 0.0), response([7] * 5 + [STOP], 0.0))
    learner("rloo", 2.0, kl_beta=1.0, choices={"kl": "k3"}).trees(rollout, rollout.groups)
    k3 = 2.718281828**-2 - 1 + 2
    assert advantages_of(rollout) == pytest.approx([4 * k3, -4 * k3], rel=1e-5)


def test_charged_tokens_need_not_train() -> None:
    mask_BL = torch.tensor([[True, True], [False, False]])
    kl_BL = torch.tensor([[1.0, 1.0], [3.0, float("nan")]])
    scored = Credit(torch.tensor([1.0, 1.0]), torch.tensor([0, 0]), mask_BL, kl_BL)
    assert advantages("leave_one_out", scored, kl_beta=0.5).values_BL[0].tolist() == [-1.0, -1.0]
    charged = torch.tensor([[True, True], [True, False]])
    scored = Credit(torch.tensor([1.0, 1.0]), torch.tensor([0, 0]), mask_BL, kl_BL, charged_BL=charged)
    assert advantages("leave_one_out", scored, kl_beta=0.5).values_BL.tolist() == [[0.5, 0.5], [0.0, 0.0]]


# ---------------------------------------------------------------- responses without an answer


def test_a_lone_stop_token_trains_and_no_token_stays_in_the_baseline() -> None:
    """RLOO by hand: rewards 1, 0, 1/2 (no token at all) and 1/2, each less the mean of the other three."""
    rollout = rollout_of(
        response([7, STOP], 1.0), response([STOP], 0.0, LONE), response([], 0.5, CUT), response([8, STOP], 0.5)
    )
    taught = learner("rloo", choices={"kl": "none"}).trees(rollout, rollout.groups)
    (tree,) = taught[0]
    assert [branch.ids.tolist() for branch in tree.branches] == [[7, STOP], [STOP], [8, STOP]]
    assert all(branch.loss_mask.all() for branch in tree.branches)
    assert advantages_of(rollout) == pytest.approx([2 / 3, -2 / 3, 0.0])
    assert rollout_metrics(rollout)["empty_share"] == 0.5
    assert rollout_metrics(rollout)["abstained_share"] == 0.0


@pytest.mark.parametrize("method", ["rloo", "grpo", "dapo", "reinforce_pp", "reinforce_pp_baseline"])
def test_a_step_without_any_token_trains_nothing(method: str) -> None:
    rollout = rollout_of(response([], 1.0, CUT), response([], 0.0, LONE))
    assert learner(method).trees(rollout, rollout.groups) == []
    assert rollout_metrics(rollout)["empty_share"] == 1.0


class Fixed:
    """An engine that answers each prompt with the same completions."""

    policy_version = 0

    def __init__(self, completions: Sequence[Completion]):
        self.completions = list(completions)

    def generate(self, prompts: Sequence[Any], sampling: Any, **options: Any) -> list[list[Completion]]:
        return [self.completions for _ in prompts]


def test_an_engines_completion_without_ids_is_scored_and_counted(start: Path, tmp_path: Path) -> None:
    """Rewards 1, 0 and, without ids, 0: as of three responses; aborted, nobody judges it: as of two."""

    def right(prompt: Any, completion: str, task: Task) -> float:
        return float(completion == "A")

    found = {}
    for finish in (FinishReason.EMPTY, FinishReason.ABORTED):
        options: dict[str, Any] = {"choices": {"kl": "none"}, "completions_per_prompt": 3}
        loop = loop_of(start, tmp_path / finish, "rloo", rewards=[right], **options)
        source = source_of(loop)
        tokens = source.setup.encoder.tokens
        stop = max(source.setup.encoder.stop_ids)
        spoken = [tuple(tokens.ids(text)) for text in ("A", "B")]
        answers = [Completion((*ids, stop), (-1.0,) * (len(ids) + 1), ENDED) for ids in spoken]
        object.__setattr__(source.setup, "sampler", Sampler(Fixed([*answers, Completion((), (), finish)])))
        try:
            (batch,) = source.at(0)
        finally:
            loop.folder.close()
        found[finish] = [float(branch.columns["advantages"][0]) for branch in batch[0].branches]
        assert [line["reward"] for line in lines(tmp_path / finish, "rollouts.jsonl")[:3]][2] == (
            0.0 if finish is FinishReason.EMPTY else None
        )
    assert found == {FinishReason.EMPTY: [1.0, -0.5], FinishReason.ABORTED: [1.0, -1.0]}


# ---------------------------------------------------------------- groups without a signal


def test_groups_are_compared_before_their_length_is_punished(start: Path, tmp_path: Path) -> None:
    """Three right answers of 1, 5 and 6 of 6 tokens: length is all that differs, so the group is no other than tied."""

    def right(prompt: Any, completion: str, task: Task) -> float:
        return 1.0

    loop = loop_of(start, tmp_path / "run", "dapo", rewards=[right], overlong_share=0.5, completions_per_prompt=3)
    source = source_of(loop)
    answers = [Completion((66,) * size, (-1.0,) * size, CUT) for size in (1, 5, 6)]
    object.__setattr__(source.setup, "sampler", Sampler(Fixed(answers)))
    try:
        assert list(source.at(0)) == []
    finally:
        loop.folder.close()
    written = lines(tmp_path / "run", "rollouts.jsonl")
    assert [line["reward"] for line in written[:3]] == pytest.approx([1.0, 1 / 3, 0.0])
    assert [line["parts"]["overlong"] for line in written[:3]] == pytest.approx([0.0, -2 / 3, -1.0])
    assert len(written) == (1 + source.setup.stage.resample_rounds) * 3 * 3  # others were asked in their place
