"""Which thoughts a template shows: the key that it reads them from, and the marks around them, found by rendering.

The second half of `probe.py`, for templates of thinking models. `ChatTemplate` keeps the result, and the proof of each
turn (`proof.py`) reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from types import MappingProxyType
from typing import Any, Protocol

from posttrain.data.templates.probe import (
    ANSWER,
    PROBE_TOOL,
    QUESTION,
    THOUGHT,
    USER,
    CallForm,
    PlainMessage,
    Renderer,
    StopToken,
    TemplateLayout,
    rendered_or_none,
)
from posttrain.data.templates.thoughts import (
    THINK,
    ThoughtMarks,
    marks_in,
    marks_order,
    opened_at_end,
    thought_state,
    trailing_marks,
)
from posttrain.errors import TemplateError

REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
"""Under which of a message's keys templates read its thoughts, the usual one first."""


@dataclass(frozen=True, slots=True)
class ThoughtForm:
    """How a template deals with thoughts.

    ThoughtForm("reasoning_content", (ThoughtMarks("<think>", "</think>"),), writes_think=True)
    """

    key: str | None
    """The key of a message that it renders thoughts from; None if it renders none."""
    marks: tuple[ThoughtMarks, ...]
    """The marks that the template writes or reads, its own first; <think> is always among them, since rows have it."""
    rewrites: tuple[ThoughtMarks, ...] = ()
    """Marks in a content that the template moves, rewrites or leaves out."""
    writes_think: bool = True
    """Whether the thoughts that it renders stand in <think>, as those in a row's content do."""
    doubles: bool = False
    """Whether a turn whose content has a thought is shown with a second one, where its key gives a single one: the
    template writes the marks itself and leaves the content's (Kimi-K2)."""


class ProbedTemplate(Protocol):
    """A template whose layout and thoughts are known: what a proof reads of it."""

    @property
    def label(self) -> str: ...

    @property
    def layout(self) -> TemplateLayout: ...

    @property
    def thoughts(self) -> ThoughtForm: ...

    @property
    def null_content(self) -> str | None: ...

    @property
    def source(self) -> Any: ...

    @property
    def kwargs(self) -> Mapping[str, Any]: ...

    def render(
        self,
        messages: Sequence[PlainMessage],
        tools: Sequence[Any] = (),
        *,
        add_generation_prompt: bool = False,
        values: Mapping[str, Any] = MappingProxyType({}),
    ) -> str: ...

    def cut_tail(self, text: str, messages: Sequence[PlainMessage]) -> tuple[str, StopToken | None]: ...


def probe_thoughts(template: Renderer, source: str, layout: TemplateLayout, calls: CallForm) -> ThoughtForm:
    """Which key the template reads thoughts from, and which marks it writes or reads.

    Args:
        source: the template's text, which names its marks somewhere.
    """
    key, own_marks, writes_think = None, None, True
    answer: PlainMessage = {"role": "assistant", "content": ANSWER}
    calling = calls.exchange()[0]  # some templates keep the thoughts of a calling turn alone
    for turn, candidate in product((answer, calling) if calls.written else (answer,), REASONING_KEYS):
        tools = [PROBE_TOOL] if turn is calling else []
        text = rendered_or_none(template, [QUESTION, {**turn, candidate: THOUGHT}], tools)
        if text is not None and THOUGHT in text:
            key, own_marks = candidate, _around_thought(text, source)
            writes_think = THINK.open in text.partition(THOUGHT)[0].rpartition(USER)[2]
            break
    # The source only suggests marks; each of them has to show in a rendering.
    guesses = marks_in(source)
    rewritten = tuple(marks for marks in guesses if _rewrites(template, marks))
    # Marks that begin other turns too are no thought's: <|header_start|>user<|header_end|>.
    written = [
        marks
        for marks in guesses
        if trailing_marks(layout.generation, [marks]) and not marks_order(layout.between, [marks])
    ]
    if layout.header_is_prompt:  # an opening mark is a header then, as Cohere's <|START_RESPONSE|> is
        written = [marks for marks in written if thought_state(marks_order(layout.generation, [marks])) == "closed"]
    pairs = [marks for marks in (own_marks, opened_at_end(layout.prefill), *rewritten, *written) if marks is not None]
    doubles = key is not None and _doubles(template, key, own_marks or THINK)
    return ThoughtForm(key, tuple(dict.fromkeys([*pairs, THINK])), rewritten, writes_think, doubles)


