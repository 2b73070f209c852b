"""Ranked lists: all pairs of a list, or Plackett-Luce; and mixes of objectives."""

from __future__ import annotations

import math

import pytest
import torch

from posttrain.config import Mix
from posttrain.data.trees import collate
from posttrain.errors import ConfigError, DataError, UnknownKeyError
from posttrain.losses.pairwise import PAIRWISE
from posttrain.losses.responses import Pairs
from posttrain.training.objectives import mix
from tests.loss_batches import batch_of, gradient, pairs, random_pairs, run, tree, with_collisions

LIST = [-1.0, -2.0, -4.0]
"""One token each, best first, against a reference of -2: log-ratios 1, 0, -2."""


def test_all_pairs_of_a_list_by_hand() -> None:
    # leads at beta 0.1: 0.1, 0.3, 0.2; mean of ln(1 + e^-0.1), ln(1 + e^-0.3), ln(1 + e^-0.2)
    batch = batch_of([(1, 1, 1)])
    policy_N = torch.tensor(LIST, dtype=torch.float64, requires_grad=True)
    out = run("dpo", policy_N, torch.full_like(policy_N, -2.0), batch)
    terms = [math.log1p(math.exp(-lead)) for lead in (0.1, 0.3, 0.2)]
    assert out.loss.item() == pytest.approx(sum(terms) / 3)
    s = [1 / (1 + math.exp(lead)) for lead in (0.1, 0.3, 0.2)]
    slopes = [-(s[0] + s[1]) / 30, (s[0] - s[2]) / 30, (s[1] + s[2]) / 30]
    assert gradient(out.loss, policy_N).tolist() == pytest.approx(slopes)
    assert out.metrics["reward_margin"].value == pytest.approx((0.1 + 0.3 + 0.2) / 3)
    assert out.metrics["loss"].count == 1
    assert out.per_tree["rewards_chosen"].item() == pytest.approx(0.1)  # the best
    assert out.per_tree["rewards_rejected"].item() == pytest.approx(-0.2)  # the worst
    assert out.per_branch["logprob"].tolist() == LIST


def test_plackett_luce_by_hand() -> None:
    # r = 0.1, 0, -0.2: ln(e^0.1 + 1 + e^-0.2) - 0.1 + ln(1 + e^-0.2) - 0
    batch = batch_of([(1, 1, 1)])
    policy_N = torch.tensor(LIST, dtype=torch.float64, requires_grad=True)
    out = run("dpo_pl", policy_N, torch.full_like(policy_N, -2.0), batch)
    expected = math.log(math.exp(0.1) + 1 + math.exp(-0.2)) - 0.1 + math.log(1 + math.exp(-0.2))
    assert out.loss.item() == pytest.approx(expected)
    first = [math.exp(r) / (math.exp(0.1) + 1 + math.exp(-0.2)) for r in (0.1, 0.0, -0.2)]
    second = [1 / (1 + math.exp(-0.2)), math.exp(-0.2) / (1 + math.exp(-0.2))]
    slopes = [0.1 * (first[0] - 1), 0.1 * (first[1] + second[0] - 1), 0.1 * (first[2] + second[1])]
    assert gradient(out.loss, policy_N).tolist() == pytest.approx(slopes)


def test_lists_of_several_lengths_and_pairs_share_a_step() -> None:
    lengths = [(2, 1, 3, 1), (1, 2), (4, 1, 1)]
    batch = batch_of(lengths)
    generator = torch.Generator().manual_seed(0)
    policy_N = -2 * torch.rand(16, generator=generator, dtype=torch.float64) - 0.1
    reference_N = -2 * torch.rand(16, generator=generator, dtype=torch.float64) - 0.1
    start = 0
    for name in ("dpo", "dpo_pl", "simpo", "ipo", "dpo_nll", "ld_dpo"):
        alone, start = [], 0
        for each in lengths:
            span = slice(start, start := start + sum(each))
            alone.append(run(name, policy_N[span], reference_N[span], batch_of([each])).loss.item())
        assert run(name, policy_N, reference_N, batch).loss.item() == pytest.approx(sum(alone) / 3), name
    grads = policy_N.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: run("dpo_pl", x, reference_N, batch).loss, (grads,))


def test_responses_scored_alike_are_no_pair() -> None:
    tied = collate([tree((1, 1, 1), scores=(3.0, 1.0, 1.0))])
    found = Pairs.of(tied, torch.zeros(1))
    assert list(zip(found.chosen_Q.tolist(), found.rejected_Q.tolist(), strict=True)) == [(0, 1), (0, 2)]
    assert found.share_Q.tolist() == [0.5, 0.5]
    pair = collate([tree((1, 1), scores=(1.0, 1.0))])  # kept on purpose, with `allow_ties`
    assert Pairs.of(pair, torch.zeros(1)).are_trees
    mixed = collate([tree((1, 1, 1), scores=(3.0, 1.0, 1.0)), tree((1, 1), row=2), tree((1, 1, 1), row=3)])
    assert Pairs.of(mixed, torch.zeros(1)).tree_Q.tolist() == [0, 0, 1, 2, 2, 2]


