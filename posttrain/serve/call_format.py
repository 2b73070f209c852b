"""How a model's own template writes tool calls, found by rendering some; and answers, read back by it.

    format = call_format(encoder.template)          # None where the template writes no call that can be read
    format.read('Let me see.<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>', tools)
    -> ["Let me see.", Call("add", {"a": 1})]

A probe's calls are rendered as a turn of the assistant. The notation that reads them back from there is the template's,
and what stands before, between and behind them are its marks. A text that cannot be read stays text: nothing is lost.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.data.templates.call_text import call_in_form
from posttrain.data.templates.probe import PROBE_TOOL, QUESTION, TOOL, probe_call
from posttrain.data.templates.template import ChatTemplate
from posttrain.data.templates.thoughts import split_thoughts
from posttrain.errors import TemplateError
from posttrain.serve.call_notations import NOTATIONS, Call, Reading, flexible

OPTIONAL = ("<|python_tag|>",)
"""What some models write before a call that their template shows without it (Llama 3.1)."""

MOST_TORN = 256
"""Marks without a call behind them that are looked at: a model that repeats its mark has written no call."""


@dataclass(frozen=True, slots=True)
class CallFormat:
    """CallFormat("json", opening="<tool_call>", between="</tool_call>\\n<tool_call>", closing="</tool_call>", ...)"""

    notation: str
    """A name of NOTATIONS."""
    opening: str
    """What announces the first call; "" where a call is the whole answer and nothing announces it (Llama 3.1)."""
    between: str
    """What stands between two calls; "" where one turn has one call, or one list of them."""
    closing: str
    middle: str
    """What stands between the name and the arguments, in the notation `named_json`."""
    written: str
    """The text of the probe's turn, in which the special tokens are that belong to calls."""

    @property
    def announcement(self) -> str:
        """What a stream waits for: the first word of the opening."""
        return self.opening.split()[0] if self.opening.split() else ""

    def may_begin(self, text: str) -> bool:
        """Whether an answer that begins so may be a call, where nothing announces one."""
        bare = text.lstrip()
        return not bare or bare[0] in "[{" or any(mark.startswith(bare[: len(mark)]) for mark in OPTIONAL)

    def read(self, text: str, tools: Sequence[Mapping[str, Any]]) -> list[str | Call]:
        """The answer in order: texts, and the calls between them, their arguments typed by the tools' schemas."""
        schemas = {str(tool["function"]["name"]): tool["function"].get("parameters") or {} for tool in tools}
        parts = self._read_announced(text) if self.opening.strip() else self._read_bare(text, schemas)
        typed = [_typed(part, schemas) if isinstance(part, Call) else part for part in parts]
        return [part for part in typed if part != ""]

    def _read_announced(self, text: str) -> list[str | Call]:
        parts: list[str | Call] = []
        opening, start, at, torn = flexible(self.opening), 0, 0, 0
        while torn < MOST_TORN and (match := opening.search(text, at)) is not None:
            calls, end = self._read_calls(text, match.end())
            if not calls:
                # Behind the mark's first letter: another one may stand right behind it.
                at, torn = match.start() + 1, torn + 1
                continue
            parts += [text[start : match.start()], *calls]
            start = at = end
        return [*parts, text[start:]]

    def _read_bare(self, text: str, schemas: Mapping[str, Any]) -> list[str | Call]:
        """A JSON answer is no call unless it names a tool that there is, and nothing else is said."""
        bare = text.strip()
        for mark in OPTIONAL:
            bare = bare.removeprefix(mark).lstrip()
        calls, end = self._read_calls(bare, 0)
        if not calls or bare[end:].strip() or any(call.name not in schemas for call in calls):
            return [text]
        return list(calls)

    def _read_calls(self, text: str, at: int) -> tuple[list[Call], int]:
        """Calls one after another from here, and where they end, their closing mark included."""
        calls: list[Call] = []
        while (reading := NOTATIONS[self.notation](text, at, self.middle)) is not None:
            calls += reading.calls
            end = reading.end
            # Nothing may stand between them at all (Cohere): then the next one begins where this one ends.
            following = flexible(self.between).match(text, end)
            if following is None:
                break
            at = following.end()
        if not calls:
            return [], at
        # An answer may end with its last call's end, without the mark: a stop token stood there.
        closing = flexible(self.closing).match(text, end) if self.closing.strip() else None
        return calls, closing.end() if closing is not None else end


