"""What a template does, found out by rendering known texts: layout, ends of turns, tool calls, thoughts.

Nothing is recognised by a family's name. Every probe renders a conversation whose texts occur nowhere else and reads
off what stands around them. A probe that the template refuses finds nothing; the first row of that kind is then
refused with the template's own words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any, Protocol

from posttrain.data.templates.call_text import ArgumentForm, call_in_form, lost_part
from posttrain.data.templates.thoughts import (
    THINK,
    ThoughtMarks,
    marks_in,
    marks_order,
    opened_at_end,
    thought_state,
    trailing_marks,
)
from posttrain.data.tokens import Tokens
from posttrain.errors import TemplateError

PlainMessage = dict[str, Any]
"""A message as templates read it: {"role": "user", "content": "Hi"}."""

USER, ANSWER, TOOL, THOUGHT = (
    "posttrainprobequestion",
    "posttrainprobeanswer",
    "posttrainprobetool",
    "posttrainprobethought",
)
RESULT = "posttrainproberesult"
_KEY, _VALUE = "posttrainprobekey", "posttrainprobevalue"
QUESTION: PlainMessage = {"role": "user", "content": USER}
PROBE_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": TOOL,
        "description": "A probe.",
        "parameters": {"type": "object", "properties": {_KEY: {"type": "string", "description": "A text."}}},
    },
}
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
"""Under which of a message's keys templates read its thoughts, the usual one first."""


def probe_call(number: int = 1) -> dict[str, Any]:
    """A call that no row holds. The id has nine letters and digits, as Mistral's templates insist."""
    function = {"name": TOOL, "arguments": {_KEY: _VALUE}}
    return {"id": f"call{number:05d}", "type": "function", "function": function}


class Renderer(Protocol):
    """A template that can be probed."""

    @property
    def tokens(self) -> Tokens: ...

    @property
    def label(self) -> str: ...

    def render(
        self, messages: Sequence[PlainMessage], tools: Sequence[Any] = (), *, add_generation_prompt: bool = False
    ) -> str: ...


def rendered_or_none(
    template: Renderer,
    messages: Sequence[PlainMessage],
    tools: Sequence[Any] = (),
    *,
    add_generation_prompt: bool = False,
) -> str | None:
    """`template.render`, or None where it refuses the conversation."""
    try:
        return template.render(messages, tools, add_generation_prompt=add_generation_prompt)
    except TemplateError:
        return None  # the template refuses such conversations; a row that needs them is refused aloud


# ---------------------------------------------------------------- layout


@dataclass(frozen=True, slots=True)
class TemplateLayout:
    """Where turns begin and end: TemplateLayout("<|im_start|>assistant\\n", prefill="", between="<|im_end|>\\n...user\\n",
    headers=..., closes="<|im_end|>", header_is_prompt=True)."""

    generation: str
    """The generation prompt: what asking adds to a conversation."""
    prefill: str
    """What the generation prompt has beyond the beginning of a finished turn, as <think> in some families."""
    between: str
    """What stands between an answer and the next question."""
    headers: str
    """Texts that begin turns. Their tokens end nothing: a model that learns to write one goes on to play the user."""
    closes: str | None
    """The token that ends turns of the user; see `first_stop`."""
    header_is_prompt: bool
    """Whether finished turns begin with the generation prompt and nothing else."""


# ---------------------------------------------------------------- ends of turns


@dataclass(frozen=True, slots=True)
class StopToken:
    """The token that ends an assistant's turn: StopToken("<|im_end|>", 2)."""

    text: str
    id: int


@dataclass(frozen=True, slots=True)
class Tail:
    """What a template writes after a turn's last text: Tail("<|im_end|>\\n", kept="", stop=StopToken("<|im_end|>", 2))."""

    text: str
    kept: str
    """The part before the stop token, which the model writes too."""
    stop: StopToken | None


@dataclass(frozen=True, slots=True)
class TurnKind:
    """What a turn is made of, as far as its end may depend on it: TurnKind(content=True, calls=False, ...)."""

    content: bool
    calls: bool
    thoughts: bool
    after_tool: bool
    """The turn follows a tool's result."""


def turn_kind(messages: Sequence[PlainMessage], index: int, *, thoughts: bool) -> TurnKind:
    """Of the turn messages[index]; thoughts: whether the template renders any for it."""
    message = messages[index]
    return TurnKind(
        content=bool((message["content"] or "").strip()),
        calls=bool(message.get("tool_calls")),
        thoughts=thoughts,
        after_tool=index > 0 and messages[index - 1]["role"] == "tool",
    )


