"""The completions of one request, from the engine's events to text, tokens and reasons.

    async for piece in sampled(thread, rows, choices): ...     # Piece(choice=0, text="Pa", tokens=(...), ...)

A route makes its pieces or its whole answer of the same stream of `Piece`s.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from posttrain.rollout.engine import Completion, FinishReason, SampledToken
from posttrain.serve.answer_parts import AnswerParts, Part
from posttrain.serve.engine_thread import EngineThread, Row
from posttrain.serve.refusals import RequestRefused
from posttrain.serve.text_stream import TextStream

FINISHES = {
    FinishReason.STOP_TOKEN: "stop",
    FinishReason.STOP_STRING: "stop",
    FinishReason.EMPTY: "stop",
    FinishReason.LENGTH: "length",
}
"""OpenAI's words for why a completion ended."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What has become certain of one completion: Piece(choice=0, text="Pa", parts=(Part("content", "Pa"),))."""

    choice: int
    text: str = ""
    parts: Sequence[Part] = ()
    """The same text as thoughts, content and calls, where the route asks for those."""
    tokens: Sequence[SampledToken] = ()
    """All that were sampled, a stop token and the ids of a stop string included."""
    ended: Completion | None = None


@dataclass
class Choice:
    """How one completion becomes text; `reader` splits it into parts."""

    text: TextStream
    stop_ids: frozenset[int]
    reader: AnswerParts | None = None

    def push(self, token: SampledToken) -> str:
        # A stop token ends the answer and is no part of its text; it is the last, so nothing follows it.
        return "" if token.id in self.stop_ids else self.text.push(token.id)


async def sampled(thread: EngineThread, rows: Sequence[Row], choices: Sequence[Choice]) -> AsyncGenerator[Piece, None]:
    """Pieces of all completions as they come; the rows leave the batch where the generator is closed.

    Raises:
        RequestRefused: the queue is full, or the server ended before the completions did.
        PosttrainError: what the engine refused, of this request.
    """
    async with thread.submit(rows) as job:
        async for events in job:
            fresh: dict[int, list[SampledToken]] = {}
            ended: dict[int, Completion] = {}
            for event in events:
                if event.token is not None:
                    fresh.setdefault(event.row, []).append(event.token)
                if isinstance(event.ended, Exception):
                    raise event.ended
                if event.ended is not None:
                    ended[event.row] = event.ended
            # All that has come for a choice is one piece: a client that reads slowly gets fewer and longer ones.
            for row in sorted({*fresh, *ended}):
                yield _piece(row, choices[row], fresh.get(row, []), ended.get(row))


def _piece(row: int, choice: Choice, tokens: list[SampledToken], ended: Completion | None) -> Piece:
    text = "".join([choice.push(token) for token in tokens])
    parts: list[Part] = []
    if ended is not None:
        if ended.finish is FinishReason.ABORTED:
            raise RequestRefused(
                "the server ended before the completion did",
                status=503,
                code="server_ending",
                remedy="ask again when it is back",
            )
        text += choice.text.finish(ended.stopped_by)
    if choice.reader is not None:
        parts = choice.reader.push(text)
        parts += choice.reader.finish() if ended is not None else []
    return Piece(row, text, parts, tokens, ended)
