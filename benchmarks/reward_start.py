"""The folder that both sides of the reward benchmark start from: the model's backbone under a head with fixed weights.

    python -m benchmarks.reward_start --model FOLDER --out SCRATCH/reward

The head is not zero, so that a step moves every weight from the beginning, and the pad token ends no response, so that
the peer scores the token that we score.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from posttrain.data.encode import Encoder
from posttrain.losses.reward_rule import RewardRule
from posttrain.models import load
from posttrain.models.reward.folders import start_reward


def make(model: str, out: Path) -> None:
    """Write the folder."""
    loaded = load(model)
    reward = start_reward(loaded, RewardRule(), init="normal", stop_ids=Encoder(loaded.tokenizer).stop_ids)
    reward.model.save_pretrained(out)
    reward.tokenizer.save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", required=True, type=Path)
    given = parser.parse_args()
    make(given.model, given.out)


if __name__ == "__main__":
    main()