class Ends:
    """How turns of each kind end: the tail of a plain answer, and of others where it differs.

    A calling turn may end with another token than an answer (gpt-oss: <|call|>, Llama 3.1: <|eom_id|>), and in some
    families with the token that begins the tool's result (GLM: <|observation|>).

    Args:
        plain: the end of an answer that is text alone.
    """

    def __init__(
        self, template: Renderer, plain: Tail, layout: TemplateLayout, calls: CallForm, thoughts_key: str | None
    ):
        self._template, self._layout, self._calls, self._key = template, layout, calls, thoughts_key
        self.plain = plain
        self._of: dict[TurnKind, Tail | None] = {}

    def of(self, kind: TurnKind) -> Tail | None:
        """None where the template refuses such a turn, or writes it in a way that a probe cannot read."""
        if kind not in self._of:
            self._of[kind] = self._probe(kind)
        return self._of[kind]

    @cached_property
    def all(self) -> tuple[Tail, ...]:
        """The ends of every kind of turn, that of a plain answer first."""
        switched = product((False, True), (False, True), (False, True), (True, False))
        kinds = [TurnKind(content, calls, thoughts, after) for calls, thoughts, after, content in switched]
        found = [tail for kind in kinds if (kind.content or kind.calls) and (tail := self.of(kind)) is not None]
        return tuple(dict.fromkeys([self.plain, *found]))

    def _probe(self, kind: TurnKind) -> Tail | None:
        if kind.calls and not self._calls.written:
            return None
        context = [QUESTION]
        if kind.after_tool:
            context += self._calls.exchange()
        turn = self._turn(kind)
        rendered = rendered_or_none(
            self._template, [*context, turn], [PROBE_TOOL] if kind.calls or kind.after_tool else ()
        )
        before = rendered_or_none(self._template, context, [PROBE_TOOL] if kind.calls or kind.after_tool else ())
        if rendered is None or before is None:
            return None
        if kind.content and (not kind.calls or rendered.rfind(ANSWER) > rendered.rfind(_VALUE)):
            _, found, text = rendered.rpartition(ANSWER)
            return self._after_text(text) if found else None
        return self._after_call(rendered, context, turn)

    def _turn(self, kind: TurnKind, calls: int = 1) -> PlainMessage:
        turn: PlainMessage = {"role": "assistant", "content": ANSWER if kind.content else self._calls.null_content}
        if kind.calls:
            turn["tool_calls"] = [call_in_form(probe_call(number + 1), self._calls.form) for number in range(calls)]
        if kind.thoughts and self._key:
            turn[self._key] = THOUGHT
        return turn

    def _after_text(self, text: str) -> Tail | None:
        if text == self.plain.text:
            return self.plain
        found = first_stop(self._template.tokens, text, self._layout.closes)
        if found is None:
            return self.plain if not text.strip() and not self.plain.text.strip() else None
        return Tail(text, *found)

    def _after_call(self, rendered: str, context: list[PlainMessage], turn: PlainMessage) -> Tail | None:
        """The end of a turn whose last text is a call.

        The call's own notation may end with an added token too (</tool_call>), which closes the call and not the turn.
        """
        tokens = self._template.tokens
        if self.plain.text.strip() and rendered.endswith(self.plain.text):
            return self.plain
        for added in tokens.added_at_end(rendered):
            if added in self._layout.headers:  # a template that begins the next turn whether it is asked to or not
                continue
            if self._closes_call(added, context, turn):
                break
            return Tail(rendered[rendered.rindex(added) :], "", StopToken(added, tokens.added[added]))
        following = self._result_header(rendered, context, turn)
        if following is not None:
            return following
        # Nothing ends the turn: what ends an answer ends it, where that is the eos put after a text without an end.
        return Tail("", "", self.plain.stop) if not self.plain.text.strip() else None

    def _closes_call(self, token: str, context: list[PlainMessage], turn: PlainMessage) -> bool:
        """Whether a token is part of each call: with two calls it stands there once more."""
        tools = [PROBE_TOOL]
        one = rendered_or_none(self._template, [*context, turn], tools)
        both = {**turn, "tool_calls": [call_in_form(probe_call(number), self._calls.form) for number in (1, 2)]}
        two = rendered_or_none(self._template, [*context, both], tools)
        if one is None or two is None or two.count(TOOL) <= one.count(TOOL):  # one call at a time
            opened = token.replace("/", "", 1) if "/" in token else None
            return opened is not None and one is not None and opened in one[one.rfind(TOOL) - 200 :]
        return two.count(token) > one.count(token)

    def _result_header(self, rendered: str, context: list[PlainMessage], turn: PlainMessage) -> Tail | None:
        """The token that begins a tool's result, where it begins no other turn and nothing else ends the call."""
        result = self._calls.result()
        longer = rendered_or_none(self._template, [*context, turn, result], [PROBE_TOOL])
        if longer is None or not longer.startswith(rendered):
            return None
        header = longer[len(rendered) :].partition(RESULT)[0]
        found = first_stop(self._template.tokens, header)
        if found is None or found[1].text in self._layout.headers or found[0].strip():
            return None
        return Tail("", *found)


