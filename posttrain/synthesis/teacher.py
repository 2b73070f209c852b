"""Who is asked to write: one protocol for a local model and for an endpoint, answers in order, each counted.

replies = teacher.ask([Ask(messages=(Message("user", "2 + 2?"),), seed=7)])
replies[0].text, replies[0].ended, replies[0].completion_tokens

What makes rows takes a `Teacher` and does not know which one it is: tests pass a script (`tests/synthesis.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

from posttrain.types import Message


@dataclass(frozen=True, slots=True)
class Drawing:
    """How an answer is drawn: Drawing(temperature=0.7, max_new_tokens=512)."""

    temperature: float = 0.7
    top_p: float = 1.0
    max_new_tokens: int = 512
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ask:
    """One question to a teacher: Ask((Message("user", "2 + 2?"),), Drawing(temperature=0), seed=7)."""

    messages: tuple[Message, ...]
    """A conversation that waits for an answer."""
    drawing: Drawing = Drawing()
    seed: int = 0
    """Equal questions that should get different answers have different seeds; an endpoint may ignore it."""
    tools: tuple[Mapping[str, Any], ...] = ()
    speaker: Literal["assistant", "user"] = "assistant"
    """Who is to speak next: the assistant, who answers; or the user, whom a model on this machine can play (Magpie)."""

    @property
    def key(self) -> str:
        """Of its content: what was answered under this key is not asked again."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True, default=str).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back: Reply("4", prompt_tokens=11, completion_tokens=2)."""

    text: str
    """The answer without its thoughts; empty where there is none, and `error` or `ended` says why."""
    reasoning: str | None = None
    """The thoughts, where the teacher gives them apart or marks them."""
    ended: bool = True
    """False: it was cut by the limit, and no row should teach to stop there."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: str | None = None
    """Why there is no answer, for a question that was given up after all retries; the others go on."""
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    """What the teacher says of it beside: soft targets, a finish reason."""


OnReply = Callable[[int, Reply], None]
"""(index of the question, what came back), as each arrives: the order is the teacher's own."""


class Teacher(Protocol):
    """Whoever answers."""

    @property
    def name(self) -> str:
        """For the rows' origin."""
        ...

    def ask(self, asks: Sequence[Ask], on_reply: OnReply | None = None) -> list[Reply]:
        """An answer to each question, in their order.

        Raises:
            EngineError, ConfigError: nobody answers at all, or the teacher refuses who asks. What was answered by then
                was given to `on_reply`.
        """
        ...


UNASKED = "unasked"
"""The error of a question that was left out since a limit of tokens or cost was spent."""
