"""Online losses: the same loss, gradient and metrics for every split, order and grouping, and a scalar oracle."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from posttrain.data.trees import collate, count
from posttrain.diagnostics.metrics import merge, values
from posttrain.losses.online import ONLINE, OnlineRow, variant
from posttrain.outputs import LossOutput
from posttrain.types import TokenTree
from tests.online_batches import of_step, random_groups, run

SPLITS = ([[0], [1], [2], [3]], [[0, 1, 2], [3]], [[3, 0], [2, 1]])
ROWS: dict[str, OnlineRow] = {
    **ONLINE,
    "grpo_k2": variant(ONLINE["grpo"], kl="k2"),
    "grpo_corrected": variant(ONLINE["grpo"], kl="k3_corrected", correction="truncated"),
    "dual_clip": variant(ONLINE["dapo"], surrogate="dual_clip"),
}


def in_parts(
    row: OnlineRow, trees: list[TokenTree], logprobs: list[Tensor], split: list[list[int]]
) -> tuple[list[LossOutput], list[Tensor]]:
    leaves = [each.clone().requires_grad_() for each in logprobs]
    outputs = []
    for micro in split:
        out = run(row, torch.cat([leaves[i] for i in micro]), collate([trees[i] for i in micro]), count(trees))
        out.loss.backward()
        outputs.append(out)
    return outputs, [leaf.grad for leaf in leaves if leaf.grad is not None]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", ROWS)
def test_a_step_is_the_same_however_it_is_cut(name: str, split: list[list[int]]) -> None:
    trees, logprobs = random_groups(4, 3)
    whole, gradient = of_step(ROWS[name], trees, logprobs)
    outputs, gradients = in_parts(ROWS[name], trees, logprobs, split)
    assert sum(out.loss.item() for out in outputs) == pytest.approx(whole.loss.item())
    torch.testing.assert_close(torch.cat(gradients), gradient)
    assert values(merge(out.metrics for out in outputs)) == pytest.approx(values(whole.metrics))


@pytest.mark.parametrize("name", ROWS)
def test_the_order_of_groups_is_nothing(name: str) -> None:
    trees, logprobs = random_groups(4, 3)
    whole, gradient = of_step(ROWS[name], trees, logprobs)
    order = [2, 0, 3, 1]
    moved, moved_gradient = of_step(ROWS[name], [trees[i] for i in order], [logprobs[i] for i in order])
    assert moved.loss.item() == pytest.approx(whole.loss.item())
    back = torch.split(moved_gradient, [len(logprobs[i]) for i in order])
    torch.testing.assert_close(torch.cat([back[order.index(i)] for i in range(4)]), gradient)


# ---------------------------------------------------------------- a scalar oracle, written from the papers


def oracle(name: str, trees: list[TokenTree], logprobs: list[Tensor]) -> float:
    """The objective as nested loops over responses and tokens."""
    row, responses = ROWS[name], []
    for tree, logprob in zip(trees, logprobs, strict=True):
        taken = 0
        for branch in tree.branches:
            own = logprob[taken : taken + len(branch.ids)].tolist()
            taken += len(own)
            columns = {key: column.tolist() for key, column in branch.columns.items()}
            responses.append((own, columns))
    p = row.defaults
    per_response = [[token(row, p, own, columns, t) for t in range(len(own))] for own, columns in responses]
    lengths = [len(own) for own in per_response]
    if row.reduction == "token_mean":
        return sum(map(sum, per_response)) / sum(lengths)
    over = {"sequence_mean": lengths, "sequence_sum": [1] * len(lengths)}.get(row.reduction)
    over = over or [int(p["constant_length"])] * len(lengths)
    return sum(sum(own) / by for own, by in zip(per_response, over, strict=True)) / len(lengths)


def token(row: OnlineRow, p: object, own: list[float], columns: dict[str, list[float]], t: int) -> float:
    assert isinstance(p, dict)
    moved = [new - old for new, old in zip(own, columns["old_logprobs"], strict=True)]
    ratio = {"token": math.exp(moved[t]), "none": 1.0}.get(row.ratio, math.exp(sum(moved) / len(moved)))
    advantage = columns["advantages"][t]
    if row.surrogate == "soft_gate":
        tau = p["gate_positive"] if advantage > 0 else p["gate_negative"]
        gain = advantage * 4 / tau / (1 + math.exp(-tau * (ratio - 1)))
    elif row.surrogate == "reinforce":
        gain = ratio * advantage * own[t]
    else:
        cut = min(max(ratio, 1 - p["clip_low"]), 1 + p["clip_high"])
        if row.surrogate == "clipped_weight":
            gain = cut * advantage * own[t]
        else:
            gain = min(ratio * advantage, cut * advantage)
            if row.surrogate == "dual_clip" and advantage < 0:
                gain = max(gain, p["dual_clip"] * advantage)
    if row.correction == "truncated":
        gap = columns["old_logprobs"][t] - columns["sampler_logprobs"][t]
        gain *= min(math.exp(gap), p["importance_cap"])
    penalty = 0.0
    if row.kl_place == "loss":
        r = own[t] - columns["reference_logprobs"][t]
        k3 = math.exp(-r) - 1 + r
        penalty = p["kl_beta"] * {"k2": r * r / 2, "k3": k3, "k3_corrected": math.exp(moved[t]) * k3}[row.kl]
    return -gain + penalty


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ROWS)
def test_scalar_oracle(name: str, seed: int) -> None:
    trees, logprobs = random_groups(3, 4, seed=seed)
    assert of_step(ROWS[name], trees, logprobs)[0].loss.item() == pytest.approx(oracle(name, trees, logprobs))
