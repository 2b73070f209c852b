"""What both sides train with: the peer's defaults, so that the losses agree step by step."""

from __future__ import annotations

LEARNING_RATE = 5e-6
BETA = 0.1
ADAM_BETAS = (0.9, 0.999)
SEED = 0
