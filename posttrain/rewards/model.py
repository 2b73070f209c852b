"""A trained reward model as a reward: posttrain's own folders, or any decoder saved as a sequence classifier."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.rewards.building import beside, options
from posttrain.rewards.scorer import Scorer
from posttrain.rollout.engine import FinishReason
from posttrain.types import Comparison, Feedback, Message, Task

if TYPE_CHECKING:
    from posttrain.config.rewards import ModelReward
    from posttrain.models.reward.scoring import RewardModel


class RatingModel:
    """The reward model's number for each response; loaded when it is first needed.

    Args:
        model: folder or name.
        head: an attribute, group, condition or ensemble member in place of the mix.
        normalised: with the scale and shift that were stored with the model.
        scale, shift: what becomes of the number: scale * reward + shift.
        device: `auto` takes the first accelerator there is.
    """

    def __init__(
        self,
        model: str,
        *,
        head: str | None = None,
        normalised: bool = False,
        scale: float = 1.0,
        shift: float = 0.0,
        device: str = "cpu",
    ):
        self.name, self.head, self.normalised = model, head, normalised
        self.scale, self.shift, self.device = scale, shift, device
        self._model: RewardModel | None = None
        self._lock = threading.Lock()

    @property
    def model(self) -> RewardModel:
        with self._lock:
            # Under the lock: rewards run in threads, and two copies of a reward model may not fit.
            if self._model is None:
                from posttrain.models.reward.scoring import load_reward

                self._model = load_reward(self.name, device=self.device)
            return self._model

    def __call__(
        self,
        prompts: Sequence[tuple[Message, ...]],
        completions: Sequence[str],
        tasks: Sequence[Task],
        *,
        groups: Sequence[int],
        finishes: Sequence[FinishReason],
    ) -> list[float | None]:
        """Responses to one prompt go to the model as one row, so that the prompt's tokens are computed once.

        One that was cut is scored at its last token: a stop token that nobody sampled would make it a finished one.
        """
        answers = [_answer(text, finish) for text, finish in zip(completions, finishes, strict=True)]
        # By prompt as well: outside of a rollout all responses may have the group 0.
        members: dict[tuple[int, tuple[Message, ...]], list[int]] = defaultdict(list)
        for index, (group, prompt) in enumerate(zip(groups, prompts, strict=True)):
            members[group, prompt_key(prompt)].append(index)
        rows: list[Any] = []
        for indices in members.values():
            first = indices[0]
            responses = tuple((answers[index],) for index in indices)
            if len(responses) == 1:
                rows.append(Feedback(prompts[first], responses[0], True, tasks[first].row, tasks[first].tools))
            else:
                rows.append(Comparison(prompts[first], responses, 0, tasks[first].row, tools=tasks[first].tools))
        rewards: list[float | None] = [None] * len(prompts)
        ratings = self.model.score_rows(rows, head=self.head, normalised=self.normalised)
        for indices, rating in zip(members.values(), ratings, strict=True):
            for index, reward in zip(indices, rating.rewards, strict=True):
                rewards[index] = self.scale * reward + self.shift
        return rewards


def _answer(text: str, finish: FinishReason) -> Message:
    # An answer without text has no token but its stop token to be scored at.
    return Message("assistant", text, complete=finish is not FinishReason.LENGTH or not text)


def prompt_key(prompt: tuple[Message, ...]) -> Any:
    """A prompt as something to compare: messages with tool calls hold mappings, which have no hash."""
    return tuple((m.role, m.content, m.name, m.tool_call_id, m.reasoning, repr(m.tool_calls)) for m in prompt)


def build(settings: ModelReward, folder: Path | None) -> Scorer:
    model = str(beside(settings.model, folder, must_exist=True))
    return Scorer(settings.label, RatingModel(model, **options(settings, "model")), settings.weight, shared=True)
