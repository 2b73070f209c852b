"""The interface of every engine: token ids in, token ids out.

    engine.generate([[1, 70, 71]], sampling, completions_per_prompt=2)
    -> [[Completion(ids=(52, 2), ...), Completion(ids=(53, 54, 2), ...)]]

Ids are never decoded and encoded again on the way: a tokenizer that writes "hello" as one token would otherwise
train on ids that nobody sampled. Text is made from ids once, at the end, for people and verifiers to read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from posttrain.sampling import SamplingDistribution


class FinishReason(StrEnum):
    """Why a completion ended."""

    STOP_TOKEN = "stop_token"
    """A stop token was sampled; it is the last of `ids`."""
    LENGTH = "length"
    """The limit was reached: `max_new_tokens`, or the last position that the model has."""
    EMPTY = "empty"
    """The first token was a stop token: `ids` holds it alone, and there is no answer."""
    ABORTED = "aborted"
    """The engine was told to stop; `ids` holds what was sampled until then, perhaps nothing."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What was sampled after one prompt.

    Completion(ids=(53, 54, 2), logprobs=(-0.11, -2.30, -0.02), finish=FinishReason.STOP_TOKEN, policy_version=3)
    """

    ids: tuple[int, ...]
    """Exactly the sampled ids, the stop token included."""
    logprobs: tuple[float, ...]
    """Nats, one per id, under the distribution that the id was drawn from (see `SamplingDistribution.log_probs`)."""
    finish: FinishReason
    policy_version: int = 0
    """The engine's version of the weights when sampling began."""

    @property
    def answer_ids(self) -> tuple[int, ...]:
        """The ids without the stop token, as text is made from them."""
        ended = self.finish in (FinishReason.STOP_TOKEN, FinishReason.EMPTY)
        return self.ids[:-1] if ended else self.ids


OnFinish = Callable[[int, int, Completion], None]
"""Called as each completion ends: (index of its prompt, its index among the prompt's completions, it)."""


class Engine(Protocol):
    """Samples completions; every engine passes the same conformance tests."""

    policy_version: int
    """Version of the weights that the engine samples from; whoever changes them raises it."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingDistribution,
        *,
        completions_per_prompt: int = 1,
        on_finish: OnFinish | None = None,
    ) -> list[list[Completion]]:
        """`completions_per_prompt` completions of each prompt, in the order of the prompts.

        The result depends on the weights, the prompts, the sampling record and `completions_per_prompt`, and not on how
        the engine fills its batches.

        Raises:
            ConfigError: a prompt that is empty, or that the model or the engine's memory cannot hold.
        """
        ...
