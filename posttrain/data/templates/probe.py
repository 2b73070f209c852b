"""What a template does, found out by rendering known texts: layout, ends of turns, tool calls.

Nothing is recognised by a family's name. Every probe renders a conversation whose texts occur nowhere else and reads
off what stands around them. A probe that the template refuses finds nothing; the first row of that kind is then
refused with the template's own words. `thought_probe.py` does the same for thoughts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any, Protocol

from posttrain.data.templates.bounds import Exceeded
from posttrain.data.templates.call_text import ArgumentForm, call_in_form, lost_part
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
    """`template.render`, or None if it refuses the conversation.

    Raises:
        TemplateError: it does not come to an end.
    """
    try:
        return template.render(messages, tools, add_generation_prompt=add_generation_prompt)
    except TemplateError as error:
        if isinstance(error.__cause__, Exceeded):
            raise  # every further probe would take as long again
        return None  # the template refuses such conversations; a row that needs them is refused aloud


# ---------------------------------------------------------------- layout


@dataclass(frozen=True, slots=True)
class TemplateLayout:
    """Where turns begin and end.

    TemplateLayout("<|im_start|>assistant\\n", prefill="", between="<|im_end|>\\n...user\\n", headers=...,
                   closes="<|im_end|>", header_is_prompt=True)
    """

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
    """What a template writes after a turn's last text.

    Tail("<|im_end|>\\n", kept="", stop=StopToken("<|im_end|>", 2))
    """

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
        """The end of such a turn, or None if the template refuses it or writes it in a way that a probe cannot read."""
        if kind not in self._of:
            self._of[kind] = self._probe(kind)
        return self._of[kind]

    @cached_property
    def all(self) -> tuple[Tail, ...]:
        """The ends of every kind of turn, that of a plain answer first."""
        switched = product((False, True), (False, True), (False, True), (True, False))
        kinds = [TurnKind(content, calls, thoughts, after) for calls, thoughts, after, content in switched]
        tails = [tail for kind in kinds if (kind.content or kind.calls) and (tail := self.of(kind)) is not None]
        return tuple(dict.fromkeys([self.plain, *tails]))

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
            _, has_answer, text = rendered.rpartition(ANSWER)
            return self._after_text(text) if has_answer else None
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
        stop = first_stop(self._template.tokens, text, self._layout.closes)
        if stop is None:
            return self.plain if not text.strip() and not self.plain.text.strip() else None
        return Tail(text, *stop)

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
        single = rendered_or_none(self._template, [*context, turn], tools)
        two_calls = {**turn, "tool_calls": [call_in_form(probe_call(number), self._calls.form) for number in (1, 2)]}
        double = rendered_or_none(self._template, [*context, two_calls], tools)
        if single is None or double is None or double.count(TOOL) <= single.count(TOOL):  # one call at a time
            opening = token.replace("/", "", 1) if "/" in token else None
            return opening is not None and single is not None and opening in single[single.rfind(TOOL) - 200 :]
        return double.count(token) > single.count(token)

    def _result_header(self, rendered: str, context: list[PlainMessage], turn: PlainMessage) -> Tail | None:
        """The token that begins a tool's result, where it begins no other turn and nothing else ends the call."""
        result = self._calls.result()
        longer = rendered_or_none(self._template, [*context, turn, result], [PROBE_TOOL])
        if longer is None or not longer.startswith(rendered):
            return None
        header = longer[len(rendered) :].partition(RESULT)[0]
        stop = first_stop(self._template.tokens, header)
        if stop is None or stop[1].text in self._layout.headers or stop[0].strip():
            return None
        return Tail("", *stop)


def first_stop(tokens: Tokens, tail: str, closes: str | None = None) -> tuple[str, StopToken] | None:
    """What the model writes after its answer, and the first added token there, or the one token that the tail is.

    closes: the token that ends turns of the user. Where it follows that first one directly, as in Cohere's
    <|END_RESPONSE|><|END_OF_TURN_TOKEN|>, both are the model's to write, and it stops at the second: every other
    engine, which knows the second as eos, would otherwise wait for a token that was never trained.
    """
    added = tokens.first_added(tail)
    if added is not None:
        at, text = added
        kept, after = tail[:at], tail[at + len(text) :]
        if closes is not None and text != closes and after.startswith(closes):
            return kept + text, StopToken(closes, tokens.added[closes])
        return kept, StopToken(text, tokens.added[text])
    stripped = tail.strip()
    number = tokens.single_id(stripped) if stripped else None
    return (tail[: tail.index(stripped)], StopToken(stripped, number)) if number is not None else None


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
    """Rendered with and without a system turn, since some templates put the schemas there."""
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
        # None first, as the API has it for a turn that only calls; "" for templates that would print it.
        tries = ((null, text) for null in (None, "") if (text := _calling(template, form, null, prefill)) is not None)
        accepted = next(tries, None)
        if accepted is None:
            continue
        null_content, text = accepted
        call_form = CallForm(form, null_content, TOOL in text, True)
        # Arguments lost, in Python's own quotes, or as JSON inside JSON: the other form may give what is meant.
        lost = lost_part([probe_call()], text) is not None
        if not lost and f"{{'{_KEY}'" not in text and f'\\"{_KEY}' not in text:
            return replace(call_form, in_history=_in_history(template, call_form))
        if spoilt is None or (call_form.written and not spoilt.written):
            spoilt = call_form
    if spoilt is None:
        return CallForm("mapping", "", False, False)
    return replace(spoilt, in_history=spoilt.written and _in_history(template, spoilt))


def _calling(template: Renderer, form: ArgumentForm, null_content: str | None, prefill: str) -> str | None:
    """The text of a turn that calls a tool, or None if the template refuses it or prints the absent content."""
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
