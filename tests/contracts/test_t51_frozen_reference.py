"""T51: five updates later, the reference gives the very same bits, also where an adapter goes on training.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.data.trees import collate, count
from posttrain.losses import PAIRWISE, pairwise_loss
from posttrain.models.adapters.kinds import LoRA, add_adapter
from posttrain.models.reference import reference
from posttrain.models.tree.logprobs import Policy
from tests.fixtures import random_trees, tiny_model

PAIRS = random_trees(6, branches=2, seed=6)


def policy_of(start: str) -> Policy:
    if start == "full":
        return Policy(tiny_model(tie_word_embeddings=True))
    model = add_adapter(tiny_model(), LoRA(rank=4, dropout=0.1))
    if start == "continued LoRA":
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
    return Policy(model)


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        ("full", "cached"),
        ("full", "live"),
        ("fresh LoRA", "cached"),
        ("fresh LoRA", "live"),
        ("fresh LoRA", "adapter_off"),
        ("continued LoRA", "cached"),
        ("continued LoRA", "live"),
    ],
)
def test_bit_for_bit_after_five_updates(start: str, kind: Any, tmp_path: Path) -> None:
    policy = policy_of(start)
    frozen = reference(kind, policy, trees=PAIRS, store=tmp_path, tokens_per_microbatch=40)
    pair = collate(PAIRS[2:3])
    first, policy_first = frozen.logprobs(pair).clone(), policy(pair).logprobs_N.detach()
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    for _ in range(5):
        batch = collate(PAIRS)
        out = pairwise_loss(
            PAIRWISE["dpo"], PAIRWISE["dpo"].resolve({}), policy(batch), frozen.logprobs(batch), batch, count(PAIRS)
        )
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(frozen.logprobs(pair), first)
    assert not torch.allclose(policy(pair).logprobs_N, policy_first, atol=1e-2)
