"""What must not change the pairwise losses, what must change their sign, and which way they push."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from posttrain.data.trees import collate
from posttrain.losses.pairwise import PAIRWISE
from tests.loss_batches import batch_of, gradient, pairs, random_pairs, run, tree

ABSOLUTE = {"dpo_nll", "rpo", "cpo", "cpo_simpo", "orpo", "dpop", "mpo"}
"""Rows that look at the chosen response itself, not only at the difference of the sides."""
SUMMED = {"dpo", "cdpo", "robust", "ipo_sum", "hinge", "odpo", "dpo_pl", "ld_dpo", "exo_pair", "discopop"}
SUMMED |= {"aot", "aot_unpaired", "bco_pair", "beta_dpo"}
"""Rows on differences of sequence log-ratios; the shift of `bco_pair` moves with both."""
EACH_SIDE = {"nca_pair", "sppo_hard", "apo_zero", "apo_down", "dpo_forward_kl", "dpo_js", "dpo_alpha", "alphapo"}
"""Rows that look at each side by itself, or at a curved function of its log-ratio."""
BACKWARD_AT_START = {"discopop", "apo_down"}
"""Rows that do not push both sides the usual way where the policy is its reference."""


def _sides_of(batch_lengths: list[tuple[int, int]], values_N: Tensor) -> list[tuple[Tensor, Tensor]]:
    sizes = [size for lengths in batch_lengths for size in lengths]
    pieces = values_N.split(sizes)
    return list(zip(pieces[0::2], pieces[1::2], strict=True))


@pytest.mark.parametrize("name", PAIRWISE)
def test_the_order_of_pairs_does_not_matter(name: str) -> None:
    lengths, margins = [(2, 5), (3, 1), (4, 4), (1, 6)], [0.1, 0.7, 0.2, 0.4]
    order = [2, 0, 3, 1]
    batch, shuffled = batch_of(lengths, margins), batch_of([lengths[i] for i in order], [margins[i] for i in order])
    policy_N, reference_N = -torch.rand(26, dtype=torch.float64) - 0.1, -torch.rand(26, dtype=torch.float64) - 0.1
    sides = _sides_of(lengths, policy_N), _sides_of(lengths, reference_N)
    moved = [torch.cat([side for i in order for side in each[i]]) for each in sides]
    out, again = run(name, policy_N, reference_N, batch), run(name, moved[0], moved[1], shuffled)
    assert again.loss.item() == pytest.approx(out.loss.item(), rel=1e-12)
    for key, values_P in out.per_tree.items():
        torch.testing.assert_close(again.per_tree[key], values_P[order], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", PAIRWISE)
def test_swapping_the_sides_mirrors_the_rewards(name: str) -> None:
    lengths = [(2, 5), (3, 1)]
    policy_N, reference_N = -torch.rand(11, dtype=torch.float64) - 0.1, -torch.rand(11, dtype=torch.float64) - 0.1
    swapped = [
        torch.cat([side for pair in _sides_of(lengths, v) for side in reversed(pair)]) for v in (policy_N, reference_N)
    ]
    out = run(name, policy_N, reference_N, batch_of(lengths, [0.3, 0.3]))
    mirror = run(name, swapped[0], swapped[1], batch_of([(b, a) for a, b in lengths], [0.3, 0.3]))
    here, there = ({key: metric.value for key, metric in each.metrics.items()} for each in (out, mirror))
    assert there["reward_margin"] == pytest.approx(-here["reward_margin"])
    assert there["reward_accuracy"] == pytest.approx(1 - here["reward_accuracy"])
    for key in ("rewards_{}", "logprob_per_token_{}", "length_{}"):
        assert there[key.format("chosen")] == pytest.approx(here[key.format("rejected")])
        assert there[key.format("rejected")] == pytest.approx(here[key.format("chosen")])


@pytest.mark.parametrize("name", sorted(SUMMED))
@settings(max_examples=25)
@given(shift=st.floats(-5, 5), seed=st.integers(0, 100))
def test_a_constant_on_both_log_ratios_changes_nothing(name: str, shift: float, seed: int) -> None:
    """The prompt's unknown log Z(x) is such a constant: the losses must not see it."""
    lengths = [(1, 1), (1, 1), (1, 1)]
    batch = batch_of(lengths, [0.1, 0.2, 0.3])
    generator = torch.Generator().manual_seed(seed)
    policy_N, reference_N = -6 - 2 * torch.rand((2, 6), generator=generator, dtype=torch.float64)
    before = run(name, policy_N, reference_N, batch)
    after = run(name, policy_N + shift, reference_N, batch)
    assert after.loss.item() == pytest.approx(before.loss.item(), abs=1e-9)
    assert after.metrics["reward_margin"].value == pytest.approx(before.metrics["reward_margin"].value, abs=1e-9)


