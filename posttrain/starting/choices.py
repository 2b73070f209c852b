"""The settings that a number of rows needs: one literal table, each line with the measurement or paper behind it.

    choose("identity", 60, tiny=False) -> Choice(200, epochs=8, rows_per_step=4, rate=5e-4, adapter=True, ...)

"first steps" is docs/first-steps.md, whose figures `python -m benchmarks.first_steps` makes. The bounds lie between the
sizes that are asked about: 10, 60, 1,000 and 100,000 rows. What was not measured here says where it is from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

TINY = 20_000_000
"""Parameters below which all weights train, at `Choice.tiny_rate`: an adapter of so small a model saves nothing, and
its best rate is twenty to a hundred times that of a large one (first steps)."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Choice(200, epochs=8, rows_per_step=4, held_out=0.1, rate=5e-4, tiny_rate=1e-3, rank=16, source="...")"""

    up_to: int
    """The largest number of rows that this line is for."""
    epochs: int
    """Of an online stage: how often each task is asked."""
    rows_per_step: int
    """Of an online stage: prompts of a step, each with eight completions."""
    held_out: float
    """Share of the rows that measures and never trains."""
    rate: float
    """Learning rate: of the adapter, or of all weights where `rank` is None."""
    tiny_rate: float
    """Of all weights of a model below `TINY` parameters."""
    rank: int | None
    """Of LoRA; None trains all weights."""
    source: str
    """Where the line comes from."""


ANY = 10**12

CHOICES: Mapping[str, tuple[Choice, ...]] = {
    # up to, epochs, rows a step, share held out, rate, a tiny model's rate, rank of the adapter, source
    "identity": (
        Choice(20, 10, 4, 0.0, 5e-4, 1e-3, 16, "first steps: 10 rows; rate: as for 60 rows"),
        Choice(200, 5, 8, 0.1, 5e-4, 1e-3, 16, "first steps: 60 rows, SmolLM2-135M"),
        Choice(5_000, 3, 8, 0.05, 2e-4, 1e-3, 16, "recipes/identity.yaml: 239 pairs, 3 epochs"),
        Choice(ANY, 1, 32, 0.01, 2e-4, 1e-3, 16, "Alignment Handbook, zephyr-7b-beta qlora: 2e-4, 1 epoch"),
    ),
    "chat": (
        Choice(20, 5, 2, 0.0, 2e-4, 1e-3, 16, "first steps: 10 rows; rate: recipes/sft_sharegpt.yaml"),
        Choice(200, 4, 4, 0.1, 2e-4, 1e-3, 16, "first steps: 60 rows; rate: recipes/sft_sharegpt.yaml"),
        Choice(5_000, 3, 16, 0.05, 2e-4, 1e-3, 16, "recipes/sft_sharegpt.yaml: 2 or 3 epochs for a few thousand"),
        Choice(ANY, 1, 32, 0.01, 2e-5, 1e-3, None, "Alignment Handbook, zephyr-7b-beta sft full; arXiv:2405.09673"),
    ),
    "dpo": (
        Choice(20, 3, 2, 0.0, 1e-4, 1.5e-4, 16, "first steps: 10 pairs; rate: half of recipes/identity.yaml's"),
        Choice(200, 3, 4, 0.1, 1e-4, 1.5e-4, 16, "first steps: 60 pairs; rate: half of recipes/identity.yaml's"),
        Choice(5_000, 2, 16, 0.05, 5e-5, 1.5e-4, 16, "first steps: 500 pairs; posttrain/recipes/quickstart.yaml"),
        Choice(ANY, 1, 32, 0.02, 5e-6, 1.5e-4, 16, "Tunstall et al. 2023 (Zephyr): 5e-7 of all weights, ten times it"),
    ),
    "reward": (
        Choice(20, 3, 2, 0.0, 1e-4, 3e-4, 16, "not measured; epochs as for dpo"),
        Choice(200, 3, 4, 0.2, 1e-4, 3e-4, 16, "not measured; epochs as for dpo"),
        Choice(5_000, 2, 16, 0.1, 1e-4, 3e-4, 16, "posttrain/recipes/quickstart.yaml: 546 pairs, 1 epoch"),
        Choice(ANY, 1, 32, 0.02, 1e-5, 3e-4, None, "Touvron et al. 2023 (Llama 2), section 3.2.2: 1 epoch, 1e-5"),
    ),
    "grpo": (
        Choice(20, 20, 4, 0.0, 1.5e-4, 1.2e-4, 16, "recipes/grpo_arithmetic_smollm2.yaml"),
        Choice(200, 8, 8, 0.2, 1.5e-4, 1.2e-4, 16, "recipes/grpo_arithmetic_smollm2.yaml: 256 sums, 40 steps"),
        Choice(5_000, 1, 16, 0.1, 1.5e-4, 1.2e-4, 16, "posttrain/recipes/quickstart.yaml: 1,440 sums, 26 steps"),
        Choice(ANY, 1, 32, 0.01, 1e-5, 1.2e-4, 16, "Shao et al. 2024 (DeepSeekMath): 1e-6 of all weights, times ten"),
    ),
}
"""By kind of recipe, then by the number of rows."""


def choose(kind: str, rows: int) -> Choice:
    """The line for so many rows."""
    return next(choice for choice in CHOICES[kind] if rows <= choice.up_to)
