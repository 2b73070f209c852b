"""T45 in the online loss: the gradient of each kind of penalty, in expectation over a vocabulary.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from posttrain.data.trees import collate
from posttrain.losses.kl import KL_TERMS
from posttrain.losses.online import ONLINE, OnlineRow, variant
from posttrain.losses.policy import policy_loss
from posttrain.outputs import TokenLogprobs
from tests.online_batches import group

LOGITS = [0.3, -0.7, 1.1]
REFERENCE = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log()
OLD = torch.tensor([0.5, 0.1, 0.4], dtype=torch.float64)
NOTHING = [0.0, 0.0, 0.0]
OF_REVERSE_KL = [-0.013405, -0.201113, 0.214518]
OF_FORWARD_KL = [0.078286, -0.397624, 0.319338]


def expected_gradient(kl: str, sampling_V: Tensor | None) -> list[float]:
    """The gradient in expectation: each action's own loss, weighted by the probability that it is sampled."""
    logits = torch.tensor(LOGITS, dtype=torch.float64, requires_grad=True)
    policy_V = logits.log_softmax(0)
    sampled_V = policy_V.exp().detach() if sampling_V is None else sampling_V
    row = variant(ONLINE["grpo"], kl=kl)
    total = sum(
        sampled_V[action] * _loss_of(row, policy_V[action], REFERENCE[action], sampled_V[action].log())
        for action in range(3)
    )
    assert isinstance(total, Tensor)
    return torch.autograd.grad(total, logits)[0].tolist()


def _loss_of(row: OnlineRow, logprob: Tensor, reference: Tensor, old: Tensor) -> Tensor:
    columns = {"advantages": 0.0, "old_logprobs": old.item(), "reference_logprobs": reference.item()}
    batch = collate([group([{name: [value] for name, value in columns.items()}])])
    return policy_loss(row, row.resolve({"kl_beta": 1.0}), TokenLogprobs(logprob[None]), batch, batch.count).loss


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        ("k1", NOTHING),
        ("k2", OF_REVERSE_KL),
        ("k3", OF_FORWARD_KL),
        ("reverse", OF_REVERSE_KL),
        ("k3_corrected", OF_REVERSE_KL),
    ],
)
def test_t45_on_policy(kl: str, expected: list[float]) -> None:
    assert expected_gradient(kl, None) == pytest.approx(expected, abs=1e-6)
    said = {"KL(π ‖ π_ref)": OF_REVERSE_KL, "KL(π_ref ‖ π)": OF_FORWARD_KL}
    assert said.get(KL_TERMS[kl].gradient_of, NOTHING) == expected


def test_t45_off_policy_only_the_corrected_term_is_right() -> None:
    assert expected_gradient("k3_corrected", OLD) == pytest.approx(OF_REVERSE_KL, abs=1e-6)
    for kl in ("k2", "reverse"):
        assert expected_gradient(kl, OLD) != pytest.approx(OF_REVERSE_KL, abs=1e-2)
