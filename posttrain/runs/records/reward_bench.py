"""What RewardBench 2 says of a reward model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from posttrain.runs.records.base import Record
from posttrain.runs.records.evaluation import Figure


@dataclass(frozen=True, slots=True)
class RewardBench(Record):
    """RewardBench(1, 1865, domains={"Math": Figure(0.66, 0.58, 0.72, 183), ...}, average=Figure(0.71, ...), ...)"""

    schema: int | None
    prompts: int | None
    domains: Mapping[str, Figure]
    """By subset: how often the right answer has the highest reward; of Ties its score."""
    average: Figure | None
    """The mean of the domains, each weighing the same."""
    chance: Mapping[str, float]
    """What equal chances for all answers would reach, by domain; none for Ties."""
    ties: Mapping[str, Figure]
    """What the score of Ties is made of."""

    def __str__(self) -> str:
        """A table for a terminal."""
        width = max(map(len, (*self.domains, "average")))
        lines = [f"{'best answer first':<{width}}  {self.prompts or 0:,} prompts"]
        for name, figure in (*self.domains.items(), *((("average", self.average),) if self.average else ())):
            low, high = figure.low or 0.0, figure.high or 0.0
            by_chance = f"  chance {self.chance[name]:.1%}" if name in self.chance else ""
            shown = f"{figure.value:6.1%} [{low:.1%}, {high:.1%}]  n {figure.n or 0:,}{by_chance}"
            lines.append(f"{name:<{width}}  {shown}".replace("%", " %"))
        parts = [
            f"{name.replace('_', ' ')} {figure.value:.1%}".replace("%", " %") for name, figure in self.ties.items()
        ]
        return "\n".join(lines + ([f"Ties: {', '.join(parts)}"] if parts else []))
