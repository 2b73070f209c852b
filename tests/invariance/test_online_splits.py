"""Online losses: the same loss, gradient and metrics for every split, order and grouping, and a scalar oracle."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from posttrain.data.trees import collate, count
from posttrain.diagnostics.metrics import merge, values
from posttrain.losses.corrections import PUBLISHED
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
    **{name: variant(ONLINE["dapo"], **method.choices) for name, method in PUBLISHED.items()},
    # Bands that some of these ratios are out of.
    "masked": replace(
        everything := variant(ONLINE["grpo"], token_mask="ratio", sequence_mask="geometric", outliers="drop"),
        defaults={**everything.defaults, "token_low": 0.9, "geometric_high": 1.03, "outlier_high": 1.25},
    ),
    "variation": replace(
        bounded := variant(ONLINE["dapo"], token_mask="total_variation", correction="sequence_truncated"),
        defaults={**bounded.defaults, "variation_low": 0.05, "variation_high": 0.1},
    ),
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
    start = columns["sampler_logprobs" if row.proximal == "sampler" else "old_logprobs"]
    moved = [new - old for new, old in zip(own, start, strict=True)]
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
    gain *= correction(row, p, own, columns, t)
    penalty = 0.0
    if row.kl_place == "loss":
        r = own[t] - columns["reference_logprobs"][t]
        k3 = math.exp(-r) - 1 + r
        penalty = p["kl_beta"] * {"k2": r * r / 2, "k3": k3, "k3_corrected": math.exp(moved[t]) * k3}[row.kl]
    return -gain + penalty


def correction(row: OnlineRow, p: dict[str, float], own: list[float], columns: dict[str, list[float]], t: int) -> float:
    """What token t weighs for having been sampled by the engine: 0 where it is taken out."""
    trainer = own if row.proximal == "sampler" else columns["old_logprobs"]
    logs = [ours - theirs for ours, theirs in zip(trainer, columns["sampler_logprobs"], strict=True)]
    product, geometric = math.exp(sum(logs)), math.exp(sum(logs) / len(logs))
    change = math.exp(own[t]) - math.exp(columns["sampler_logprobs"][t])
    advantage = columns["advantages"][t]
    out = {
        "token_mask": {
            "none": lambda: False,
            "ratio": lambda: not p["token_low"] <= math.exp(logs[t]) <= p["token_high"],
            "total_variation": lambda: (
                change > p["variation_high"] if advantage > 0 else -change > p["variation_low"] and advantage < 0
            ),
        }[row.token_mask](),
        "sequence_mask": {
            "none": lambda: False,
            "geometric": lambda: not p["geometric_low"] <= geometric <= p["geometric_high"],
            "product": lambda: not p["product_low"] <= product <= p["product_high"],
        }[row.sequence_mask](),
        "outliers": row.outliers == "drop"
        and not all(p["outlier_low"] <= math.exp(log) <= p["outlier_high"] for log in logs),
    }
    if any(out.values()):
        return 0.0
    weights = {"none": lambda: 1.0, "truncated": lambda: math.exp(logs[t]), "sequence_truncated": lambda: product}
    return min(weights[row.correction](), p.get("importance_cap", math.inf))


@pytest.mark.parametrize("name", ["masked", "variation"])
def test_the_rows_that_mask_take_some_tokens_out_and_leave_some(name: str) -> None:
    measured = [values(of_step(ROWS[name], *random_groups(3, 4, seed=seed))[0].metrics) for seed in range(3)]
    for column in (key for key in measured[0] if key.startswith("masked_by_")):
        assert 0 < sum(one[column] for one in measured) < 3, column


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ROWS)
def test_scalar_oracle(name: str, seed: int) -> None:
    trees, logprobs = random_groups(3, 4, seed=seed)
    assert of_step(ROWS[name], trees, logprobs)[0].loss.item() == pytest.approx(oracle(name, trees, logprobs))