def test_one_ranking_of_ties_is_refused() -> None:
    batch = collate([tree((1, 1), row=4), tree((1, 1, 1), scores=(3.0, 1.0, 1.0), row=5)])
    with pytest.raises(DataError) as caught:
        run("dpo_pl", torch.zeros(5), torch.zeros(5), batch)
    said = str(caught.value)
    assert "row 5" in said and "3, 1, 1" in said and "`dpo`" in said
    run("dpo", torch.zeros(5), torch.zeros(5), batch)


@pytest.mark.parametrize("name", ["aot", "aot_unpaired", "bco_pair", "mpo"])
def test_objectives_coupled_by_pairs_refuse_lists(name: str) -> None:
    batch = batch_of([(1, 1, 1), (1, 1)])
    with pytest.raises(ConfigError, match="ranked lists"):
        run(name, torch.zeros(5), torch.zeros(5), batch)


def test_an_annotated_margin_holds_for_every_pair_of_its_list() -> None:
    batch = collate([tree((1, 1, 1), margin=2.0)])
    policy_N = torch.tensor(LIST, dtype=torch.float64)
    expected = [math.log1p(math.exp(2.0 - lead)) for lead in (0.1, 0.3, 0.2)]
    out = run("odpo", policy_N, torch.full_like(policy_N, -2.0), batch)
    assert out.loss.item() == pytest.approx(sum(expected) / 3)


# ---------------------------------------------------------------- mixes


def test_a_mix_is_the_weighted_sum_of_its_terms() -> None:
    batch, policy_N, reference_N = random_pairs(5, seed=2)
    policy_N.requires_grad_()
    blend = mix([("dpo", 0.8, {"beta": 0.2}), ("bco_pair", 0.2, {"beta": 0.2}), ("ipo", 0.01, {})])
    out = blend.loss(with_collisions(policy_N, batch), reference_N, batch, batch.count)
    parts = [
        (0.8, run("dpo", policy_N, reference_N, batch, beta=0.2)),
        (0.2, run("bco_pair", policy_N, reference_N, batch, beta=0.2)),
        (0.01, run("ipo", policy_N, reference_N, batch)),
    ]
    assert out.loss.item() == pytest.approx(sum(weight * part.loss.item() for weight, part in parts))
    slopes = sum(weight * gradient(part.loss, policy_N) for weight, part in parts)
    torch.testing.assert_close(gradient(out.loss, policy_N), slopes)
    assert out.metrics["rewards_chosen"].value == pytest.approx(parts[0][1].metrics["rewards_chosen"].value)


def test_mpo_is_a_mix_by_name() -> None:
    batch, policy_N, reference_N = random_pairs(5, seed=2)
    blend = mix([("dpo", 0.8, {}), ("bco_pair", 0.2, {"beta": 0.1}), ("sft", 1.0, {})])
    loss = blend.loss(with_collisions(policy_N, batch), reference_N, batch, batch.count).loss.item()
    assert loss == pytest.approx(run("mpo", policy_N, reference_N, batch).loss.item())


def test_what_a_mix_needs_is_what_its_terms_need() -> None:
    assert not mix([("simpo", 1.0, {}), ("sft", 1.0, {})]).needs_reference
    assert mix([("simpo", 1.0, {}), ("dpo", 1.0, {})]).needs_reference
    assert mix([("wpo", 1.0, {})]).wants.collision
    assert mix([("dpo", 1.0, {})]).coupling is None
    assert dict(mix([("dpo", 0.8, {})]).parameters) == {"dpo.weight": 0.8, "dpo.beta": 0.1}


def test_an_objective_that_stands_in_a_mix_twice_is_numbered() -> None:
    terms = [("dpo", 0.8, {"beta": 0.1}), ("sft", 1.0, {}), ("dpo", 0.2, {"beta": 0.5})]
    assert dict(mix(terms).parameters) == {
        "dpo.weight": 0.8,
        "dpo.beta": 0.1,
        "sft.weight": 1.0,
        "dpo2.weight": 0.2,
        "dpo2.beta": 0.5,
    }
    stage = Mix.model_validate(
        {"losses": [{"loss": name, "weight": weight, "parameters": settings} for name, weight, settings in terms]}
    )
    assert stage.parameters == {"dpo.weight": 0.8, "sft.weight": 1.0, "dpo2.weight": 0.2}
    assert not [name for name in PAIRWISE if name[-1].isdigit()]


def test_wrong_mixes_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least one"):
        mix([])
    with pytest.raises(UnknownKeyError, match="did you mean `simpo`"):
        mix([("simp", 1.0, {})])
    with pytest.raises(UnknownKeyError, match="gamma"):
        mix([("dpo", 1.0, {"gamma": 1.0})])


def test_plackett_luce_of_pairs_is_dpo_for_every_row_of_the_batch() -> None:
    batch, policy_N, reference_N = random_pairs(6)
    one, other = (run(name, policy_N, reference_N, batch).loss.item() for name in ("dpo", "dpo_pl"))
    assert one == pytest.approx(other, rel=1e-12)
    assert PAIRWISE["dpo_pl"].whole_list and pairs([((-1.0,), (-2.0,))])[0].num_branches == 2
