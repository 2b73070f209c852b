"""The learning rate over the steps, as a factor of its peak."""

from __future__ import annotations

from math import cos, pi
from typing import Literal


def factor(
    step: int,
    steps: int,
    *,
    kind: Literal["cosine", "linear", "constant"],
    warmup_ratio: float = 0.0,
    final_ratio: float = 0.0,
) -> float:
    """Share of the peak rate at step `step` (from 0) of `steps`.

    The warm-up rises linearly and never starts at 0, so that the first step trains: with 10 warm-up steps it is 0.1,
    0.2, ..., 1. Then a cosine (Loshchilov and Hutter 2017, eq. 5, without restarts) or a line down to `final_ratio`.
    """
    warmup = round(warmup_ratio * steps)
    if step < warmup:
        return (step + 1) / warmup
    if kind == "constant":
        return 1.0
    done = (step - warmup) / max(1, steps - warmup)
    shape = 0.5 * (1 + cos(pi * done)) if kind == "cosine" else 1 - done
    return final_ratio + (1 - final_ratio) * shape
