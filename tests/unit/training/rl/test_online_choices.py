"""Every row with every choice: refused when it is read, or it takes a step; and no step says a wrong reason.

The product of all rows, groups, places of a KL, shapings, truncations and numbers of completions, each on a rollout of
right, wrong and cut completions, through the learner and the loss.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from posttrain.config import parse_recipe
from posttrain.config.online import Online, OnlineStage
from posttrain.data.trees import collate
from posttrain.diagnostics.metrics import values
from posttrain.errors import ConfigError
from posttrain.losses.kl import KLWeight
from posttrain.losses.online import ONLINE
from posttrain.losses.policy import policy_loss
from posttrain.outputs import TokenLogprobs
from posttrain.rewards.rubric import Scored
from posttrain.rollout.engine import Completion, FinishReason
from posttrain.training.rl.learners import Imitation, Pairs, PolicyGradient
from posttrain.training.rl.rollouts import Group, Prompt, Response, Rollout, decide
from posttrain.training.rl.source import _overlong, why_nothing
from posttrain.types import Batch, Message, RowRef, Task

LIMIT = 6
KL_OF = {"none": "none", "loss": "k3", "reward": "k1"}


class Told:
    """A model that finds each token a little less likely than the engine does."""

    kind = "live"

    def logprobs(self, batch: Batch, *, temperature: float = 1.0) -> torch.Tensor:
        return torch.full((batch.count.tokens,), -1.3)

    def model(self, batch: Batch) -> torch.Tensor:
        return torch.zeros(batch.count.tokens)

    part: Any = None


def response(number: int, reward: float | None, *, cut: bool) -> Response:
    ids = tuple(range(7, 7 + LIMIT)) if cut else (7 + number, 9, 2)
    finish = FinishReason.LENGTH if cut else FinishReason.STOP_TOKEN
    return Response(Completion(ids, (-1.0,) * len(ids), finish), "", Scored(reward), reward)


def rollout_of(groups: Sequence[Sequence[Response]], *, drop: bool = False) -> Rollout:
    made = []
    for number, responses in enumerate(groups):
        task = Task((Message("user", "?"),), answer="4", row=RowRef("tasks.jsonl", number + 1))
        made.append(Group(Prompt(task, (1, 5 + number), number), tuple(responses)))
    decide(made, drop_truncated=drop)
    return Rollout(tuple(made), 1, 0)


def refused(row: Any, groups: str, place: str, shaping: str, completions: int) -> bool:
    compares = row.advantage not in ("gae", "batch_whiten", "teacher")
    alone = completions < 2 and (compares or groups != "keep")
    other_rewards = place == "reward" or shaping != "none"
    binary = row.advantage == "maxrl" and other_rewards
    without = row.advantage == "teacher" and (other_rewards or groups != "keep")
    return alone or binary or without


def one_step(stage: OnlineStage) -> dict[str, float]:
    """The first step of a stage on four prompts; its metrics."""
    each = stage.completions_per_prompt
    rewards = [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]]
    answers = [[response(k, own[k], cut=k == 1 and not n) for k in range(each)] for n, own in enumerate(rewards)]
    rollout = rollout_of(answers, drop=stage.truncated == "drop")
    _overlong(rollout.groups, stage)
    kept = [group for group in rollout.groups if stage.tied_groups == "keep" or not group.tied]
    policy: Any = SimpleNamespace(device=torch.device("cpu"), is_sharded=False)
    learner = PolicyGradient(
        stage,
        policy,
        KLWeight(stage.parameters.get("kl_beta", 0.0)),
        64,
        Told() if stage.row.needs_reference else None,
        Told() if stage.row.needs_values else None,
        Told() if stage.row.needs_teacher else None,
    )
    trees = [tree for parts in learner.trees(rollout, kept) for tree in parts]
    assert trees, "groups with a signal are there"
    batch = collate(trees)
    logprobs_N = torch.full((batch.count.tokens,), -1.0, requires_grad=True)
    out = policy_loss(stage.row, stage.parameters, TokenLogprobs(logprobs_N), batch, batch.count, on_policy=True)
    out.loss.backward()
    return {**values(out.metrics), **learner.end_of_step({})}


@pytest.mark.parametrize("method", ONLINE)
def test_a_combination_is_refused_when_it_is_read_or_takes_a_step(method: str) -> None:
    row, taken = ONLINE[method], 0
    given = {"teacher": "embedded"} if row.needs_teacher else {}
    product = itertools.product(
        ("keep", "drop", "resample"), KL_OF, ("none", "soft_overlong"), ("keep", "drop"), (1, 2)
    )
    for groups, place, shaping, truncated, completions in product:
        choices = {"groups": groups, "kl": KL_OF[place], "kl_place": place, "shaping": shaping}
        options: dict[str, Any] = {"truncated": truncated, "completions_per_prompt": completions, "choices": choices}
        options["sampling"] = {"max_new_tokens": LIMIT}
        if refused(row, groups, place, shaping, completions):
            with pytest.raises(ConfigError) as caught:
                Online(method, **options, **given)
            assert caught.value.remedy
            continue
        stage = Online(method, **options, **given)
        assert isinstance(stage, OnlineStage)
        found = one_step(stage)
        taken += 1
        assert found["policy_slope"] > 0 and found["advantage_magnitude"] > 0, choices
    assert taken >= 4


# ---------------------------------------------------------------- each refusal, and that its remedy works

REFUSED: list[tuple[str, dict[str, Any], str, str, dict[str, Any]]] = [
    (
        "ppo",
        {"completions_per_prompt": 1, "choices": {"groups": "drop"}},
        "those of a single completion always are",
        "`completions_per_prompt: 8`",
        {"completions_per_prompt": 8, "choices": {"groups": "drop"}},
    ),
    (
        "reinforce_pp",
        {"completions_per_prompt": 1, "choices": {"groups": "resample"}},
        "those of a single completion always are",
        "`choices: {groups: keep}`",
        {"completions_per_prompt": 1, "choices": {"groups": "keep"}},
    ),
    (
        "maxrl",
        {"choices": {"kl": "k1", "kl_place": "reward"}},
        "rewards of 0 and 1",
        "`choices: {kl: k3_corrected, kl_place: loss}`",
        {"choices": {"kl": "k3_corrected", "kl_place": "loss"}},
    ),
    (
        "maxrl",
        {"choices": {"shaping": "soft_overlong"}},
        "`shaping: soft_overlong` makes others",
        "`choices: {shaping: none}`",
        {"choices": {"shaping": "none"}},
    ),
    (
        "reinforce_pp",
        {"prompts_per_step": 1, "completions_per_prompt": 1},
        "a step of one has no other",
        "`prompts_per_step: 16`",
        {"prompts_per_step": 16, "completions_per_prompt": 1},
    ),
    ("grpo", {"kl_target": 3.0, "kl_beta": 0.0}, "0 stays 0", "`kl_beta: 0.01`", {"kl_target": 3.0, "kl_beta": 0.01}),
    (
        "online_dpo",
        {"sampling": {"top_k": 1}},
        "top_k 1 draws the same",
        "`sampling: {top_k: null}`",
        {"sampling": {"top_k": None}},
    ),
    ("rft", {"sampling": {"min_p": 1.0}}, "min_p 1 draws", "`sampling: {min_p: 0.0}`", {"sampling": {"min_p": 0.0}}),
    ("rft", {"stop": {"kl_above": 3.0}}, "this method measures none", "leave `kl_above` out", {}),
]


@pytest.mark.parametrize(("method", "options", "words", "remedy", "mended"), REFUSED)
def test_a_refusal_says_what_to_write_and_that_is_accepted(
    method: str, options: dict[str, Any], words: str, remedy: str, mended: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        Online(method, **options)
    assert remedy in caught.value.remedy
    Online(method, **mended)


@pytest.mark.parametrize(
    "choices", [{"groups": "drop"}, {"shaping": "soft_overlong"}, {"kl": "k1", "kl_place": "reward"}]
)
def test_a_teacher_has_no_rewards_to_look_at(choices: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="learns from a teacher and has no rewards"):
        Online("distil_reverse_kl", teacher="embedded", choices=choices)


@pytest.mark.parametrize("key", ["curriculum: {kind: pass_rate}", "stop: {patience: 2}", "stop: {target_score: 0.5}"])
def test_what_waits_for_rewards_needs_some(key: str) -> None:
    stage = "{method: gkd, teacher: embedded, data: package://tasks.jsonl, KEY}"
    text = f"schema: 1\nname: a\nmodel: embedded\nstages:\n  - {stage}\n"
    with pytest.raises(ConfigError, match="nothing rewards a completion of `gkd`") as caught:
        parse_recipe(text.replace("KEY", key))
    name = key.partition(":")[0]
    assert f"`{name}" in caught.value.remedy
    parse_recipe(text.replace("KEY", f"{key}, rewards: [{{kind: math}}]"))


# ---------------------------------------------------------------- the reason of a step without an update


def test_the_reason_is_what_became_of_the_completions() -> None:
    usual = "no group has a signal (the rewards of each are all equal)"

    def why(groups: list[list[Response]], *, drop: bool = True) -> str:
        rollout = rollout_of(groups, drop=drop)
        return why_nothing(rollout, [group for group in rollout.groups if not group.tied], usual)

    cut_right, cut_wrong = (response(0, reward, cut=True) for reward in (1.0, 0.0))
    whole_right, other_right = response(0, 1.0, cut=False), response(1, 1.0, cut=False)
    assert why([[cut_right, cut_wrong]]).startswith("each of the 2 completions was cut at `sampling.max_new_tokens`")
    assert why([[whole_right, other_right]]) == usual
    mixed = why([[whole_right, other_right], [cut_right, cut_wrong]])
    assert "1 of 2 groups have no signal" in mixed and "every completion of the others was cut" in mixed
    some = why([[whole_right, other_right], [whole_right, cut_right]])
    assert some.startswith(usual) and "1 of 4 completions were cut" in some
    assert "abstained" in why([[response(0, None, cut=False)]])


def test_a_pair_says_by_how_much_it_is_better_where_the_objective_asks() -> None:
    rollout = rollout_of([[response(0, 0.75, cut=False), response(1, 0.25, cut=False)]])
    assert Pairs(0.0).trees(rollout, rollout.groups)[0][0].margin is None
    assert Pairs(0.0, annotated=True).trees(rollout, rollout.groups)[0][0].margin == 0.5


def test_a_pair_of_the_same_ids_is_none() -> None:
    rollout = rollout_of([[response(0, 1.0, cut=False), response(0, 0.0, cut=False)]])
    assert Pairs(0.0).trees(rollout, rollout.groups) == []
    assert len(Imitation(1.0, None).trees(rollout, rollout.groups)) == 1
