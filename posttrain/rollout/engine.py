"""The interface of every engine: token ids in, token ids out.

    engine.generate([[1, 70, 71]], sampling, completions_per_prompt=2)
    -> [[Completion(ids=(52, 2), ...), Completion(ids=(53, 54, 2), ...)]]

    await engine.generate_one(Request((1, 70, 71), sampling, completion=1))     # asked for on its own
    -> Completion(ids=(53, 54, 2), ...)

A step of training that waits for its whole batch asks with `generate`; whoever answers turn by turn, or trains while
others sample, asks with `generate_one`. The ids are the same.

Ids are never decoded and encoded again on the way: a tokenizer that writes "hello" as one token would otherwise
train on ids that nobody sampled. Text is made from ids once, at the end, for people and verifiers to read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple, Protocol

from posttrain.errors import ConfigError

if TYPE_CHECKING:
    from posttrain.sampling import SamplingDistribution


class FinishReason(StrEnum):
    """Why a completion ended."""

    STOP_TOKEN = "stop_token"
    """A stop token was sampled; it is the last of `ids`."""
    STOP_STRING = "stop_string"
    """The text came to hold one of `SamplingDistribution.stop`; the id that completed it is the last of `ids`."""
    LENGTH = "length"
    """The limit was reached: `max_new_tokens`, or the last position that the model has."""
    EMPTY = "empty"
    """The first token was a stop token: `ids` holds it alone, and there is no answer."""
    ABORTED = "aborted"
    """The engine was told to stop; `ids` holds what was sampled until then, perhaps nothing."""


class Versions(NamedTuple):
    """The weights that sampled a completion: Versions(oldest=6, newest=7), first token by 6 updates, last by 7.

    No other weights than those from `oldest` to `newest` had a part in it.
    """

    oldest: int
    newest: int


START = Versions(0, 0)
"""Weights that nobody has updated."""


class Alternatives(NamedTuple):
    """What the model itself said at one token: Alternatives(logprob=-0.69, top=((53, -0.51), (52, -0.69))).

    Raw: log softmax of the logits, in nats, at temperature 1, without penalties and without truncation (vLLM's default,
    `raw_logprobs`). `Completion.logprobs` has those of the distribution that was drawn from.
    """

    logprob: float
    """Of the id that stands there."""
    top: tuple[tuple[int, float], ...] = ()
    """(id, log-prob) of the k likeliest, likeliest first; the id that stands there need not be among them."""


class SampledToken(NamedTuple):
    """One token as it is sampled: SampledToken(id=53, logprob=-0.11, alternatives=None)."""

    id: int
    logprob: float
    """As in `Completion.logprobs`."""
    alternatives: Alternatives | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """What was sampled after one prompt.

    Completion(ids=(53, 54, 2), logprobs=(-0.11, -2.30, -0.02), finish=FinishReason.STOP_TOKEN,
               versions=Versions(3, 3), trains=(True, True, True))

    Where a tool answered within it, the tool's ids stand among the policy's and are no act of the policy:

    Completion(ids=(53, 90, 91, 2), logprobs=(-0.11, nan, nan, -0.02), ..., trains=(True, False, False, True))

    Raises:
        ValueError: `trains`, `logprobs` or `alternatives` has another length than `ids`.
    """

    ids: tuple[int, ...]
    """Exactly the sampled ids, the stop token included, and those that were put between them."""
    logprobs: tuple[float, ...]
    """Nats, one per id, under the distribution that the id was drawn from (see `SamplingDistribution.log_probs`). What
    stands at an id that the policy did not sample is never read, so it may be NaN."""
    finish: FinishReason
    versions: Versions = START
    trains: tuple[bool, ...] = ()
    """One per id: True where the policy sampled it, so that it has a gradient. Empty, as engines leave it, is True for
    all of them."""
    stopped_by: str | None = None
    """The stop string that ended it, where `finish` is STOP_STRING."""
    alternatives: tuple[Alternatives, ...] = ()
    """One per id where `Request.alternatives` asked for them, else empty."""

    def __post_init__(self) -> None:
        if not self.trains:
            object.__setattr__(self, "trains", (True,) * len(self.ids))
        if not len(self.ids) == len(self.logprobs) == len(self.trains):
            raise ValueError(
                f"a completion of {len(self.ids)} ids has {len(self.logprobs)} log-probs and a mask of "
                f"{len(self.trains)}: it needs one of each for every id"
            )
        if self.alternatives and len(self.alternatives) != len(self.ids):
            raise ValueError(
                f"a completion of {len(self.ids)} ids has alternatives at {len(self.alternatives)} of them: it needs "
                "them at every id or at none"
            )

    @property
    def num_sampled(self) -> int:
        """Ids that the policy sampled."""
        return sum(self.trains)

    @property
    def sampled_logprobs(self) -> list[float]:
        """The log-probs of those ids alone."""
        return [value for value, trains in zip(self.logprobs, self.trains, strict=True) if trains]

    @property
    def answer_ids(self) -> tuple[int, ...]:
        """The ids without the stop token, as text is made from them. A stop string's ids are among them, since one may
        begin within a token: `posttrain.rollout.text.completion_text` cuts the text."""
        ended = self.finish in (FinishReason.STOP_TOKEN, FinishReason.EMPTY)
        return self.ids[:-1] if ended else self.ids


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One completion of one prompt, asked for on its own: Request((1, 70, 71), sampling, completion=3).

    Two requests are never the same one, whatever they ask, so that each can be aborted.

    Raises:
        ConfigError: `alternatives` below 0.
    """

    prompt: Sequence[int]
    sampling: SamplingDistribution
    completion: int = 0
    """Which of the prompt's completions it is: number k is what `generate` gives as its k-th. Draws depend on the seed,
    the prompt and this number, so two requests that differ in none of them get the same ids."""
    occurrence: int = 0
    """How many equal prompts stand before this one in a batch, as `generate` counts them."""
    alternatives: int | None = None
    """None: none; 0: the raw log-prob of each sampled id; k: of the k likeliest ids beside it. It changes no draw."""
    on_token: Callable[[SampledToken], None] | None = None
    """Called with each token as it is sampled, in order, before the completion is given back: from the engine's step,
    which waits for it, so it must be quick. What it raises ends this request alone, as an EngineError."""

    def __post_init__(self) -> None:
        if self.alternatives is not None and self.alternatives < 0:
            raise ConfigError(
                "`alternatives` is out of range",
                found=self.alternatives,
                expected="None, 0 (the sampled id's raw log-prob) or the number of likeliest ids",
                remedy="ask for 0 or more",
            )


