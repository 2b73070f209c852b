"""A completion with a hole (a tool's tokens among the policy's) trains the policy's tokens as rows do, and no other."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from posttrain.config.online import Online
from posttrain.data.trees import collate
from posttrain.losses.policy import policy_loss
from posttrain.models.tree.logprobs import Policy
from posttrain.rewards.rubric import Scored
from posttrain.rollout.engine import Completion, FinishReason, Versions
from posttrain.rollout.turns import completion_tree
from posttrain.training.rl.learners import Distillation, Imitation, KLWeight, Pairs, PolicyGradient
from posttrain.training.rl.metrics import rollout_metrics
from posttrain.training.rl.rollouts import Group, Prompt, Response, Rollout, decide, fill
from posttrain.types import Message, RowRef, Task
from tests.fixtures import tiny_model
from tests.online import lines, loop_of, run, save_start

PROMPT = (1, 70, 71)
IDS = ((52, 90, 91, 53, 2), (54, 55, 92, 2), (60, 2))
HOLES = ((True, False, False, True, True), (True, True, False, True), (True, True))
PLAIN = tuple((True,) * len(ids) for ids in IDS)
REWARDS = (1.0, 0.0, 0.25)
NAN = float("nan")


def response(ids: tuple[int, ...], trains: tuple[bool, ...], reward: float, versions: Versions) -> Response:
    logprobs = tuple(-0.5 - 0.25 * place if own else NAN for place, own in enumerate(trains))
    completion = Completion(ids, logprobs, FinishReason.STOP_TOKEN, versions, trains)
    return Response(completion, "", Scored(reward), reward)


def rollout_of(masks: tuple[tuple[bool, ...], ...] = HOLES, version: int = 3) -> Rollout:
    task = Task((Message("user", "?"),), answer="4", row=RowRef("tasks.jsonl", 1))
    own = [Versions(version - place, version) for place in range(len(IDS))]
    responses = [response(*given) for given in zip(IDS, masks, REWARDS, own, strict=True)]
    rollout = Rollout((Group(Prompt(task, PROMPT, 0), tuple(responses)),), version + 1, version)
    decide(rollout.groups, drop_truncated=False)
    return rollout


def wide_policy(**options: Any) -> Policy:
    return Policy(tiny_model(dtype=torch.float64), **options)


def row_logprobs(policy: Policy, ids: tuple[int, ...]) -> torch.Tensor:
    """Log-probs of every id after the prompt, from one ordinary row."""
    logits = policy.model(input_ids=torch.tensor([[*PROMPT, *ids]]), use_cache=False).logits[0]
    logprobs = torch.log_softmax(logits[len(PROMPT) - 1 : -1], dim=-1)
    return logprobs.gather(1, torch.tensor(ids)[:, None])[:, 0]


def gradient(policy: Policy) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.grad is not None])


def test_the_gradient_is_that_of_rows_in_which_the_hole_has_none() -> None:
    """DAPO's first update by hand: - advantage x log-prob, over the sampled tokens and divided by their number."""
    stage = Online("dapo", data="tasks.jsonl", rewards=[{"kind": "math"}], sampling={"max_new_tokens": 8})
    policy, rollout = wide_policy(), rollout_of()
    (trees,) = PolicyGradient(stage, policy, KLWeight(0.0), 64).trees(rollout, rollout.groups)
    batch = collate(trees)
    assert batch.count.tokens == sum(map(sum, HOLES))
    policy_loss(stage.row, stage.parameters, policy(batch), batch, batch.count, on_policy=True).loss.backward()
    ours = gradient(policy)

    def by_rows(masks: tuple[tuple[bool, ...], ...]) -> torch.Tensor:
        other = wide_policy()
        centred = torch.tensor(REWARDS, dtype=torch.float64) - sum(REWARDS) / 3
        advantages = [float(rollout.groups[0].responses[k].columns["advantages"][0]) for k in range(3)]
        assert advantages == pytest.approx((centred / centred.std()).tolist(), rel=1e-3)
        total = sum(
            -advantage * row_logprobs(other, ids)[list(mask)].sum()
            for advantage, ids, mask in zip(advantages, IDS, masks, strict=True)
        )
        (total / sum(map(sum, masks))).backward()  # type: ignore[union-attr]
        return gradient(other)

    assert float((ours - by_rows(HOLES)).norm() / ours.norm()) < 1e-6
    assert float((ours - by_rows(PLAIN)).norm() / ours.norm()) > 0.1


def test_log_probs_are_asked_for_where_the_policy_sampled() -> None:
    rollout, policy, sizes = rollout_of(), wide_policy(), []

    def logprobs(batch: Any) -> torch.Tensor:
        values_N = policy(batch).logprobs_N
        sizes.append(len(values_N))
        return values_N

    fill(rollout, "old_logprobs", logprobs, 64, policy.device)
    assert sum(sizes) == sum(map(sum, HOLES))
    for answer in rollout.responses:
        column, own = answer.columns["old_logprobs"], answer.mask
        expected = row_logprobs(policy, answer.completion.ids).detach().numpy()
        np.testing.assert_allclose(column[own], expected[own], atol=1e-9)
        assert np.isnan(column[~own]).all()


