"""Whether a rendered text writes a tool call: its name, every key and every value of its arguments. Used by the proofs.

Templates write the same call as JSON, as XML parameters, as Python or in a notation of their own, so values are looked
for one by one and in every form that a template gives them: `true` and `True`, "\\u00fc" and "ü", escaped or not.
A call that is looked for by its function's name alone is always "found": the schema in the prompt has it.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

ArgumentForm = Literal["mapping", "text"]
"""What a template takes as a call's `arguments`: a mapping, or its JSON text, as in the OpenAI layout."""

_ESCAPED = re.compile(r"\\u([0-9a-fA-F]{4})")
_HTML_SAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "'": "\\u0027"}
"""What Jinja's `tojson` makes of these characters, so that its text can stand in a page."""


def plain_data(value: Any) -> Any:
    """Plain dicts and lists all the way down: `tojson` knows no other mapping."""
    if isinstance(value, Mapping):
        return {key: plain_data(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_data(item) for item in value]
    return value


def call_in_form(call: Mapping[str, Any], form: ArgumentForm) -> dict[str, Any]:
    """A call with its arguments as the template takes them; whatever form the row has, keys keep their order."""
    plain: dict[str, Any] = plain_data(call)
    function = plain.get("function")
    if not isinstance(function, dict) or "arguments" not in function:
        return plain
    arguments = function["arguments"]
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except ValueError:
            return plain  # no JSON: the template gets the text that the row has
    if form == "text":
        arguments = json.dumps(arguments, ensure_ascii=False)
    plain["function"] = {**function, "arguments": arguments}
    return plain


def lost_part(calls: Sequence[Mapping[str, Any]], text: str, beside: str = "") -> str | None:
    """The first part of some calls that a text lacks, as "the argument 'city' of the call of 'weather'"; or None.

    Args:
        text: the text that the turn trains.
        beside: the turn's content and thoughts, which may name the same things: what only they say is not the call.
    """

    names = [str(call["function"]["name"]) for call in calls]
    leaves = [(call["function"]["name"], *leaf) for call in calls for leaf in _argument_leaves(_arguments(call))]
    words = [*names, *(_word(value) for _, _, value in leaves)]

    def shown(form: str, own_word: str) -> bool:
        # A word that stands inside others, as the value of {"city": "city"} inside its key, must stand there once
        # more than they do: else what is found is the key, and the value is lost.
        wanted = sum(form in word for word in words) + (form not in own_word)
        return text.count(form) - beside.count(form) >= wanted

    for name in names:
        if not shown(name, name):
            return f"a call of {name!r}"
    folded: tuple[str, str, list[str]] | None = None
    for name, path, value in leaves:
        if any(shown(form, _word(value)) for form in _forms(value)):
            continue
        if isinstance(value, str):
            folded = folded or (
                _letters_and_digits(text),
                _letters_and_digits(beside),
                [_letters_and_digits(word) for word in words],
            )
            wanted = _letters_and_digits(value)
            times = max(1, sum(wanted in word for word in folded[2]))
            if wanted and folded[0].count(wanted) - folded[1].count(wanted) >= times:
                continue
        return f"the argument {path!r} of the call of {name!r}"
    return None


def _word(value: Any) -> str:
    """A leaf as text that other leaves may be a part of; "" if templates write it in several ways (`true`, `True`)."""
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""


def _arguments(call: Mapping[str, Any]) -> Any:
    arguments = call["function"].get("arguments")
    if isinstance(arguments, str):
        try:
            return json.loads(arguments)
        except ValueError:
            return arguments
    return arguments


def _argument_leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every key and every value below it that a text can be searched for.

    Null says nothing that a template must write, and an empty text or list has nothing to be found by.
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            below = f"{path}.{key}" if path else str(key)
            if item is not None:  # a template may leave out an argument that is null
                yield below, str(key)
            yield from _argument_leaves(item, below)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _argument_leaves(item, path)
    elif value is not None and str(value).strip():
        yield path, value


def _forms(value: Any) -> Iterator[str]:
    """The ways in which templates write a value, the usual one first."""
    if isinstance(value, bool):
        yield from ("true", "True") if value else ("false", "False")
    elif isinstance(value, str):
        bare = value.strip()
        yield bare
        for text in (json.dumps(bare, ensure_ascii=False)[1:-1], json.dumps(bare)[1:-1]):
            yield text
            yield "".join(_HTML_SAFE.get(letter, letter) for letter in text)
            yield json.dumps(text)[1:-1]  # JSON inside JSON
        yield repr(bare)[1:-1]
        yield html.escape(bare)
    else:
        yield json.dumps(value, default=str)
        yield str(value)
        if isinstance(value, float):
            yield from (f"{value:g}", f"{value:.10g}", f"{value:f}")
            if value.is_integer():
                yield str(int(value))


def _letters_and_digits(text: str) -> str:
    """Letters and digits alone, escapes undone: what is left equal by any way of quoting."""
    undone = html.unescape(_ESCAPED.sub(lambda match: chr(int(match.group(1), 16)), text))
    undone = re.sub(r"\\+[nrtbf]", " ", undone)
    return "".join(letter for letter in undone if letter.isalnum())
