"""What both sides of the GRPO comparison share. Standard library only: the peer's environment reads it too."""

from __future__ import annotations

import argparse
from pathlib import Path

KL_BETA = 0.04
QUESTIONS = (
    "What is 17 + 25?",
    "Name the capital of France.",
    "Is 7 a prime number?",
    "Give one tip for studying.",
    "What color is the sky?",
    "What is 12*12?",
    "Translate 'cat' to French.",
    "Who wrote Hamlet?",
)


def near_sixty(text: str) -> float:
    """A reward that costs nothing: the closer to 60 characters the better."""
    return -abs(len(text) - 60) / 60


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True, help="folder of the model, as transformers reads it")
    parser.add_argument("--data", required=True, type=Path, help="rows with `prompt`")
    parser.add_argument("--prompts", type=int, default=8, help="of a step")
    parser.add_argument("--completions", type=int, default=8, help="of a prompt")
    parser.add_argument("--new-tokens", type=int, default=128, help="of a completion, at most")
    parser.add_argument("--steps", type=int, default=3, help="the first is not counted")
    parser.add_argument("--micro", type=int, default=16, help="completions of one micro-batch of the peer")
    return parser
