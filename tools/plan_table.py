"""The table of docs/scale.md: on how many cards of 80 GB a model trains. `python -m tools.plan_table [--only 8B]`.

For each size and method the smallest power of two of H100 cards with 80 GB on which the plan fits, eight to a machine:
with activation checkpointing, bf16, micro-batches as `auto` finds them, rows of 4,096 tokens (for GRPO prompts of 512
and completions of 2,048, on the native engine, with a reference). Planned, and not run.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.config.base import TrainingStage
from posttrain.config.online import Online
from posttrain.config.stages import DPO, SFT
from posttrain.planning.cards import card_named
from posttrain.planning.memory import rank_memory
from posttrain.planning.mesh import Mesh
from posttrain.planning.models import Models
from posttrain.planning.plan import situation_of
from posttrain.planning.remedies import fitting_cards

SIZES: Mapping[str, str] = {
    "0.5B": "qwen2.5-0.5b",
    "1.7B": "qwen3-1.7b",
    "4B": "qwen3-4b",
    "8B": "qwen3-8b",
    "14B": "qwen3-14b",
    "32B": "qwen3-32b",
    "70B": "llama-3.1-70b",
}
CHECKPOINTED: Mapping[str, Any] = {"compute": {"activation_checkpointing": True}}
LORA: Mapping[str, Any] = {"adapter": {"kind": "lora", "rank": 16}}
METHODS = ("SFT", "DPO, live reference", "GRPO")


def stage_of(method: str, options: Mapping[str, Any]) -> TrainingStage:
    common = {**CHECKPOINTED, **options}
    if method == "SFT":
        return SFT(rows_per_step=64, max_length=4096, **common)
    if method == "GRPO":
        return Online("grpo", prompts_per_step=64, kl_beta=0.01, sampling={"max_new_tokens": 2048}, **common)
    kind = "adapter_off" if "adapter" in options else "live"
    return DPO(rows_per_step=64, max_length=4096, reference={"kind": kind}, **common)


def cell(models: Models, stage: TrainingStage) -> str:
    """1 (41 GB), or 8, {shard: 8} (63 GB): cards, mesh, and what the fullest holds."""
    found = fitting_cards(models, situation_of(stage, card_named("h100-80gb"), Mesh()))
    if found is None:
        return "-"
    size = f"{rank_memory(models, found).fullest.total_bytes / 1e9:.0f} GB"
    return f"{found.mesh.ranks} ({size})" if found.mesh.ranks == 1 else f"{found.mesh.ranks}, {found.mesh} ({size})"


def row(size: str) -> str:
    models = Models(SIZES[size])
    cells = [cell(models, stage_of(method, options)) for method in METHODS for options in ({}, LORA)]
    return f"| {size} | {SIZES[size]} | {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", choices=SIZES, help="one size")
    only = parser.parse_args(arguments).only
    heads = [f"{method}, {what}" for method in METHODS for what in ("all weights", "LoRA")]
    print(f"| size | such as | {' | '.join(heads)} |")
    print("|---" * (2 + len(heads)) + "|")
    for size in SIZES:
        if only in (None, size):
            print(row(size), flush=True)


if __name__ == "__main__":
    main()