@pytest.mark.parametrize("name", ["ipo", "dpo_norm"])
def test_a_constant_per_token_changes_nothing_where_the_score_is_a_mean(name: str) -> None:
    batch, policy_N, reference_N = random_pairs(4)
    before, after = run(name, policy_N, reference_N, batch), run(name, policy_N - 0.7, reference_N, batch)
    assert after.loss.item() == pytest.approx(before.loss.item())


def test_simpo_is_invariant_to_a_constant_per_token() -> None:
    batch, policy_N, _ = random_pairs(4)
    assert run("simpo", policy_N - 0.7, None, batch).loss.item() == pytest.approx(
        run("simpo", policy_N, None, batch).loss.item()
    )


@pytest.mark.parametrize("name", sorted(ABSOLUTE))
def test_rows_that_anchor_the_chosen_response_do_see_a_shift(name: str) -> None:
    batch, policy_N, reference_N = random_pairs(4)
    before, after = run(name, policy_N, reference_N, batch), run(name, policy_N - 0.7, reference_N, batch)
    assert after.loss.item() > before.loss.item() + 1e-6


@pytest.mark.parametrize("name", sorted(EACH_SIDE))
def test_rows_that_look_at_each_side_do_see_a_shift(name: str) -> None:
    batch, policy_N, reference_N = random_pairs(4)
    before, after = run(name, policy_N, reference_N, batch), run(name, policy_N - 0.7, reference_N, batch)
    assert abs(after.loss.item() - before.loss.item()) > 1e-6


def test_every_row_is_of_one_kind() -> None:
    per_token = {"ipo", "dpo_norm", "simpo", "wpo"}
    assert SUMMED | ABSOLUTE | EACH_SIDE | per_token == set(PAIRWISE)


def test_apo_down_starts_with_the_rejected_side_and_discopop_backwards() -> None:
    """APO-down leaves the chosen side alone at the start. DiscoPOP's loss has a bump there (arXiv:2406.08414, Sec. 5):
    d/dz at 0 is (1 - ln 2) / (4 tau) - 3/4, which is 0.78 for tau = 0.05."""
    batch, policy_N = pairs([((-1.0,), (-2.0,))])
    policy_N.requires_grad_()
    down = gradient(run("apo_down", policy_N, policy_N.detach(), batch).loss, policy_N)
    assert down.tolist() == pytest.approx([0.0, 0.1 / 4])
    bump = gradient(run("discopop", policy_N, policy_N.detach(), batch).loss, policy_N)
    slope = 0.05 * ((1 - math.log(2)) / (4 * 0.05) - 0.75)
    assert bump.tolist() == pytest.approx([slope, -slope])


@pytest.mark.parametrize("name", sorted(set(PAIRWISE) - BACKWARD_AT_START))
@settings(max_examples=25)
@given(seed=st.integers(0, 1000))
def test_the_gradient_pushes_chosen_up_and_rejected_down(name: str, seed: int) -> None:
    """On every pair that is not yet where the row wants it: here both sides equal their reference."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 8, (3, 2), generator=generator).tolist()
    batch = batch_of(lengths, [0.5, 0.5, 0.5])
    policy_N = -torch.rand(batch.count.tokens, generator=generator, dtype=torch.float64) - 0.2
    policy_N.requires_grad_()
    slope_N = gradient(run(name, policy_N, policy_N.detach(), batch).loss, policy_N)
    chosen_N = batch.branch_N % 2 == 0
    assert (slope_N[chosen_N] < 0).all()
    assert (slope_N[~chosen_N] > 0).all()


@pytest.mark.parametrize("name", ["ipo", "ipo_sum"])
def test_ipo_pulls_a_pair_that_is_too_far_apart_back(name: str) -> None:
    batch, policy_N = pairs([((-0.1,), (-30.0,))])
    policy_N.requires_grad_()
    slope_N = gradient(run(name, policy_N, torch.full_like(policy_N, -1.0), batch).loss, policy_N)
    assert slope_N[0] > 0 > slope_N[1]


@pytest.mark.parametrize("name", PAIRWISE)
def test_prompts_and_untrained_tokens_do_not_matter(name: str) -> None:
    """A longer prompt moves every index of the flat batch and no number, but for the share of trained tokens."""
    batch = batch_of([(2, 3), (4, 1)], [0.2, 0.4])
    longer = collate([tree((2, 3), prompt=11, margin=0.2, row=1), tree((4, 1), prompt=1, margin=0.4, row=2)])
    policy_N, reference_N = -torch.rand(10, dtype=torch.float64) - 0.1, -torch.rand(10, dtype=torch.float64) - 0.1
    one, other = run(name, policy_N, reference_N, batch), run(name, policy_N, reference_N, longer)
    assert one.loss.item() == other.loss.item()
    values = [{k: m.value for k, m in out.metrics.items() if k != "supervised_share"} for out in (one, other)]
    assert values[0] == values[1]
