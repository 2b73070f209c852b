"""One adapter of each kind, small enough for the tiny models; shared by the tests of adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from posttrain.config.adapters import (
    IA3,
    OFT,
    AdaLoRA,
    AdapterSettings,
    Bottleneck,
    LoRA,
    PrefixTuning,
    PromptTuning,
    PTuning,
)
from posttrain.models.folders.quiet import quiet

WEIGHTS: dict[str, AdapterSettings] = {
    "lora": LoRA(rank=2),
    "dora": LoRA(rank=2, dora=True),
    "rslora": LoRA(rank=2, rslora=True),
    "adalora": AdaLoRA(rank=1, initial_rank=3, initial_ratio=0, final_ratio=0.4),
    "ia3": IA3(),
    "oft": OFT(block_size=8),
    "bottleneck": Bottleneck(size=4),
}
"""They change nothing at the start."""
VIRTUAL: dict[str, AdapterSettings] = {
    "prefix": PrefixTuning(tokens=3),
    "prefix projected": PrefixTuning(tokens=3, projection=8),
    "prompt": PromptTuning(tokens=3),
    "p_tuning": PTuning(tokens=3, hidden=8),
    "p_tuning lstm": PTuning(tokens=3, hidden=8, encoder="lstm"),
}
"""Every row sees their virtual tokens from the start."""
EVERY = {**WEIGHTS, **VIRTUAL}

IDS = torch.tensor([[3, 5, 8, 9, 11, 4, 60, 7]])


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    """Of the row's own tokens, in eval mode: [B, T, V]."""
    model.eval()
    return model(input_ids=ids, use_cache=False).logits[:, -ids.shape[1] :]


@torch.no_grad()
def disturb(model: Any, size: float = 0.1) -> Any:
    """Stands for training: every parameter that trains moves."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * size)
    return model


def save_alone(model: Any, folder: Path, base: Path, tokenizer: Any) -> Path:
    """The adapter's folder as `peft` writes it, with the base that it names."""
    with quiet():
        model.save_pretrained(folder, save_embedding_layers=False)
    tokenizer.save_pretrained(folder)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "base_model_name_or_path": str(base)}), encoding="utf-8")
    return folder
