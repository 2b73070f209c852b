"""Losses of reward models: hand-worked numbers, gradients against finite differences, and what must change nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.data.trees import collate, count
from posttrain.errors import ConfigError, DataError, UnknownKeyError
from posttrain.losses.reward import OBJECTIVES, fit_normalisation, reward_loss
from posttrain.losses.reward_rule import RewardRule, aggregate_steps, combine
from posttrain.outputs import Deviation, LossOutput, Scores
from posttrain.types import Batch, RowRef, TokenTree
from tests.fixtures import make_tree

LN2 = math.log(2)


def lists(*sizes: int, scores: Any = None, margins: Any = None, source: str = "test.jsonl") -> Batch:
    """Trees with so many responses; response i of a tree has i + 1 tokens."""
    trees: list[TokenTree] = []
    for index, size in enumerate(sizes):
        tree = make_tree(
            [1, 2, index],
            *([5] * (i + 1) for i in range(size)),
            margin=margins[index] if margins else None,
            scores=scores[index] if scores else None,
            row=index + 1,
        )
        trees.append(replace(tree, row=RowRef(source, index + 1)))
    return collate(trees)


def loss_of(rewards: Any, batch: Batch, name: str = "bradley_terry", rule: RewardRule | None = None, **p: float) -> Any:
    values = rewards if isinstance(rewards, Tensor) else torch.tensor(rewards, dtype=torch.float64)
    scores_BH = values if values.ndim == 2 else values[:, None]
    return reward_loss(name, OBJECTIVES[name].resolve(p), rule or RewardRule(), Scores(scores_BH), batch, batch.count)


# ---------------------------------------------------------------- numbers


def test_bradley_terry_by_hand() -> None:
    # log(1 + e^-1) = 0.313262, log(1 + e^1) = 1.313262
    assert float(loss_of([1.5, 0.5], lists(2)).loss) == pytest.approx(0.313262, abs=1e-6)
    assert float(loss_of([0.5, 1.5], lists(2)).loss) == pytest.approx(1.313262, abs=1e-6)
    assert float(loss_of([1.5, 0.5, 0.5, 1.5], lists(2, 2)).loss) == pytest.approx(0.813262, abs=1e-6)


def test_margin_smoothing_and_centring_by_hand() -> None:
    batch = lists(2, margins=[3.0])
    # margin 0.5 * 3: log(1 + e^(1.5 - 1)) = 0.974077
    assert float(loss_of([1.5, 0.5], batch, margin_scale=0.5).loss) == pytest.approx(0.974077, abs=1e-6)
    # 0.9 * 0.313262 + 0.1 * 1.313262
    assert float(loss_of([1.5, 0.5], batch, label_smoothing=0.1).loss) == pytest.approx(0.413262, abs=1e-6)
    # 0.313262 + 0.01 * (1.5 + 0.5)^2
    out = loss_of([1.5, 0.5], batch, centre=0.01)
    assert float(out.loss.detach()) == pytest.approx(0.353262, abs=1e-6)
    assert out.metrics["centre_loss"].value == pytest.approx(4.0)


def test_a_list_is_the_mean_over_its_pairs() -> None:
    # differences 1, 3, 2: (0.313262 + 0.048587 + 0.126928) / 3
    assert float(loss_of([3.0, 2.0, 0.0], lists(3)).loss) == pytest.approx(0.162926, abs=1e-6)


def test_responses_scored_alike_are_no_pair() -> None:
    batch = lists(3, 2, scores=[(3.0, 1.0, 1.0), (1.0, 1.0)])  # a pair of equal scores is kept on purpose
    rewards = torch.tensor([0.0, 2.0, 5.0, 1.0, 0.0], dtype=torch.float64, requires_grad=True)
    out = loss_of(rewards, batch)
    of_list = (math.log1p(math.exp(2)) + math.log1p(math.exp(5))) / 2  # best against each of the others
    assert float(out.loss.detach()) == pytest.approx((of_list + math.log1p(math.exp(-1))) / 2)
    (gradient,) = torch.autograd.grad(out.loss, rewards)
    slopes = [1 / (1 + math.exp(-lead)) / 4 for lead in (2, 5)]
    assert gradient[:3].tolist() == pytest.approx([-sum(slopes), *slopes])
    assert out.metrics["reward_accuracy"].value == pytest.approx(0.5)
    assert out.metrics["reward_margin"].value == pytest.approx((-3.5 + 1) / 2)
    assert loss_of(rewards.detach(), batch, centre=1.0).metrics["centre_loss"].value == pytest.approx(
        ((4 + 25) / 2 + 1) / 2
    )


def test_accuracy_is_a_mean_over_what_has_pairs() -> None:
    level = lists(2, 3, scores=[(2.0, 1.0), (1.0, 1.0, 1.0)])  # the list says nothing of any two
    out = loss_of([1.0, 0.0, 1.0, 2.0, 3.0], level)
    assert out.metrics["reward_accuracy"].value == 1.0 and out.metrics["reward_margin"].value == 1.0
    assert float(out.loss) == pytest.approx(0.313262 / 2, abs=1e-6)  # a mean over the step's lists, whatever they say
    singles = lists(1, 1, scores=[(2.0,), (1.0,)])
    out = loss_of([1.0, 1.0], singles, "regression")
    assert float(out.loss) == pytest.approx(0.5)
    assert math.isnan(out.metrics["reward_accuracy"].value)
    mixed = loss_of([1.0, 0.0, 3.0], lists(2, 1, scores=[(2.0, 1.0), (1.0,)]), "regression")
    assert mixed.metrics["reward_accuracy"].value == 1.0


def test_one_ranking_of_ties_is_refused() -> None:
    with pytest.raises(DataError) as caught:
        loss_of([0.0] * 5, lists(2, 3, scores=[(1.0, 1.0), (3.0, 1.0, 1.0)]), "plackett_luce")
    said = str(caught.value)
    assert "row 2" in said and "3, 1, 1" in said and "bradley_terry" in said
    assert float(loss_of([0.0] * 2, lists(2, scores=[(1.0, 1.0)]), "plackett_luce").loss) == pytest.approx(LN2)


def test_plackett_luce_by_hand() -> None:
    # rewards ln 3, ln 2, ln 1: P = 3/6 * 2/3 = 1/3
    rewards = [math.log(3), math.log(2), 0.0]
    assert float(loss_of(rewards, lists(3), "plackett_luce").loss) == pytest.approx(math.log(3))
    assert float(loss_of([0.0] * 4, lists(4), "plackett_luce").loss) == pytest.approx(math.log(24))


def test_plackett_luce_of_two_is_bradley_terry() -> None:
    batch, rewards = lists(2, 2), torch.randn(4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    listed, paired = loss_of(rewards, batch, "plackett_luce").loss, loss_of(rewards, batch).loss
    assert float(listed) == pytest.approx(float(paired), abs=1e-12)


def test_regression_by_hand() -> None:
    batch = lists(2, 3, scores=[(4.0, 1.0), (3.0, 2.0, 1.0)])
    out = loss_of([4.0, 2.0, 3.0, 4.0, 1.0], batch, "regression")
    assert float(out.loss.detach()) == pytest.approx((0 + 1 + 0 + 4 + 0) / 5)
    assert out.metrics["regression_error"].value == pytest.approx(3 / 5)


def test_metrics_by_hand() -> None:
    out = loss_of([1.0, 0.0, 0.5, 0.5, 3.0, 4.0, 1.0], lists(2, 2, 3))
    # accuracy: 1, a tie 1/2, of the pairs (3,4) (3,1) (4,1) two
    assert out.metrics["reward_accuracy"].value == pytest.approx((1 + 0.5 + 2 / 3) / 3)
    assert out.metrics["rewards_chosen"].value == pytest.approx(4.5 / 3)
    assert out.metrics["rewards_rejected"].value == pytest.approx((0 + 0.5 + 2.5) / 3)
    assert out.metrics["reward_mean"].value == pytest.approx(10 / 7)
    spread = torch.tensor([1.0, 0.0, 0.5, 0.5, 3.0, 4.0, 1.0]).std(correction=0)
    assert out.metrics["reward_std"].value == pytest.approx(float(spread))
    assert out.per_tree["tokens_rejected"].tolist() == [2.0, 2.0, 2.5]
    for side in ("chosen", "rejected"):
        mean = sum(out.per_tree[f"tokens_{side}"].tolist()) / 3
        assert out.metrics[f"length_{side}"].value == pytest.approx(mean)
    assert out.per_branch["reward"].tolist() == [1.0, 0.0, 0.5, 0.5, 3.0, 4.0, 1.0]


def test_a_deviation_merges_as_if_counted_at_once() -> None:
    values = torch.randn(50, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 1000
    parts = [Deviation(len(v), v.mean(), (v - v.mean()).square().sum()) for v in values.split([7, 1, 30, 12])]
    merged = parts[0].merge(parts[1]).merge(parts[2]).merge(parts[3])
    assert merged.value == pytest.approx(float(values.std(correction=0)), rel=1e-12)


# ---------------------------------------------------------------- outputs to rewards


def test_ensembles_by_hand() -> None:
    scores = torch.tensor([[1.0, 3.0], [2.0, 2.0]])
    assert combine(scores, "mean").tolist() == [2.0, 2.0]
    assert combine(scores, "worst").tolist() == [1.0, 2.0]
    assert combine(scores, "mean_minus_std", 0.5).tolist() == [1.5, 2.0]


def test_steps_by_hand() -> None:
    steps, branch = torch.tensor([[0.0], [2.0], [-1.0], [1.0]]), torch.tensor([0, 0, 0, 1])
    assert aggregate_steps(steps, branch, 2, "min").flatten().tolist() == [-1.0, 1.0]
    assert aggregate_steps(steps, branch, 2, "last").flatten().tolist() == [-1.0, 1.0]
    product = 0.5 * 0.880797 * 0.268941
    assert aggregate_steps(steps, branch, 2, "product").flatten().tolist() == pytest.approx(
        [math.log(product), math.log(0.731059)], abs=1e-5
    )


def test_length_correction_by_hand() -> None:
    rule = RewardRule(length_offset=3.0, length_penalty=0.1, length_target=4.0)
    rewards = rule.rewards(torch.tensor([[7.0], [7.0]]), torch.tensor([4.0, 11.0]))
    assert rewards.tolist() == pytest.approx([1.0, 0.5 - 0.7])
    # in training, the quotient alone: branches of 1 and 2 tokens
    out = loss_of([4.0, 2.5], lists(2), rule=rule)
    assert float(out.loss.detach()) == pytest.approx(math.log1p(math.exp(-(4.0 / 4 - 2.5 / 5))), abs=1e-6)


def test_attributes_are_mixed_and_trained_apart() -> None:
    rule = RewardRule(heads=("kind", "right"), files=(("kind*",), ("right.jsonl",)), weights=(0.25, 0.75))
    scores = torch.tensor([[1.0, 5.0], [0.0, 9.0]], dtype=torch.float64, requires_grad=True)
    assert rule.mixed(scores).tolist() == pytest.approx([4.0, 6.75])
    assert rule.mixed(scores, "kind").tolist() == [1.0, 0.0]
    out = loss_of(scores, lists(2, source="data/kind-1.jsonl"), rule=rule)
    assert float(out.loss.detach()) == pytest.approx(0.313262, abs=1e-6)
    (gradient,) = torch.autograd.grad(out.loss, scores)
    assert gradient[:, 1].tolist() == [0.0, 0.0] and gradient[0, 0] < 0 < gradient[1, 0]
    with pytest.raises(DataError, match=r"other\.jsonl"):
        loss_of(scores, lists(2, source="other.jsonl"), rule=rule)


def test_members_of_an_ensemble_learn_apart() -> None:
    rule = RewardRule(heads=("a", "b"), combine="worst")
    scores = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64, requires_grad=True)
    out = loss_of(scores, lists(2), rule=rule)
    assert float(out.loss.detach()) == pytest.approx((0.313262 + 1.313262) / 2, abs=1e-6)
    assert out.metrics["rewards_chosen"].value == 0.0  # the worst of 1 and 0
    (gradient,) = torch.autograd.grad(out.loss, scores)
    assert gradient[0, 1] < gradient[0, 0] < 0  # the member that is wrong is pushed harder


def test_normalisation() -> None:
    scale, shift = fit_normalisation([1.0, 3.0, 5.0, 7.0])
    rule = RewardRule(scale=scale, shift=shift)
    rewards = rule.rewards(torch.tensor([[1.0], [3.0], [5.0], [7.0]]), torch.ones(4), normalised=True)
    assert float(rewards.mean()) == pytest.approx(0, abs=1e-6)
    assert float(rewards.std(correction=0)) == pytest.approx(1, abs=1e-6)
    with pytest.raises(ConfigError, match="all the same"):
        fit_normalisation([2.0, 2.0])
    with pytest.raises(ConfigError, match="held-out rewards that differ"):
        fit_normalisation([2.0])
    with pytest.raises(ConfigError, match="normalisation"):
        RewardRule().rewards(torch.ones(1, 1), torch.ones(1), normalised=True)


# ---------------------------------------------------------------- gradients


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("bradley_terry", {}),
        ("bradley_terry", {"margin_scale": 0.7, "label_smoothing": 0.2, "centre": 0.05}),
        ("plackett_luce", {"centre": 0.1}),
        ("regression", {}),
    ],
)
@pytest.mark.parametrize("rule", [RewardRule(), RewardRule(length_offset=2.0), RewardRule(heads=("a", "b"))])
def test_gradients(name: str, parameters: dict[str, float], rule: RewardRule) -> None:
    batch = lists(2, 3, scores=[(2.0, 1.0), (3.0, 2.0, 1.0)], margins=[1.0, 2.0])
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(5, len(rule.heads), dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: loss_of(s, batch, name, rule, **parameters).loss, scores)


@pytest.mark.parametrize("how", ["min", "last", "product"])
def test_gradients_of_steps(how: Any) -> None:
    steps = torch.randn(5, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    branch = torch.tensor([0, 0, 1, 1, 1])
    assert torch.autograd.gradcheck(lambda s: aggregate_steps(s, branch, 2, how), steps)


def test_the_gradient_pushes_the_right_way() -> None:
    for name in ("bradley_terry", "plackett_luce"):
        rewards = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(loss_of(rewards, lists(3), name).loss, rewards)
        assert gradient[0] < gradient[1] < gradient[2] and gradient[0] < 0 < gradient[2]


# ---------------------------------------------------------------- invariances


@pytest.mark.parametrize("name", ["bradley_terry", "plackett_luce"])
def test_a_shift_changes_nothing_without_centring(name: str) -> None:
    batch = lists(2, 3)
    rewards = torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    plain, shifted = loss_of(rewards, batch, name).loss, loss_of(rewards + 7.5, batch, name).loss
    assert float(plain) == pytest.approx(float(shifted), abs=1e-12)
    centred = loss_of(rewards, batch, name, centre=0.1).loss, loss_of(rewards + 7.5, batch, name, centre=0.1).loss
    assert float(centred[1]) > float(centred[0]) + 1


def test_swapping_the_sides_flips_the_difference() -> None:
    right, wrong = loss_of([1.5, 0.5], lists(2)), loss_of([0.5, 1.5], lists(2))
    assert float(wrong.loss - right.loss) == pytest.approx(1.0)  # softplus(x) - softplus(-x) = x
    assert wrong.metrics["reward_accuracy"].value == 0.0 and right.metrics["reward_accuracy"].value == 1.0
    assert wrong.metrics["reward_margin"].value == -right.metrics["reward_margin"].value


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_micro_batches_add_up(name: str) -> None:
    trees = [
        make_tree([1], *([5] * (i + 1) for i in range(size)), margin=0.3, scores=tuple(range(size, 0, -1)), row=size)
        for size in (2, 3, 2, 4)
    ]
    whole, total = collate(trees), count(trees)
    rewards = torch.randn(total.branches, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    together = reward_loss(name, OBJECTIVES[name].resolve({}), RewardRule(), Scores(rewards), whole, total)
    apart: list[LossOutput] = []
    for tree, part in zip(trees, rewards.split([len(t.branches) for t in trees]), strict=True):
        apart.append(
            reward_loss(name, OBJECTIVES[name].resolve({}), RewardRule(), Scores(part), collate([tree]), total)
        )
    assert float(sum(out.loss for out in apart)) == pytest.approx(float(together.loss), abs=1e-12)


# ---------------------------------------------------------------- refusals


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ConfigError, match="margins"):
        loss_of([1.0, 0.0], lists(2), margin_scale=1.0)
    with pytest.raises(ConfigError, match="score for every response"):
        loss_of([1.0, 0.0], lists(2), "regression")
    with pytest.raises(UnknownKeyError, match="margin_scale"):
        loss_of([1.0, 0.0], lists(2), "plackett_luce", margin_scale=1.0)
    with pytest.raises(ConfigError, match="label_smoothing"):
        loss_of([1.0, 0.0], lists(2), label_smoothing=0.5)


def test_chance_is_ln_2() -> None:
    assert float(loss_of([0.0] * 6, lists(2, 2, 2)).loss) == pytest.approx(LN2, abs=1e-12)