def first_stop(tokens: Tokens, tail: str, closes: str | None = None) -> tuple[str, StopToken] | None:
    """What the model writes after its answer, and the first added token there, or the one token that the tail is.

    closes: the token that ends turns of the user. Where it follows that first one directly, as in Cohere's
    <|END_RESPONSE|><|END_OF_TURN_TOKEN|>, both are the model's to write, and it stops at the second: every other
    engine, which knows the second as eos, would otherwise wait for a token that was never trained.
    """
    added = tokens.first_added(tail)
    if added is not None:
        at, text = added
        kept, rest = tail[:at], tail[at + len(text) :]
        if closes is not None and text != closes and rest.startswith(closes):
            return kept + text, StopToken(closes, tokens.added[closes])
        return kept, StopToken(text, tokens.added[text])
    bare = tail.strip()
    number = tokens.single_id(bare) if bare else None
    return (tail[: tail.index(bare)], StopToken(bare, number)) if number is not None else None


# ---------------------------------------------------------------- tool calls


@dataclass(frozen=True, slots=True)
class CallForm:
    """How a template takes tool calls: CallForm("mapping", null_content=None, written=True, in_history=True)."""

    form: ArgumentForm
    null_content: str | None
    """What an absent content must be, so that no "None" is printed."""
    written: bool
    """Whether a turn that calls shows its call."""
    in_history: bool
    """Whether it still does when the conversation goes on."""
    shows_tools: bool = True
    """Whether the schemas of tools are shown at all."""

    def exchange(self) -> list[PlainMessage]:
        """A call and its result."""
        calling: PlainMessage = {"role": "assistant", "content": self.null_content}
        return [{**calling, "tool_calls": [call_in_form(probe_call(), self.form)]}, self.result()]

    def result(self) -> PlainMessage:
        return {"role": "tool", "content": RESULT, "name": TOOL, "tool_call_id": probe_call()["id"]}


def probe_calls(template: Renderer, prefill: str) -> CallForm:
    """Tries arguments as a mapping and as JSON text, and absent contents as None and as an empty text.

    A template that joins `arguments` to a text fails on a mapping, one that walks through its items fails on a text,
    and one that passes it through `tojson` quotes a text twice; what comes out tells which form is meant.
    """
    return replace(_call_form(template, prefill), shows_tools=_shows_tools(template))


def _shows_tools(template: Renderer) -> bool:
    """Asked with and without a system turn, since some templates put the schemas there."""
    system: PlainMessage = {"role": "system", "content": ANSWER}
    texts = [
        rendered_or_none(template, before, [PROBE_TOOL], add_generation_prompt=True)
        for before in ([QUESTION], [system, QUESTION])
    ]
    return all(text is None for text in texts) or any(text is not None and TOOL in text for text in texts)


def _call_form(template: Renderer, prefill: str) -> CallForm:
    forms: tuple[ArgumentForm, ArgumentForm] = ("mapping", "text")
    spoilt: CallForm | None = None
    for form in forms:
        for null_content in (None, ""):
            text = _calling(template, form, null_content, prefill)
            if text is None:
                continue
            found = CallForm(form, null_content, TOOL in text, True)
            # Arguments lost, in Python's own quotes, or as JSON inside JSON: the other form may give what is meant.
            lost = lost_part([probe_call()], text) is not None
            if lost or f"{{'{_KEY}'" in text or f'\\"{_KEY}' in text:
                if spoilt is None or (found.written and not spoilt.written):
                    spoilt = found
                break
            return replace(found, in_history=_in_history(template, found))
    if spoilt is None:
        return CallForm("mapping", "", False, False)
    return replace(spoilt, in_history=spoilt.written and _in_history(template, spoilt))


def _calling(template: Renderer, form: ArgumentForm, null_content: str | None, prefill: str) -> str | None:
    """The text of a turn that calls a tool; None where the template refuses it, or prints the absent content."""
    calling: PlainMessage = {"role": "assistant", "content": null_content}
    calling["tool_calls"] = [call_in_form(probe_call(), form)]
    context = rendered_or_none(template, [QUESTION], [PROBE_TOOL], add_generation_prompt=True)
    rendered = rendered_or_none(template, [QUESTION, calling], [PROBE_TOOL])
    if context is None or rendered is None:
        return None
    extra = rendered[len(context.removesuffix(prefill)) :]
    # Jinja prints an absent content as this word, and the model would learn it.
    return None if "None" in extra or "null" in extra else extra


def _in_history(template: Renderer, form: CallForm) -> bool:
    rendered = rendered_or_none(
        template, [QUESTION, *form.exchange(), QUESTION], [PROBE_TOOL], add_generation_prompt=True
    )
    return rendered is None or _VALUE in rendered


