"""An answer's text as thoughts, content and tool calls, while it comes and when it is whole.

    parts = AnswerParts(marks, opened=None, calls=format, tools=tools)
    parts.push("<think>2 and 2") + parts.push("</think>4.") + parts.finish()
    -> [Part("reasoning", "2 and 2"), Part("content", "4.")]

What is given is final. An answer that is not streamed is read by the same object, so both have the same parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from posttrain.data.templates.thoughts import ThoughtMarks
from posttrain.serve.call_format import CallFormat
from posttrain.serve.call_notations import Call

Kind = Literal["reasoning", "content", "call"]


class Part(NamedTuple):
    """Part("content", "4."), or Part("call", "", Call("add", {"a": 1}))."""

    kind: Kind
    text: str
    call: Call | None = None


class AnswerParts:
    """The parts of one answer.

    Args:
        marks: pairs of marks around thoughts; empty where the template marks none, and then no text is a thought.
        opened: the marks of the thought that the prompt has opened.
        calls: how calls are written; None where none are looked for.
    """

    def __init__(
        self,
        marks: Sequence[ThoughtMarks] = (),
        *,
        opened: ThoughtMarks | None = None,
        calls: CallFormat | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
    ):
        self._marks, self._opened = tuple(marks), opened
        self._calls, self._tools = calls, tools
        self._state: Literal["start", "thought", "gap", "content", "calls", "plain"] = "start"
        self._buffer = ""
        self._begun = False
        """Whether the thought has a text yet: the line break behind its mark is none."""

    def push(self, text: str) -> list[Part]:
        """The parts that have become certain with this text."""
        self._buffer += text
        return self._advance(last=False)

    def finish(self) -> list[Part]:
        """The rest."""
        return self._advance(last=True)

    def _advance(self, *, last: bool) -> list[Part]:
        parts: list[Part] = []
        state = None
        while state != self._state:
            state = self._state
            match state:
                case "start":
                    self._start(last)
                case "thought":
                    parts += self._thought(last)
                case "gap":  # the white space between a thought and its answer
                    self._buffer = self._buffer.lstrip()
                    if self._buffer:
                        self._state = "content"
                case "content":
                    parts += self._content(last)
                case "plain":
                    parts += self._given(len(self._buffer), "content")
                case "calls":
                    parts += self._read_calls() if last else []
        return [part for part in parts if part.text or part.call is not None]

    def _start(self, last: bool) -> None:
        bare = self._buffer.lstrip()
        opening = next((pair for pair in self._marks if bare.startswith(pair.open)), None)
        if opening is not None:
            # Where the prompt has opened the thought, a model may write the mark again: it opens no second one.
            self._opened = opening
            self._buffer = bare.removeprefix(opening.open)
            self._state = "thought"
        elif not last and any(pair.open.startswith(bare) for pair in self._marks):
            return  # what may become a mark, or nothing but white space
        else:
            self._state = "thought" if self._opened is not None else "content"

    def _thought(self, last: bool) -> list[Part]:
        assert self._opened is not None
        if not self._begun:
            self._buffer = self._buffer.lstrip()
            self._begun = bool(self._buffer)
        thoughts, closed, answer = self._buffer.partition(self._opened.close)
        if closed:
            self._buffer, self._state = answer, "gap"
            return [Part("reasoning", thoughts.rstrip())]
        if last:
            return self._given(len(self._buffer.rstrip()), "reasoning")
        return self._given(_certain(self._buffer, self._opened.close), "reasoning")

    def _content(self, last: bool) -> list[Part]:
        if self._calls is None:
            self._state = "plain"
            return []
        announcement = self._calls.announcement
        if not announcement:
            # Nothing announces a call: an answer that may be one is known when it is whole.
            self._state = "calls" if self._buffer.strip() and self._calls.may_begin(self._buffer) else "content"
            if not self._buffer.strip() and not last:
                return []
            self._state = self._state if self._state == "calls" else "plain"
            return []
        at = self._buffer.find(announcement)
        if at >= 0:
            self._state = "calls"
            return self._given(len(self._buffer[:at].rstrip()), "content")
        return self._given(len(self._buffer) if last else _certain(self._buffer, announcement), "content")

    def _read_calls(self) -> list[Part]:
        assert self._calls is not None
        read, self._buffer = self._calls.read(self._buffer, self._tools), ""
        has_calls = any(isinstance(part, Call) for part in read)
        # White space around calls is their layout; an answer without one keeps all that it has.
        return [
            Part("call", "", part) if isinstance(part, Call) else Part("content", part)
            for part in read
            if isinstance(part, Call) or not has_calls or part.strip()
        ]

    def _given(self, length: int, kind: Kind) -> list[Part]:
        given, self._buffer = self._buffer[:length], self._buffer[length:]
        return [Part(kind, given)]


def _certain(text: str, mark: str) -> int:
    """How much of a text is sure to stand before `mark`, which may begin at its end, and before the blanks there."""
    for length in range(min(len(mark) - 1, len(text)), 0, -1):
        if mark.startswith(text[-length:]):
            text = text[:-length]
            break
    return len(text.rstrip())
