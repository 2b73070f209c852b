"""What an adapter's folder says of itself in `adapter_config.json`, before anything is loaded.

`folders.source` finds an adapter's base by it, and a recipe's check decides by it whether a stage can begin there.
Nothing here imports `peft`: a name that no model has is refused without the seconds that it takes to load.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.errors import ModelError
from posttrain.models.folders.weight_files import GET_AGAIN

ADAPTER_CONFIG = "adapter_config.json"

KINDS = {
    "LORA": "lora",
    "ADALORA": "adalora",
    "IA3": "ia3",
    "OFT": "oft",
    "BOTTLENECK": "bottleneck",
    "PREFIX_TUNING": "prefix",
    "PROMPT_TUNING": "prompt",
    "P_TUNING": "p_tuning",
}
"""What `peft` calls a kind -> what a recipe calls it."""

NEVER_MERGED = (
    *("BOTTLENECK", "PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "CPT", "CARTRIDGE"),
    *("ADAPTION_PROMPT", "XLORA", "POLY", "SHADOW"),
)
"""Kinds that no change of the weights can stand for."""


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """AdapterFacts(kind="lora", base="HuggingFaceTB/SmolLM2-135M", merges=True, virtual_tokens=0, continues=True)"""

    kind: str
    base: str | None
    """What the config calls the model under it."""
    merges: bool
    """Whether it can be folded into the weights."""
    virtual_tokens: int
    continues: bool
    """Whether training can go on from the folder: what a network made while training is saved without the network."""


def adapter_facts(folder: Path) -> AdapterFacts:
    """The facts of an adapter's folder.

    Raises:
        ModelError: its config cannot be read.
    """
    config = adapter_config(folder)
    peft_type = str(config["peft_type"])
    return AdapterFacts(
        kind=KINDS.get(peft_type, peft_type),
        base=config.get("base_model_name_or_path"),
        merges=type_merges(peft_type),
        virtual_tokens=int(config.get("num_virtual_tokens") or 0),
        continues=peft_type != "P_TUNING" and not config.get("prefix_projection"),
    )


def adapter_config(folder: Path) -> dict[str, Any]:
    """The config as `peft` wrote it; it says its `peft_type`.

    Raises:
        ModelError: it cannot be read.
    """
    path = folder / ADAPTER_CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        config["peft_type"]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ModelError("the adapter's config cannot be read", where=path, found=error, remedy=GET_AGAIN) from error
    return dict(config)


def type_merges(peft_type: Any) -> bool:
    """type_merges("LORA") -> True"""
    return getattr(peft_type, "value", peft_type) not in NEVER_MERGED