OnFinish = Callable[[int, int, Completion], None]
"""Called as each completion ends: (index of its prompt, its index among the prompt's completions, it)."""


class Engine(Protocol):
    """Samples completions; every engine passes the same conformance tests."""

    policy_version: int
    """Version of the weights that the engine samples from; whoever changes them raises it."""

    @property
    def context_tokens(self) -> int | None:
        """Most tokens of a prompt with its completion; None: not known here. Whoever goes on with an answer piece by
        piece has to stop there: a completion is cut at the last position, and a prompt that fills them is refused."""
        ...

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

    @property
    def in_flight(self) -> int:
        """Requests of `generate_one` that have not ended."""
        ...

    async def generate_one(self, request: Request) -> Completion:
        """One completion, sampled beside whatever else is asked for at the time; its ids are those of `generate`.

        A request that comes while others are sampled joins them at the next token. Each ends by itself: one that fails
        raises here and nowhere else, and the slot of one whose task is cancelled is free at once. `abort(request)` ends
        it too, and gives back what was sampled. Where the weights change before it has ended, it goes on under the new
        ones, and its `versions` say so.

        Raises:
            ConfigError: as `generate`; or the engine cannot give what the request asks for beside its ids.
            EngineError: the request's `on_token` raised.
        """
        ...

    def abort(self, request: Request | None = None) -> None:
        """End a request, or without one all that is being sampled: it comes back as ABORTED. From any thread."""
        ...
