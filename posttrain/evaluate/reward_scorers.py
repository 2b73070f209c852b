"""The seam between evaluation and reward models: whatever gives answers a number."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from posttrain.models.devices import device_of
from posttrain.models.reward.scoring import RewardModel, load_reward
from posttrain.types import Feedback, Message, RowRef


class RewardScorer(Protocol):
    """Something that scores answers: a reward model of ours, a public one, a rule."""

    def score(self, prompts: Sequence[Sequence[Message]], answers: Sequence[str]) -> list[float]:
        """The reward of each answer to its prompt, in their order; higher is better."""
        ...


class ModelScorer:
    """A reward model as a scorer: ModelScorer(pt.load_reward("runs/mine/reward/model"))."""

    def __init__(self, model: RewardModel):
        self.model = model

    def score(self, prompts: Sequence[Sequence[Message]], answers: Sequence[str]) -> list[float]:
        rows = (
            Feedback(tuple(prompt), (Message("assistant", answer),), True, RowRef("answers", number))
            for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True), start=1)
        )
        return [rating.rewards[0] for rating in self.model.score_rows(rows)]


def open_scorer(model: str | Path, *, device: str = "auto") -> RewardScorer:
    """A reward model by its folder or name.

    Raises:
        ModelError: nothing has this name, or it is no reward model.
        ConfigError: it has several outputs, or judges by a condition, and none is named.
    """
    return ModelScorer(load_reward(model, device=device_of(device)))