def _doubles(template: Renderer, key: str, marks: ThoughtMarks) -> bool:
    """Asked of the last turn and of an earlier one, where templates leave thoughts out."""
    answer: PlainMessage = {"role": "assistant", "content": ANSWER}
    in_content, under_key = {**answer, "content": _spaced(marks, marks.open)}, {**answer, key: THOUGHT}

    def order(*turns: PlainMessage) -> str:
        text = rendered_or_none(template, [QUESTION, *turns]) or ""
        return marks_order([*text.split(USER), ""][1], [marks])

    return any(
        len(order(in_content, *after)) > 2 and order(under_key, *after) in ("", "oc", "c")
        for after in ((), (QUESTION, answer))
    )


def _around_thought(text: str, source: str) -> ThoughtMarks | None:
    """The marks around a known thought, if they are one of the pairs that the template names."""
    before, _, after = text.partition(THOUGHT)
    for marks in marks_in(source):
        if before.rstrip().endswith(marks.open) and after.lstrip().startswith(marks.close):
            return marks
    closing = after.partition(ANSWER)[0].strip()
    last = before.rstrip().rsplit("\n", 1)[-1]
    # <|channel>thought ... <channel|>: a pair that no rule of spelling gives away is taken as it stands.
    opening = last.rfind("<")
    if closing.startswith("<") and closing.endswith(">") and closing.count("<") == 1 and opening >= 0:
        return ThoughtMarks(last[opening:], closing)
    return None


def _rewrites(template: Renderer, marks: ThoughtMarks) -> bool:
    """Whether a template reads the marks in a content: it leaves the thought out, moves it, or opens it again.

    White space is no evidence, since a template may fold line breaks in every content.
    """
    as_given = f"{marks.open}{THOUGHT}{marks.close}{ANSWER}"
    rendered = rendered_or_none(template, [QUESTION, {"role": "assistant", "content": _spaced(marks, marks.open)}])
    if rendered is None or ANSWER not in rendered:
        return False
    if as_given not in "".join(rendered.split()):
        return True
    rendered = rendered_or_none(template, [QUESTION, {"role": "assistant", "content": _spaced(marks, "")}])
    header = rendered_or_none(template, [QUESTION, {"role": "assistant", "content": ANSWER}]) or ""
    if header.partition(ANSWER)[0].rstrip().endswith(marks.open):
        return False  # every answer stands behind this mark, as behind Cohere's <|START_RESPONSE|>
    return rendered is not None and as_given in "".join(rendered.split())


def _spaced(marks: ThoughtMarks, opening: str) -> str:
    return f"{opening}\n{THOUGHT}\n{marks.close}\n\n{ANSWER}".lstrip("\n")


def switches(
    template: ProbedTemplate,
    prompt: Callable[[Mapping[str, Any]], str],
    wanted: Sequence[str],
    pairs: Sequence[ThoughtMarks],
) -> Iterator[str]:
    """Values of the template that give a generation prompt of a wanted state; each one was tried.

    prompt: a function of values for the template that renders the prompt in question with them.
    """
    source = template.source if isinstance(template.source, str) else ""
    for name, value in product(("enable_thinking", "thinking"), (True, False)):
        if name not in source or template.kwargs.get(name) is value:
            continue
        try:
            text = prompt({name: value})
        except TemplateError:
            continue  # the template refuses the value: no remedy
        if thought_state(marks_order(text, pairs)) in wanted:
            yield f"{{{name}: {str(value).lower()}}}"
