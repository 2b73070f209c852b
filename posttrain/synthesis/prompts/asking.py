"""What the ways to make prompts share: a teacher with its drawing, and how a text is taken out of a reply."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from posttrain.synthesis.journal import Journaled
from posttrain.synthesis.prompts.made import MadePrompts
from posttrain.synthesis.teacher import UNASKED, Ask, OnReply, Reply

AT_ONCE = 256
"""Questions of one call where none waits for another: enough to keep a teacher busy."""

_ITEM = re.compile(r"^\s*(?:\d{1,3}\s*[.):]|[-*•])\s+(?=\S)", re.MULTILINE)
_LABEL = re.compile(
    r"\A(?:the |a )?(?:new |rewritten |my )?(?:request|prompt|task|question|persona)\s*:\s*", re.IGNORECASE
)
_QUOTES = (('"', '"'), ("'", "'"), ("“", "”"), ("«", "»"), ("„", "“"), ("`", "`"))


@dataclass(slots=True)
class Asking:
    """A teacher at work on prompts: Asking(teacher, made, on_reply).ask(asks)"""

    teacher: Journaled
    made: MadePrompts
    on_reply: OnReply | None = None

    def ask(self, asks: Sequence[Ask]) -> list[Reply]:
        """Raises what `Teacher.ask` raises."""
        self.made.asked += len(asks)
        replies = self.teacher.ask(asks, self.on_reply)
        if any(reply.error == UNASKED for reply in replies):
            self.made.limit = self.teacher.spent.limit_reached
        return replies

    @property
    def may_go_on(self) -> bool:
        """Whether no limit of tokens or cost has ended the asking."""
        return self.made.limit is None


def items_of(text: str) -> list[str]:
    """The points of a numbered or dotted list, each with the lines that go on below it; [] where there is no list."""
    starts = list(_ITEM.finditer(text))
    ends = [match.start() for match in starts] + [len(text)]
    return [cleaned(text[match.end() : end]) for match, end in zip(starts, ends[1:], strict=True)]


def cleaned(text: str) -> str:
    """Without a label before it and quotation marks around it: models write both, whatever they are asked."""
    text = _LABEL.sub("", text.strip())
    for opening, closing in _QUOTES:
        if len(text) > 1 and text[0] == opening and text[-1] == closing and closing not in text[1:-1]:
            return text[1:-1].strip()
    return text.strip()
