"""Thoughts in a turn: the marks around them, and where they stand in a text. Text work alone; it renders nothing.

Families write them differently: <think>..</think>, [THINK]..[/THINK], <seed:think>..</seed:think>,
<|channel>thought..<channel|>. Which a template uses is probed (`thought_probe.py`); here are the forms that a probe
can try, and the text work that is the same for all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

ThoughtState = Literal["none", "open", "closed"]
"""What a generation prompt ends with: no thought, one that waits for its thoughts, or one that is closed already."""


@dataclass(frozen=True, slots=True)
class ThoughtMarks:
    """The texts around a thought: ThoughtMarks("<think>", "</think>")."""

    open: str
    close: str


THINK = ThoughtMarks("<think>", "</think>")
"""What rows use whatever the template: the form in which distilled data are published."""

_CLOSING_FORMS = (
    (re.compile(r"</([A-Za-z][\w:.-]*)>"), "<{0}>", "</{0}>"),
    (re.compile(r"\[/([A-Za-z][\w:.-]*)\]"), "[{0}]", "[/{0}]"),
    (re.compile(r"<\|END_(\w+)\|>"), "<|START_{0}|>", "<|END_{0}|>"),
    (re.compile(r"<\|end_of_(\w+)\|>"), "<|begin_of_{0}|>", "<|end_of_{0}|>"),
    (re.compile(r"<\|(\w+)_end\|>"), "<|{0}_start|>", "<|{0}_end|>"),
    (re.compile(r"<\|/(\w+)\|>"), "<|{0}|>", "<|/{0}|>"),
    (re.compile(r"<(\w+)\|>"), "<|{0}>", "<{0}|>"),
    (re.compile(r"◁/(\w+)▷"), "◁{0}▷", "◁/{0}▷"),
)
"""How a closing mark names its opening one."""
_OPEN_AT_END = re.compile(r"(?:<([A-Za-z][\w:.-]*)>|\[([A-Za-z][\w:.-]*)\])\s*\Z")


def marks_in(source: str) -> list[ThoughtMarks]:
    """The pairs of marks that a template's text names, each a guess that a probe has to confirm."""
    pairs = [
        ThoughtMarks(opening.format(name), closing.format(name))
        for pattern, opening, closing in _CLOSING_FORMS
        for name in dict.fromkeys(pattern.findall(source))
    ]
    # <think> is always a guess, whatever the template names: rows have it.
    return list(dict.fromkeys([THINK, *pairs]))


def opened_at_end(text: str) -> ThoughtMarks | None:
    """opened_at_end("<|assistant|><think>\\n") -> ThoughtMarks("<think>", "</think>"); None for any other end."""
    match = _OPEN_AT_END.search(text)
    if match is None:
        return None
    tag, bracket = match.groups()
    return ThoughtMarks(f"<{tag}>", f"</{tag}>") if tag else ThoughtMarks(f"[{bracket}]", f"[/{bracket}]")


@dataclass(frozen=True, slots=True)
class SplitContent:
    """An answer's content, split into thoughts and answer.

    SplitContent("2 and 2", "</think>", "\\n\\n", "4.", marks) for a content of "<think>\\n2 and 2</think>\\n\\n4."
    """

    thoughts: str
    """Without the mark that opens them and the line break after it."""
    close: str
    gap: str
    """The white space between the closing mark and the answer."""
    visible: str
    marks: ThoughtMarks

    @property
    def after_open(self) -> str:
        """What a model writes after a prompt that has opened the thought, up to the answer."""
        return f"{self.thoughts}{self.close}{self.gap}"


def split_thoughts(content: str, pairs: Iterable[ThoughtMarks], *, opened: bool) -> SplitContent | None:
    """A content that begins with thoughts, or None.

    opened: whether thoughts without an opening mark count, since the prompt (or the template) opens them.
    """
    # The closing mark decides: where the prompt has opened the thought, a content has no opening mark of its own.
    for marks in pairs:
        before, closed, answer = content.partition(marks.close)
        stripped = before.lstrip()
        begins = stripped.startswith(marks.open)
        if not closed or not (begins or (opened and marks.open not in before)):
            continue
        thoughts = stripped.removeprefix(marks.open).removeprefix("\n") if begins else before
        visible = answer.lstrip()
        return SplitContent(thoughts, marks.close, answer[: len(answer) - len(visible)], visible, marks)
    return None


def marks_order(text: str, pairs: Sequence[ThoughtMarks]) -> str:
    """The marks of a text in their order, "o" for an opening and "c" for a closing one: "oc" for one closed thought."""
    # A set: "<|channel>" and "<|channel>thought" begin at the same place and are one mark.
    spots: set[tuple[int, str]] = set()
    for pair in pairs:
        for word, kind in ((pair.open, "o"), (pair.close, "c")):
            at = text.find(word)
            while at >= 0:
                spots.add((at, kind))
                at = text.find(word, at + len(word))
    if not spots:
        return ""
    return "".join(kind for _, kind in sorted(spots))


def thought_state(order: str) -> ThoughtState:
    """thought_state("o") -> "open"; thought_state("oc") -> "closed", and so does "c": no thought can follow either."""
    if not order:
        return "none"
    return "open" if order.endswith("o") else "closed"


def trailing_marks(text: str, pairs: Sequence[ThoughtMarks]) -> str:
    """trailing_marks("<|assistant|><think>\\n", pairs) -> "<think>\\n"; "" if no mark ends the text."""
    # An opening mark, one that is closed at once, or a lone closing mark: generation prompts end in each of these ways.
    for pair in pairs:
        opening, closing = re.escape(pair.open), re.escape(pair.close)
        match = re.search(rf"(?:{opening}\s*(?:{closing}\s*)?|{closing}\s*)\Z", text)
        if match is not None:
            return match.group()
    return ""
