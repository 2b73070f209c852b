"""What tests of strategies need: an engine that says what a script has, and prompts that are being solved.

solving = scripted({"2 + 2?": ["4", "5", "4"]})              # the draws of a prompt, by the text that stands before
answers = run(solving.sample(3)); [node.text for node in answers] == ["4", "5", "4"]
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

from posttrain.config.strategies.base import Spending
from posttrain.data.encode import Encoder
from posttrain.inference.scorers import Scorers
from posttrain.inference.solving import Asked, Solving
from posttrain.rollout.engine import Alternatives, Completion, FinishReason, Request, SampledToken
from posttrain.sampling import SamplingDistribution
from posttrain.types import Message, RowRef, Task
from tests.encoding import encoder_of

T = TypeVar("T")
Script = Mapping[str, Sequence[str]] | Callable[[str, int], str]
Top = Callable[[str, Sequence[int]], Sequence[tuple[int, float]]]
"""{text before the draws: the draws}, or (text before, number of the draw) -> draw. The text is that of the last user
turn, and of the answer so far after a line break; a draw that ends in "..." goes on for ever (it is cut)."""


class ScriptedEngine:
    """`Engine.generate_one` by a script, with stop strings, limits and aborts as real engines have them."""

    policy_version = 0
    context_tokens: int | None = None

    def __init__(
        self,
        encoder: Any,
        script: Script,
        logprob: Callable[[int], float] = lambda number: -0.5,
        top: Top | None = None,
    ):
        """
        Args:
            logprob: of a sampled id.
            top: (text before the draw, its ids up to and with one) -> (id, log-prob) of the likeliest in that id's
                place, likeliest first.
        """
        self.encoder, self.script, self.logprob, self.top = encoder, script, logprob, top
        self.requests: list[Request] = []
        self.sampled = 0
        """Tokens that were given out: what strategies must have counted."""
        self.aborted: set[Request] = set()

    async def generate_one(self, request: Request) -> Completion:
        self.requests.append(request)
        await asyncio.sleep(0)
        before = self.before(request.prompt)
        said = self.script(before, request.completion) if callable(self.script) else self._said(before, request)
        ids, finish, stopped_by = list(self.encoder.tokens.ids(said.removesuffix("..."))), FinishReason.STOP_TOKEN, None
        if not said.endswith("..."):
            ids.append(min(self.encoder.stop_ids))
        for length in range(1, len(ids) + 1):
            text = self.encoder.tokens.decode(ids[:length])
            found = [stop for stop in request.sampling.stop if stop in text]
            if found:
                ids, finish, stopped_by = ids[:length], FinishReason.STOP_STRING, found[0]
                break
        limit = request.sampling.max_new_tokens
        if len(ids) > limit or (finish is FinishReason.STOP_TOKEN and said.endswith("...")):
            ids, finish, stopped_by = ids[:limit], FinishReason.LENGTH, None
        if request in self.aborted:
            ids, finish, stopped_by = ids[:1], FinishReason.ABORTED, None
        logprobs = [self.logprob(number) for number in ids]
        tops = [() if self.top is None else tuple(self.top(before, ids[: at + 1])) for at in range(len(ids))]
        alternatives = [Alternatives(*both) for both in zip(logprobs, tops, strict=True)]
        for length, number in enumerate(ids if request.on_token is not None else (), 1):
            request.on_token(SampledToken(number, logprobs[length - 1], alternatives[length - 1]))
            if request in self.aborted and length < len(ids):  # after the last token there is nothing to end
                ids, finish, stopped_by = ids[:length], FinishReason.ABORTED, None
                break
        if finish is FinishReason.STOP_TOKEN and len(ids) == 1:
            finish = FinishReason.EMPTY
        self.sampled += len(ids)
        said = len(ids)
        raw = () if request.alternatives is None else tuple(alternatives[:said])
        return Completion(tuple(ids), tuple(logprobs[:said]), finish, stopped_by=stopped_by, alternatives=raw)

    def before(self, prompt: Sequence[int]) -> str:
        """The last user turn, and after a line break what stands of the answer already."""
        text = self.encoder.tokens.decode(prompt)
        user = text.rpartition("<|im_start|>user\n")[2]
        asked, _, answer = user.partition("<|im_end|>\n<|im_start|>assistant\n")
        return f"{asked}\n{answer}" if answer else asked

    def _said(self, before: str, request: Request) -> str:
        assert not callable(self.script)
        draws = self.script.get(before)
        assert draws is not None, f"nothing is said after {before!r}; the script has {list(self.script)}"
        return draws[request.completion % len(draws)]

    def abort(self, request: Request | None = None) -> None:
        self.aborted.update(self.requests if request is None else [request])

    in_flight = 0

    def generate(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("strategies ask for one completion at a time")


def scripted(
    script: Script,
    prompt: str = "2 + 2?",
    *,
    answer: str | None = None,
    sampling: Mapping[str, Any] | None = None,
    spend: Mapping[str, Any] | None = None,
    scorers: Scorers | None = None,
    raw_logprobs: bool = False,
    top: Top | None = None,
) -> Solving:
    """A prompt that is being solved on a scripted engine."""
    encoder = _encoder()
    asked = Asked(ScriptedEngine(encoder, script, top=top), encoder, scorers or Scorers(), seed=0)
    task = Task((Message("user", prompt),), answer, RowRef("prompts", 1))
    drawn = SamplingDistribution(**{"temperature": 1.0, "max_new_tokens": 200, **(sampling or {})})
    return Solving(asked, task, drawn, Spending(**(spend or {})), "test", raw_logprobs=raw_logprobs)


@cache
def _encoder() -> Encoder:
    """Made once: a tokenizer takes ten times as long as solving a prompt."""
    return encoder_of()


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def length_of(prompt: Any, completion: str, task: Any) -> float:
    """A reward: {"kind": "function", "function": "tests.inference:length_of"}."""
    return float(len(completion))
