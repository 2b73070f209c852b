"""T50, the losses' side: where the policy equals its reference, DPO's loss is ln 2 and its margin 0.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

import math

import pytest
import torch

from posttrain.losses.pairwise import PAIRWISE
from posttrain.outputs import TokenLogprobs
from posttrain.training.objectives import algorithm
from posttrain.training.step import start_loss
from tests.loss_batches import batch_of, feedback, random_pairs, run


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beta", [0.01, 0.1, 5.0])
def test_t50(dtype: torch.dtype, beta: float) -> None:
    batch, policy_N, _ = random_pairs(16)
    out = run("dpo", policy_N.to(dtype), policy_N.to(dtype), batch, beta=beta)
    assert out.loss.item() == pytest.approx(0.693147, abs=1e-6)
    assert out.metrics["reward_margin"].value == 0.0
    assert out.metrics["reward_accuracy"].value == 0.5, "ties count half"
    assert out.metrics["logprob_chosen_change"].value == 0.0


IDENTITIES = [
    ("cdpo", math.log(2)),
    ("robust", math.log(2)),
    ("dpo_norm", math.log(2)),
    ("dpop", math.log(2)),
    ("hinge", 1.0),
    ("ipo", 25.0),  # (0 - 1 / 0.2)^2
    ("ipo_sum", 25.0),
    ("ld_dpo", math.log(2)),
    ("dpo_forward_kl", math.log(2)),
    ("dpo_js", math.log(2)),
    ("dpo_alpha", math.log(2)),
    ("dpo_pl", math.log(2)),
    ("aot", math.log(2)),
    ("nca_pair", 2 * math.log(2)),
    ("bco_pair", 2 * math.log(2)),
    ("exo_pair", 0.5 * math.log(0.5 / 0.999) + 0.5 * math.log(0.5 / 0.001)),
    ("sppo_hard", 2 * 500.0**2),
    ("apo_zero", 1.0),
    ("apo_down", 1.0),
    ("discopop", 0.5 * math.log(2) + 0.5),
]


@pytest.mark.parametrize(("name", "expected"), IDENTITIES)
def test_t50_every_row_against_a_reference_has_its_own_identity(name: str, expected: float) -> None:
    batch, policy_N, _ = random_pairs(16)
    assert run(name, policy_N, policy_N, batch).loss.item() == pytest.approx(expected, abs=1e-6)


def test_t50_every_row_with_a_reference_is_here() -> None:
    """Those with an NLL term add it to ln 2; `odpo` adds the margin, `wpo` a weight; the other two are ln 2."""
    listed = {"dpo", *(name for name, _ in IDENTITIES)}
    others = {"dpo_nll", "rpo", "mpo", "odpo", "wpo", "aot_unpaired", "beta_dpo"}
    assert listed | others == {name for name, row in PAIRWISE.items() if row.needs_reference}
    batch, policy_N, _ = random_pairs(16)
    for name in ("aot_unpaired", "beta_dpo"):
        assert run(name, policy_N, policy_N, batch).loss.item() == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize(("name", "expected"), [("kto", 0.5), ("bco", math.log(2)), ("apo_zero_unpaired", 0.5)])
def test_t50_every_row_of_feedback_has_its_own_identity(name: str, expected: float) -> None:
    batch, policy_N = feedback([(-1.0, -2.0), (-3.0,), (-0.5, -0.5)], [True, False, True])
    method = algorithm(name)
    out = start_loss(method, TokenLogprobs(policy_N), policy_N, batch, batch.count)
    assert out.loss.item() == pytest.approx(expected, abs=1e-12)
    assert out.metrics["reward_accuracy"].value == 0.5


def test_t50_rounding_between_two_forward_passes_does_not_show_in_long_responses() -> None:
    """A reference from other batch shapes differs by about 1e-6 per token."""
    generator = torch.Generator().manual_seed(0)
    batch = batch_of([(1500, 900)] * 2)
    policy_N = -3 * torch.rand(batch.count.tokens, generator=generator)
    reference_N = policy_N + 1e-6 * torch.randn(batch.count.tokens, generator=generator)
    assert run("dpo", policy_N, reference_N, batch).loss.item() == pytest.approx(0.693147, abs=1e-5)
