"""The flat losses against slow ones on padded rows, written from the papers' formulas, one pair at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from posttrain.losses.pairwise import PAIRWISE
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
    "simpo": (True, lambda w, v, rw, rv, n: -_log_sigmoid(2 * w - 2 * v - 1)),
    "cpo": (False, lambda w, v, rw, rv, n: -_log_sigmoid(0.1 * w - 0.1 * v) + n),
    "orpo": (
        True,
        lambda w, v, rw, rv, n: (
            -0.1 * _log_sigmoid(torch.log(w.exp() / (1 - w.exp())) - torch.log(v.exp() / (1 - v.exp()))) + n
        ),
    ),
}


def test_every_row_has_an_oracle() -> None:
    assert set(PAPERS) | {"odpo"} == set(PAIRWISE)


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