def test_what_stands_in_a_hole_is_in_no_figure() -> None:
    rollout = rollout_of()
    for answer in rollout.responses:
        sampled = answer.columns["sampler_logprobs"]
        answer.columns["reference_logprobs"] = np.where(answer.mask, sampled - 0.5, 1e9).astype(np.float32)
    assert rollout.sequence_kl("sampler_logprobs", "reference_logprobs") == pytest.approx(0.5 * 8 / 3)
    _, _, mask_BL = rollout.padded()
    assert mask_BL.tolist() == [[*mask, *[False] * (5 - len(mask))] for mask in HOLES]
    assert torch.equal(rollout.judged(), mask_BL)
    assert torch.equal(rollout.column("reference_logprobs") != 0, mask_BL)
    metrics = rollout_metrics(rollout)
    assert metrics["entropy_sampled"] == pytest.approx(
        -sum(sum(a.completion.sampled_logprobs) for a in rollout.responses) / 8
    )
    assert metrics["length_sampled"] == 8 / 3
    assert all(math.isfinite(value) for value in metrics.values())


def test_advantages_pass_over_a_hole() -> None:
    """GAE's next state after the last token before a hole is the first after it; holes carry nothing."""
    rollout = rollout_of()
    values = {0: [0.1, NAN, NAN, 0.4, 0.3], 1: [0.2, 0.6, NAN, 0.5], 2: [0.7, 0.2]}
    for place, answer in enumerate(rollout.responses):
        answer.columns["values"] = np.array(values[place], dtype=np.float32)
    from posttrain import advantages as credit

    rewards_B, group_B, mask_BL = rollout.padded()
    given = credit.Rollout(rewards_B, group_B, mask_BL, values_BL=rollout.column("values"))
    assigned = credit.advantages("gae", given, gamma=0.9, lam=0.8)
    returns = assigned.returns_BL
    assert returns is not None
    last = 1.0 - 0.3
    middle = 0.9 * 0.3 - 0.4 + 0.9 * 0.8 * last
    first = 0.9 * 0.4 - 0.1 + 0.9 * 0.8 * middle
    assert returns[0].tolist() == pytest.approx([first + 0.1, 0.0, 0.0, middle + 0.4, last + 0.3], abs=1e-5)
    rollout.put("returns", returns)
    assert np.isnan(rollout.responses[0].columns["returns"][1:3]).all()


@pytest.mark.parametrize(
    "learner", [Pairs(0.1), Imitation(0.0, None), Distillation(64)], ids=lambda one: type(one).__name__
)
def test_every_learner_s_trees_have_the_hole(learner: Any) -> None:
    rollout = rollout_of()
    masks = dict(zip(IDS, HOLES, strict=True))
    trees = [tree for own in learner.trees(rollout, rollout.groups) for tree in own]
    branches = [branch for tree in trees for branch in tree.branches]
    assert len(branches) >= 2
    for branch in branches:
        assert branch.loss_mask.tolist() == list(masks[tuple(branch.ids.tolist())])


def test_a_completion_of_a_tool_alone_has_nothing_to_train() -> None:
    rollout = rollout_of(((False,) * 5, HOLES[1], HOLES[2]))
    assert [answer.trains for answer in rollout.responses] == [False, True, True]
    with pytest.raises(ValueError, match="no ids"):
        completion_tree(PROMPT, [rollout.responses[0].completion], RowRef("tasks.jsonl", 1))


def test_lengths_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="mask of 2"):
        Completion((1, 2, 3), (-1.0,) * 3, FinishReason.LENGTH, trains=(True, False))
    with pytest.raises(ValueError, match="2 log-probs"):
        Completion((1, 2, 3), (-1.0,) * 2, FinishReason.LENGTH)


# ---------------------------------------------------------------- how old the weights were


def test_staleness_is_counted_from_the_oldest_weights() -> None:
    rollout = rollout_of(version=7)
    assert rollout.staleness == [0, 1, 2]
    assert rollout_metrics(rollout)["staleness"] == 1.0
    assert rollout_metrics(replace(rollout, version=9))["staleness"] == 3.0


def test_a_line_of_the_rollouts_says_versions_and_mask() -> None:
    written = json.dumps([line.to_json() for line in rollout_of(version=7).records()])
    first, second, _ = json.loads(written.replace("NaN", "null"))
    assert (first["versions"], second["versions"]) == ([7, 7], [6, 7])
    assert first["version"] == 7 and first["mask"] == list(HOLES[0])
    assert first["sampler_logprobs"] == [-0.5, None, None, -1.25, -1.5]


def test_every_step_of_a_run_says_its_staleness(tmp_path: Path) -> None:
    """0: sampling and training take turns."""
    loop = run(loop_of(save_start(tmp_path / "start"), tmp_path / "run", steps=2, held_out=0))
    assert [record.values["staleness"] for record in loop.folder.metrics("train")] == [0.0, 0.0]
    written = lines(tmp_path / "run", "rollouts.jsonl")
    assert {(line["step"], *line["versions"]) for line in written} == {(1, 0, 0), (2, 1, 1)}
