"""Rewards for how long and how repetitive a response is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from posttrain.rewards.scorer import Sampled, Scorer
from posttrain.rewards.text import Prompt
from posttrain.rollout.engine import FinishReason
from posttrain.types import Message, Task

LengthUnit = Literal["tokens", "words", "characters"]


def measured(completion: str, tokens: int, unit: LengthUnit) -> int:
    """The length of a response."""
    return tokens if unit == "tokens" else len(completion.split()) if unit == "words" else len(completion)


def length(
    prompt: Prompt,
    completion: str,
    task: Task,
    *,
    target: int,
    tolerance: int,
    unit: LengthUnit = "tokens",
    tokens: int = 0,
) -> float | None:
    """1 at the target length, falling in a straight line to 0 at `tolerance` from it."""
    return max(0.0, 1 - abs(measured(completion, tokens, unit) - target) / tolerance)


def overlong(
    prompt: Prompt, completion: str, task: Task, *, max_length: int, buffer: int, tokens: int = 0
) -> float | None:
    """0 up to max_length - buffer, then falling to -1 at max_length: soft overlong punishment, DAPO eq. 13.

    Yu et al. 2025, arXiv:2503.14476.
    """
    return -min(1.0, max(0.0, (tokens - (max_length - buffer)) / buffer))


def repetition(prompt: Prompt, completion: str, task: Task, *, ngram: int = 3, penalty: float = 1.0) -> float | None:
    """Minus `penalty` times the share of n-grams of words that occurred before in the response.

    Yeo et al. 2025, arXiv:2502.03373, section 4.4, with words for tokens. Text without blanks, as Chinese, counts by
    characters. 0 for a response with fewer than n words.
    """
    words: Sequence[str] = completion.casefold().split()
    # Otherwise a text in Chinese is one long word, and may repeat itself for ever.
    if len(words) < ngram and len(completion) >= 4 * ngram:
        words = [letter for letter in completion if not letter.isspace()]
    grams = [tuple(words[start : start + ngram]) for start in range(len(words) - ngram + 1)]
    return -penalty * (1 - len(set(grams)) / len(grams)) if grams else 0.0


class Cosine:
    """A verifier's 0 or 1, made to depend on the length: short and right is best, short and wrong is worst.

    Yeo et al. 2025, arXiv:2502.03373, eq. 1: from r0 at length 0 along half a cosine to rL at `max_length`; `at_limit`
    for a response that was cut off. Our defaults are those of open-r1, which keep |reward| <= 1.
    """

    def __init__(
        self,
        of: Scorer,
        *,
        max_length: int,
        right: tuple[float, float] = (1.0, 0.5),
        wrong: tuple[float, float] = (-1.0, -0.5),
        at_limit: float = -1.0,
    ):
        self.of, self.max_length = of, max_length
        self.right, self.wrong, self.at_limit = right, wrong, at_limit

    def __call__(
        self,
        prompts: Sequence[tuple[Message, ...]],
        completions: Sequence[str],
        tasks: Sequence[Task],
        *,
        tokens: Sequence[int],
        finishes: Sequence[FinishReason],
        groups: Sequence[int],
    ) -> list[float | None]:
        items = [Sampled(*row) for row in zip(prompts, completions, tasks, finishes, tokens, groups, strict=True)]
        return [self._shaped(value, item) for value, item in zip(self.of.score(items), items, strict=True)]

    def _shaped(self, value: float | None, item: Sampled) -> float | None:
        if value is None:
            return None
        # Before right and wrong are asked: a cut response may hold the right number and still be no answer.
        if item.finish is FinishReason.LENGTH:
            return self.at_limit
        # A verifier's partial credit counts as wrong here: the paper's curve is for right or wrong.
        short, long = self.right if value >= 1 else self.wrong
        share = min(1.0, item.tokens / self.max_length)
        return long + (short - long) * (1 + math.cos(math.pi * share)) / 2
