"""What is written about a metric: its title, its unit, where it should go, and what it means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Better = Literal["up", "down", "none"]


@dataclass(frozen=True, slots=True)
class MetricInfo:
    """MetricInfo("Loss", "nats", "down", "What training minimises.")"""

    title: str
    unit: str
    """"" for plain numbers, "share" for fractions of 1, otherwise words: "nats", "nats/token", "tokens", "tokens/s"."""
    better: Better
    """Where a healthy run takes it; "none" where either way can be right."""
    description: str
