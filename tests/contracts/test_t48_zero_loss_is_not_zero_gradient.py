"""T48: rewards [1, 0], equal lengths, no KL, ratio 1: the loss is 0, the gradient is not, and the log says why.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

import pytest
import torch

from posttrain.advantages import group_advantages
from posttrain.data.trees import collate
from posttrain.diagnostics.metrics import METRICS, values
from posttrain.losses.policy_metrics import explain_zero_loss
from posttrain.models.tree.logprobs import Policy
from tests.fixtures import tiny_model
from tests.online_batches import group, run, spread


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo", "gspo"])
def test_t48(name: str) -> None:
    found = group_advantages("group_std", torch.tensor([1.0, 0.0]), torch.zeros(2, dtype=torch.long))
    tokens = {"old_logprobs": [0.0] * 4, "reference_logprobs": [0.0] * 4}
    batch = collate([spread(group([tokens, tokens]), found.values_B)])
    batch.input_ids_T[-4:] += 5  # another answer than the first
    policy = Policy(tiny_model())
    logprob_N = policy(batch).logprobs_N
    out = run(name, logprob_N, batch, on_policy=True, **({"kl_beta": 0.0} if name == "grpo" else {}))
    out.loss.backward()
    norm = torch.stack([p.grad.norm() for p in policy.parameters() if p.grad is not None]).norm().item()
    assert abs(out.loss.item()) < 1e-6
    assert norm > (1e-6 if name == "dr_grpo" else 1e-2)  # dr_grpo divides by 3,000 tokens
    metrics = values(out.metrics)
    assert metrics["advantage_magnitude"] == pytest.approx(0.7071, abs=1e-4)
    text = explain_zero_loss({**metrics, "grad_norm": norm})
    assert text is not None and "add up to 0" in text and f"{norm:.3g}" in text
    assert "zero loss is not zero gradient" in METRICS["policy_loss"].description
