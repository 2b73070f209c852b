"""What `posttrain plan` says against runs that others have published: `python -m benchmarks.plan_published`.

prime-rl's BENCHMARKS.md gives memory and tokens/s of its own trainer: FSDP2, torch.compile, flash attention and fused
losses on H100 and H200 cards, random data, the RL trainer without sampling. posttrain runs eager and keeps fp32 master
weights, so the two differ for reasons that the last column names: a plan is of posttrain, and no card ran it here.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Run:
    """One line of the published table: Run("qwen3-0.6b", "sft", 8192, "h100-80gb", 1, 26_000, memory=31.7)."""

    model: str
    method: str
    tokens: int
    card: str
    gpus: int
    tokens_per_second: float
    memory: float | None = None
    """GiB of the fullest card."""
    options: dict[str, Any] = field(default_factory=dict)


LORA: dict[str, Any] = {"adapter": {"kind": "lora", "rank": 16}}
CHECKPOINTED: dict[str, Any] = {"compute": {"activation_checkpointing": True}}
RUNS = (
    Run("qwen3-0.6b", "sft", 8192, "h100-80gb", 1, 26_000, 31.7),
    Run("qwen3-0.6b", "sft", 16_384, "h100-80gb", 1, 25_500),
    Run("qwen3-0.6b", "grpo", 16_384, "h100-80gb", 1, 11_900, 12.5, CHECKPOINTED),
    Run("qwen3-0.6b", "grpo", 16_384, "h100-80gb", 1, 13_300, 5.1, {**LORA, **CHECKPOINTED}),
    Run("qwen3-4b", "grpo", 16_384, "h100-80gb", 1, 6_200, None, {**LORA, **CHECKPOINTED}),
    Run("qwen3-4b", "grpo", 16_384, "h200-141gb", 8, 52_400, None, {**LORA, **CHECKPOINTED}),
    Run("qwen3-4b", "sft", 16_384, "h200-141gb", 8, 53_100),
)


@dataclass(frozen=True, slots=True)
class Held:
    """A run beside its plan: Held(run, memory=21.3, tokens_per_second=30_100)."""

    run: Run
    memory: float
    tokens_per_second: float


def held(run: Run) -> Held:
    from posttrain.config.online import Online
    from posttrain.config.stages import SFT
    from posttrain.planning.cards import card_named
    from posttrain.planning.mesh import mesh_of
    from posttrain.planning.models import Models
    from posttrain.planning.plan import plan_stage, situation_of

    compute = {"tokens_per_microbatch": run.tokens, **run.options.get("compute", {})}
    options = {**run.options, "compute": compute}
    stage: Any
    if run.method == "sft":
        stage = SFT(rows_per_step=8 * run.gpus, max_length=run.tokens, **options)
    else:  # one completion that fills the row: the published figure is of the trainer alone
        sampling = {"max_new_tokens": run.tokens // 2}
        stage = Online("grpo", prompts_per_step=8 * run.gpus, sampling=sampling, max_length=run.tokens, **options)
    where = situation_of(stage, card_named(run.card), mesh_of(gpus=run.gpus), tokens=run.tokens)
    found = plan_stage(Models(run.model), where)
    return Held(run, found.memory.training.total_bytes / 2**30, found.tokens / found.seconds.training)


HEAD = f"{'model':<12}{'method':<7}{'':<6}{'tokens':>7}{'cards':>15}{'GiB':>8}{'plan':>8}"
HEAD += f"{'tok/s':>9}{'plan':>9}{'ratio':>7}"


def line(found: Held) -> str:
    run = found.run
    kind = "lora" if "adapter" in run.options else "full"
    memory = f"{run.memory:.1f}" if run.memory else "-"
    return (
        f"{run.model:<12}{run.method:<7}{kind:<6}{run.tokens:>7}{f'{run.gpus} x {run.card}':>15}{memory:>8}"
        f"{found.memory:>8.1f}{run.tokens_per_second:>9,.0f}{found.tokens_per_second:>9,.0f}"
        f"{found.tokens_per_second / run.tokens_per_second:>7.2f}"
    )


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0]).parse_args()
    print(HEAD)
    for run in RUNS:
        print(line(held(run)), flush=True)


if __name__ == "__main__":
    main()