# ---------------------------------------------------------------- thoughts


@dataclass(frozen=True, slots=True)
class ThoughtForm:
    """How a template deals with thoughts: ThoughtForm("reasoning_content", (ThoughtMarks("<think>", "</think>"),), True)."""

    key: str | None
    """Which key of a message it renders thoughts from; None where from none."""
    marks: tuple[ThoughtMarks, ...]
    """The marks that the template writes or reads, its own first; <think> is always among them, since rows have it."""
    takes_apart: tuple[ThoughtMarks, ...] = ()
    """Marks in a content that the template moves, rewrites or leaves out."""
    writes_think: bool = True
    """Whether the thoughts that it renders stand in <think>, as those in a row's content do."""
    doubles: bool = False
    """Whether a turn whose content has a thought is shown with a second one, where its key gives a single one: the
    template writes the marks itself and leaves the content's (Kimi-K2)."""


def probe_thoughts(template: Renderer, source: str, layout: TemplateLayout, calls: CallForm) -> ThoughtForm:
    """Which key, which marks.

    Args:
        source: the template's text, which names its marks somewhere.
    """
    key, own, writes_think = None, None, True
    answer: PlainMessage = {"role": "assistant", "content": ANSWER}
    calling = calls.exchange()[0]  # some templates keep the thoughts of a calling turn alone
    for turn, candidate in product((answer, calling) if calls.written else (answer,), REASONING_KEYS):
        tools = [PROBE_TOOL] if turn is calling else []
        text = rendered_or_none(template, [QUESTION, {**turn, candidate: THOUGHT}], tools)
        if text is not None and THOUGHT in text:
            key, own = candidate, _around_thought(text, source)
            writes_think = THINK.open in text.partition(THOUGHT)[0].rpartition(USER)[2]
            break
    guesses = marks_in(source)
    taken = tuple(marks for marks in guesses if _rewrites(template, marks))
    # Marks that begin other turns too are no thought's: <|header_start|>user<|header_end|>.
    written = [
        marks
        for marks in guesses
        if trailing_marks(layout.generation, [marks]) and not marks_order(layout.between, [marks])
    ]
    if layout.header_is_prompt:  # an opening mark is a header then, as Cohere's <|START_RESPONSE|> is
        written = [marks for marks in written if thought_state(marks_order(layout.generation, [marks])) == "closed"]
    found = [marks for marks in (own, opened_at_end(layout.prefill), *taken, *written) if marks is not None]
    doubles = key is not None and _doubles(template, key, own or THINK)
    return ThoughtForm(key, tuple(dict.fromkeys([*found, THINK])), taken, writes_think, doubles)


def _doubles(template: Renderer, key: str, marks: ThoughtMarks) -> bool:
    """Asked of the last turn and of an earlier one, where templates leave thoughts out."""
    answer: PlainMessage = {"role": "assistant", "content": ANSWER}
    inside, apart = {**answer, "content": _spaced(marks, marks.open)}, {**answer, key: THOUGHT}

    def order(*turns: PlainMessage) -> str:
        text = rendered_or_none(template, [QUESTION, *turns]) or ""
        return marks_order([*text.split(USER), ""][1], [marks])

    return any(
        len(order(inside, *after)) > 2 and order(apart, *after) in ("", "oc", "c") for after in ((), (QUESTION, answer))
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
    at = last.rfind("<")
    if closing.startswith("<") and closing.endswith(">") and closing.count("<") == 1 and at >= 0:
        return ThoughtMarks(last[at:], closing)
    return None


def _rewrites(template: Renderer, marks: ThoughtMarks) -> bool:
    """Whether a template reads the marks in a content: it leaves the thought out, moves it, or opens it again.

    White space is no evidence, since a template may fold line breaks in every content.
    """
    whole = f"{marks.open}{THOUGHT}{marks.close}{ANSWER}"
    text = rendered_or_none(template, [QUESTION, {"role": "assistant", "content": _spaced(marks, marks.open)}])
    if text is None or ANSWER not in text:
        return False
    if whole not in "".join(text.split()):
        return True
    text = rendered_or_none(template, [QUESTION, {"role": "assistant", "content": _spaced(marks, "")}])
    header = rendered_or_none(template, [QUESTION, {"role": "assistant", "content": ANSWER}]) or ""
    if header.partition(ANSWER)[0].rstrip().endswith(marks.open):
        return False  # every answer stands behind this mark, as behind Cohere's <|START_RESPONSE|>
    return text is not None and whole in "".join(text.split())


def _spaced(marks: ThoughtMarks, opening: str) -> str:
    return f"{opening}\n{THOUGHT}\n{marks.close}\n\n{ANSWER}".lstrip("\n")


def switches(template: Any, prompt: Any, wanted: Sequence[str], pairs: Sequence[ThoughtMarks]) -> Iterator[str]:
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