def call_format(template: ChatTemplate) -> CallFormat | None:
    """The format of a template's calls; None where it writes none, or in a notation that is not known."""
    if not template.calls.written:
        return None
    single, double = _written(template, 1), _written(template, 2)
    if single is None:
        return None
    for notation in NOTATIONS:
        place = _place(notation, single)
        if place is None:
            continue
        at, reading, middle = place
        opening = _without_thoughts(template, single[:at])
        between = _between(notation, double, middle) if double is not None else ""
        return CallFormat(notation, opening, between, single[reading.end :], middle, single + (double or ""))
    return None


def _written(template: ChatTemplate, count: int) -> str | None:
    """What the model would write for so many calls, without the token that ends the turn."""
    calls = [call_in_form(probe_call(number + 1), template.calls.form) for number in range(count)]
    calling = {"role": "assistant", "content": template.null_content, "tool_calls": calls}
    turns = [QUESTION, calling]
    try:
        return template.turn(turns, 1, [PROBE_TOOL]).completion
    except TemplateError:  # it cannot follow the prompt, which opens a thought that finished turns lack (DeepSeek R1)
        pass
    context = template.prompt([QUESTION], [PROBE_TOOL]).removesuffix(template.layout.prefill)
    try:
        rendered = template.render(turns, [PROBE_TOOL])
        return template.cut_tail(rendered[len(context) :], turns)[0] if rendered.startswith(context) else None
    except TemplateError:  # one call a turn
        return None


def _place(notation: str, text: str) -> tuple[int, Reading, str] | None:
    """Where the probe's call stands in its turn, as this notation reads it."""
    name = text.find(TOOL)
    arguments = probe_call()["function"]["arguments"]
    middle = text[name + len(TOOL) : text.find("{", name)] if notation == "named_json" else ""
    # Behind its name alone; the others begin anywhere before it. No name, no place: find gives -1.
    for at in range(max(name, 0) if notation == "named_json" else 0, name + 1):
        reading = NOTATIONS[notation](text, at, middle)
        if reading is not None and [(call.name, dict(call.arguments)) for call in reading.calls] == [(TOOL, arguments)]:
            return at, reading, middle
    return None


def _between(notation: str, text: str, middle: str) -> str:
    """What stands between two calls of one turn; "" where one reading has both."""
    place = _place(notation, text)
    if place is None:
        return ""
    end = place[1].end
    second = _place(notation, text[end:])
    return text[end : end + second[0]] if second is not None else ""


def _without_thoughts(template: ChatTemplate, text: str) -> str:
    """The opening mark alone: some templates write an empty thought before every answer."""
    split = split_thoughts(text, template.thoughts.marks, opened=True)
    return (text if split is None else split.visible).strip()


def _typed(call: Call, schemas: Mapping[str, Any]) -> Call:
    """A call whose notation writes all values as texts, with numbers, lists and the like where the schema has them."""
    if call.typed:
        return call
    properties = schemas.get(call.name, {}).get("properties")
    kinds = properties if isinstance(properties, Mapping) else {}
    return Call(call.name, {key: _value(value, kinds.get(key)) for key, value in call.arguments.items()})


def _value(text: str, schema: Any) -> Any:
    kind = schema.get("type") if isinstance(schema, Mapping) else None
    if kind == "string" or (isinstance(kind, list) and "string" in kind):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return {"True": True, "False": False, "None": None}.get(text, text)
