"""T50, the reference's side: at step 0 every reference equals the policy, so DPO's loss is ln 2 and its margin 0.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.data.trees import collate, count
from posttrain.losses import PAIRWISE, pairwise_loss
from posttrain.models.adapters.kinds import LoRA, add_adapter
from posttrain.models.folders.loading import load
from posttrain.models.reference import reference
from posttrain.models.tree.logprobs import Policy
from tests.fixtures import byte_tokenizer, random_trees, tiny_model

PAIRS = random_trees(10, branches=2, seed=5)


def base(folder: Path | None = None) -> Any:
    tokenizer = byte_tokenizer()
    model = tiny_model(vocab=len(tokenizer))
    if folder is not None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return model


def model_of(start: str, folder: Path) -> Any:
    if start == "full":
        return base()
    model = add_adapter(base(), LoRA(rank=4, dropout=0.1 if start == "LoRA dropout .1" else 0.0))
    if start != "already-trained LoRA":
        return model
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    base(folder / "base")
    model.peft_config["default"].base_model_name_or_path = str(folder / "base")
    model.save_pretrained(folder / "adapter")
    return load(folder / "adapter").model


STARTS_AND_KINDS = [
    ("full", "cached"),
    ("full", "live"),
    ("fresh LoRA", "cached"),
    ("fresh LoRA", "live"),
    ("fresh LoRA", "adapter_off"),
    ("LoRA dropout .1", "cached"),
    ("LoRA dropout .1", "live"),
    ("LoRA dropout .1", "adapter_off"),
    ("already-trained LoRA", "cached"),
    ("already-trained LoRA", "live"),  # `adapter_off` is refused here: tests/unit/models/test_reference.py
]


@pytest.mark.parametrize("path", ["tree", "padded"])
@pytest.mark.parametrize(("start", "kind"), STARTS_AND_KINDS)
def test_the_first_loss_is_ln_2(start: str, kind: Any, path: Any, tmp_path: Path) -> None:
    policy = Policy(model_of(start, tmp_path), path)
    frozen = reference(kind, policy, trees=PAIRS, store=tmp_path / "cache", tokens_per_microbatch=50)
    batch = collate([PAIRS[8], PAIRS[1], PAIRS[2], PAIRS[5]])
    out = pairwise_loss(
        PAIRWISE["dpo"],
        PAIRWISE["dpo"].resolve({"beta": 0.1}),
        policy(batch),
        frozen.logprobs(batch),
        batch,
        count([PAIRS[i] for i in (8, 1, 2, 5)]),
    )
    assert float(out.loss.detach()) == pytest.approx(math.log(2), abs=1e-6)
    margin = out.per_tree["rewards_chosen"] - out.per_tree["rewards_rejected"]
    torch.testing.assert_close(margin, torch.zeros(4).to(margin), atol=2e-6, rtol=0)
