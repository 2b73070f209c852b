"""The flat losses against slow ones on padded rows, written from the papers' formulas, one pair at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from posttrain.losses.pairwise import PAIRWISE
from posttrain.outputs import LossOutput
from posttrain.types import Batch
from tests.loss_batches import batch_of, gradient, random_pairs, run


def _padded(values_N: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Rows [2P, L] of one branch each and their mask; the padding holds NaN, so that touching it shows."""
    rows = [values_N[batch.branch_N == branch] for branch in range(batch.num_branches)]
    longest = max(len(row) for row in rows)
    padded = torch.stack([torch.cat([row, torch.full((longest - len(row),), torch.nan)]) for row in rows])
    return padded, ~padded.isnan()


def _log_sigmoid(z: Tensor) -> Tensor:
    return torch.log(1 / (1 + torch.exp(-z)))


def _sequence(rows: Tensor, mask: Tensor, mean: bool) -> Tensor:
    sums = torch.stack([row[keep].sum() for row, keep in zip(rows, mask, strict=True)])
    return sums / mask.sum(1) if mean else sums


Paper = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""One pair's loss from log π of winner and loser (w, v), of the reference (rw, rv), and the winner's nll per token."""

PAPERS: dict[str, tuple[bool, Paper]] = {
    # name: (per-token mean instead of sum, the paper's formula with the row's defaults)
    "dpo": (False, lambda w, v, rw, rv, n: -_log_sigmoid(0.1 * (w - rw) - 0.1 * (v - rv))),
    "cdpo": (
        False,
        lambda w, v, rw, rv, n: (
            -0.9 * _log_sigmoid(0.1 * ((w - v) - (rw - rv))) - 0.1 * _log_sigmoid(-0.1 * ((w - v) - (rw - rv)))
        ),
    ),
    "robust": (
        False,
        lambda w, v, rw, rv, n: (
            (-0.9 * _log_sigmoid(0.1 * ((w - v) - (rw - rv))) + 0.1 * _log_sigmoid(0.1 * ((v - w) - (rv - rw)))) / 0.8
        ),
    ),
    "ipo": (True, lambda w, v, rw, rv, n: ((w - v) - (rw - rv) - 1 / (2 * 0.1)) ** 2),
    "ipo_sum": (False, lambda w, v, rw, rv, n: ((w - v) - (rw - rv) - 1 / (2 * 0.1)) ** 2),
    "hinge": (False, lambda w, v, rw, rv, n: torch.clamp(1 - (0.1 * (w - rw) - 0.1 * (v - rv)), min=0)),
    "dpo_norm": (True, lambda w, v, rw, rv, n: -_log_sigmoid(5 * ((w - v) - (rw - rv)))),
    "dpo_nll": (False, lambda w, v, rw, rv, n: -_log_sigmoid(0.1 * ((w - v) - (rw - rv))) + n),
    "rpo": (False, lambda w, v, rw, rv, n: -_log_sigmoid(0.01 * ((w - v) - (rw - rv))) - 0.005 * 0.01 * w),
    "dpop": (
        False,
        lambda w, v, rw, rv, n: -_log_sigmoid(0.3 * ((w - rw) - (v - rv) - 50 * torch.clamp(rw - w, min=0))),
    ),
    "dpo_forward_kl": (
        False,
        lambda w, v, rw, rv, n: -_log_sigmoid(-0.1 * torch.exp(rw - w) + 0.1 * torch.exp(rv - v)),
    ),
    "dpo_js": (
        False,
        lambda w, v, rw, rv, n: -_log_sigmoid(0.1 * (_js(torch.exp(w - rw)) - _js(torch.exp(v - rv)))),
    ),
    "dpo_alpha": (
        False,
        lambda w, v, rw, rv, n: -_log_sigmoid(0.1 * (torch.exp(0.5 * (rv - v)) - torch.exp(0.5 * (rw - w))) / 0.5),
    ),
    "dpo_pl": (
        False,
        lambda w, v, rw, rv, n: (
            -torch.log(torch.exp(0.1 * (w - rw)) / (torch.exp(0.1 * (w - rw)) + torch.exp(0.1 * (v - rv))))
        ),
    ),
    "exo_pair": (
        False,
        lambda w, v, rw, rv, n: _kl2(torch.sigmoid(0.1 * ((w - v) - (rw - rv))), 0.999),
    ),
    "nca_pair": (
        False,
        lambda w, v, rw, rv, n: (
            -_log_sigmoid(0.01 * (w - rw)) - 0.5 * (_log_sigmoid(-0.01 * (w - rw)) + _log_sigmoid(-0.01 * (v - rv)))
        ),
    ),
    "sppo_hard": (
        False,
        lambda w, v, rw, rv, n: ((w - rw) - 1000 * (1 - 0.5)) ** 2 + ((v - rv) - 1000 * (0 - 0.5)) ** 2,
    ),
    "apo_zero": (
        False,
        lambda w, v, rw, rv, n: 1 - torch.sigmoid(0.1 * (w - rw)) + torch.sigmoid(0.1 * (v - rv)),
    ),
    "apo_down": (
        False,
        lambda w, v, rw, rv, n: torch.sigmoid(0.1 * (w - rw)) + 1 - torch.sigmoid(0.1 * (w - rw) - 0.1 * (v - rv)),
    ),
    "discopop": (False, lambda w, v, rw, rv, n: _lrml(0.05 * ((w - v) - (rw - rv)), 0.05)),
    "alphapo": (
        True,
        lambda w, v, rw, rv, n: (
            -_log_sigmoid(2.5 * (1 - w.exp() ** -0.25) / 0.25 - 2.5 * (1 - v.exp() ** -0.25) / 0.25 - 0.1)
        ),
    ),
    "cpo_simpo": (True, lambda w, v, rw, rv, n: -_log_sigmoid(2 * w - 2 * v - 1) + n),
    "simpo": (True, lambda w, v, rw, rv, n: -_log_sigmoid(2 * w - 2 * v - 1)),
    "cpo": (False, lambda w, v, rw, rv, n: -_log_sigmoid(0.1 * w - 0.1 * v) + n),
    "orpo": (
        True,
        lambda w, v, rw, rv, n: (
            -0.1 * _log_sigmoid(torch.log(w.exp() / (1 - w.exp())) - torch.log(v.exp() / (1 - v.exp()))) + n
        ),
    ),
}


OWN_ORACLE = {"odpo", "ld_dpo", "wpo", "bco_pair", "mpo", "aot", "aot_unpaired", "beta_dpo"}
"""Rows that look at more than two sums: their oracles are below."""


def _js(u: Tensor) -> Tensor:
    return torch.log(2 * u / (1 + u))


def _kl2(q: Tensor, p: float) -> Tensor:
    return q * torch.log(q / p) + (1 - q) * torch.log((1 - q) / (1 - p))


def _lrml(rho: Tensor, tau: float) -> Tensor:
    share = torch.sigmoid(rho / tau)
    return (1 - share) * torch.log(1 + torch.exp(-rho)) + share * torch.exp(-rho)


def test_every_row_has_an_oracle() -> None:
    assert set(PAPERS) | OWN_ORACLE == set(PAIRWISE)


def _ratios(policy_N: Tensor, reference_N: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    rows, mask = _padded(policy_N - reference_N, batch)
    sums = _sequence(rows, mask, mean=False)
    return sums[0::2], sums[1::2]


def _agrees(name: str, policy_N: Tensor, expected: Tensor, out: LossOutput) -> None:
    assert out.loss.item() == pytest.approx(expected.item(), rel=1e-10), name
    torch.testing.assert_close(
        gradient(out.loss, policy_N),
        torch.autograd.grad(expected, policy_N, retain_graph=True)[0],
        rtol=1e-9,
        atol=1e-12,
    )


def test_bco_and_mpo_equal_their_papers() -> None:
    batch, policy_N, reference_N = random_pairs(6, seed=5)
    policy_N.requires_grad_()
    chosen, rejected = _ratios(policy_N, reference_N, batch)

    def classifier(beta: float) -> Tensor:
        shift = (beta * (chosen.mean() + rejected.mean()) / 2).detach()
        return -_log_sigmoid(beta * chosen - shift) - _log_sigmoid(-(beta * rejected - shift))

    _agrees("bco_pair", policy_N, classifier(0.01).mean(), run("bco_pair", policy_N, reference_N, batch))
    rows, mask = _padded(policy_N, batch)
    nll = -_sequence(rows, mask, mean=True)[0::2]
    mixed = 0.8 * -_log_sigmoid(0.1 * (chosen - rejected)) + 0.2 * classifier(0.1) + nll
    _agrees("mpo", policy_N, mixed.mean(), run("mpo", policy_N, reference_N, batch))


def test_aot_equals_its_paper() -> None:
    """Sorted against sorted: the i-th smallest margin of the policy against the i-th smallest of the reference."""
    batch, policy_N, reference_N = random_pairs(9, seed=5)
    policy_N.requires_grad_()
    (policy, mask), (reference, _) = _padded(policy_N, batch), _padded(reference_N, batch)
    own, theirs = _sequence(policy, mask, mean=False), _sequence(reference, mask, mean=False)
    leads = torch.sort(own[0::2] - own[1::2]).values - torch.sort(theirs[0::2] - theirs[1::2]).values
    paired = run("aot", policy_N, reference_N, batch, beta=0.3)
    assert paired.loss.item() != pytest.approx(run("dpo", policy_N, reference_N, batch, beta=0.3).loss.item())
    _agrees("aot", policy_N, -_log_sigmoid(0.3 * leads).mean(), paired)
    chosen, rejected = _ratios(policy_N, reference_N, batch)
    leads = torch.sort(chosen).values - torch.sort(rejected).values
    unpaired = run("aot_unpaired", policy_N, reference_N, batch, beta=0.3)
    _agrees("aot_unpaired", policy_N, -_log_sigmoid(0.3 * leads).mean(), unpaired)


def test_beta_dpo_equals_its_paper() -> None:
    """The step's beta from the kept pairs' mean gap against the running one, and the mean over the kept pairs."""
    batch, policy_N, reference_N = random_pairs(6, seed=5)
    policy_N.requires_grad_()
    chosen, rejected = _ratios(policy_N, reference_N, batch)
    gaps, kept = chosen - rejected, torch.tensor([0, 2, 3, 5])
    usual = 0.4
    beta = 0.1 * (1 + 0.6 * (gaps[kept].mean().item() - usual))
    weight = torch.zeros(6, dtype=torch.float64)
    weight[kept] = 6 / 4
    statistics = {"beta_scale": torch.full((6,), beta / 0.1, dtype=torch.float64), "weight": weight}
    out = run("beta_dpo", policy_N, reference_N, batch, statistics=statistics)
    _agrees("beta_dpo", policy_N, -_log_sigmoid(beta * gaps[kept]).mean(), out)
    assert out.metrics["beta"].value == pytest.approx(beta)


def test_length_desensitised_dpo_equals_its_paper() -> None:
    batch, policy_N, reference_N = random_pairs(6, seed=5)
    policy_N.requires_grad_()
    rows, mask = _padded(policy_N - reference_N, batch)
    scores = []
    for pair in range(batch.num_trees):
        sides = [rows[2 * pair + side][mask[2 * pair + side]] for side in (0, 1)]
        shared = min(len(side) for side in sides)
        scores.append([side[:shared].sum() + 0.3 * side[shared:].sum() for side in sides])
    expected = torch.stack([-_log_sigmoid(0.1 * (won - lost)) for won, lost in scores]).mean()
    out = run("ld_dpo", policy_N, reference_N, batch, tail_weight=0.3)
    _agrees("ld_dpo", policy_N, expected, out)


def test_wpo_equals_its_authors() -> None:
    batch, policy_N, reference_N = random_pairs(6, seed=5)
    policy_N = (policy_N - 1).requires_grad_()
    collisions = torch.tensor([-1.5, -2.5] * batch.num_trees)  # as tests.loss_batches.with_collisions has them
    rows, mask = _padded(policy_N, batch)
    weights = torch.exp(_sequence(rows, mask, mean=True) - collisions).detach()
    chosen, rejected = _ratios(policy_N, reference_N, batch)
    weight = weights[0::2] * weights[1::2]
    assert weight.min() < 1 < weight.max()  # the authors bound a pair's weight by 1: both sides of it are here
    expected = (weight.clamp(max=1) * -_log_sigmoid(0.01 * (chosen - rejected))).mean()
    _agrees("wpo", policy_N, expected, run("wpo", policy_N, reference_N, batch))


@pytest.mark.parametrize("name", PAPERS)
def test_the_table_equals_the_papers(name: str) -> None:
    batch, policy_N, reference_N = random_pairs(6, seed=5)
    policy_N.requires_grad_()
    mean, paper = PAPERS[name]
    (policy, mask), (reference, _) = _padded(policy_N, batch), _padded(reference_N, batch)
    scores, references = _sequence(policy, mask, mean), _sequence(reference, mask, mean)
    nll = -_sequence(policy, mask, mean=True)
    expected = torch.stack(
        [
            paper(scores[i], scores[i + 1], references[i], references[i + 1], nll[i])
            for i in range(0, batch.num_branches, 2)
        ]
    ).mean()
    out = run(name, policy_N, reference_N, batch)
    assert out.loss.item() == pytest.approx(expected.item(), rel=1e-10)
    torch.testing.assert_close(gradient(out.loss, policy_N), gradient(expected, policy_N), rtol=1e-9, atol=1e-12)


def test_odpo_equals_its_paper() -> None:
    batch, policy_N, reference_N = random_pairs(6, seed=5)
    rows, mask = _padded(policy_N - reference_N, batch)
    ratios = _sequence(rows, mask, mean=False)
    assert batch.margin_P is not None
    losses = [
        -_log_sigmoid(0.1 * (ratios[2 * p] - ratios[2 * p + 1]) - 1.5 * batch.margin_P[p].double())
        for p in range(batch.num_trees)
    ]
    out = run("odpo", policy_N, reference_N, batch, margin_scale=1.5)
    assert out.loss.item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-10)


def test_fp32_keeps_the_small_differences_of_long_responses() -> None:
    """Summing per-token differences, not subtracting two sums of thousands of nats: error well under 1e-6."""
    generator = torch.Generator().manual_seed(0)
    long = batch_of([(4000, 4000)])
    reference_N = -3 * torch.rand(8000, generator=generator)
    policy_N = reference_N + 1e-4 * torch.randn(8000, generator=generator)
    exact = run("dpo", policy_N.double(), reference_N.double(), long).metrics["logprob_chosen_change"].value
    assert run("dpo", policy_N, reference_N, long).metrics["logprob_chosen_change"].value == pytest.approx(
        exact, abs=1e-6
    )
    by_sums = float(policy_N[:4000].sum() - reference_N[:4000].sum())
    assert not math.isclose(by_sums, exact, abs_tol=1e-6), "the fixture must be able to show the loss of digits"
