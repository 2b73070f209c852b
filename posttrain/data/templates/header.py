"""What stands at the top of a template: the values and the date that its model was trained with.

A model that was trained with `template_kwargs: {enable_thinking: false}` is asked with other ids than it learnt from by
everybody who does not say so again: `transformers`, vLLM, a colleague. So the values are written into the template:

    {#- posttrain-speech {"template_kwargs": {"enable_thinking": false}, "date": null} #}
    {%- if enable_thinking is not defined %}{%- set enable_thinking = false %}{%- endif %}
    {#- posttrain-speech-end #}
    ...the template...

A value that a caller gives wins. The first line is read back, so that a later stage knows what the model was trained
with, keeps it or changes it, and writes one header in place of the old one.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from posttrain.data.templates.clock import (
    CLOCK,
    LIVE,
    frozen_clock,
    jinja_literal,
    random_parts,
    reads_clock,
    today,
    values_read,
)
from posttrain.errors import ConfigError, TemplateError, did_you_mean, nearest

_HEADER = re.compile(r"\A\s*\{#- posttrain-speech (?P<record>.*?) #\}.*?\{#- posttrain-speech-end #\}\n?", re.DOTALL)
_SET_BY_THE_CALL = frozenset(
    [
        *("conversation", "messages", "tools", "chat_template", "add_generation_prompt", "continue_final_message"),
        *("tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict", "tokenizer_kwargs"),
        *("return_assistant_tokens_mask", "sanitize_control_tokens"),
    ]
)
"""Arguments of `apply_chat_template`: as values of a template they would be swallowed, or change what it returns."""
_WORDS_OF_JINJA = frozenset(
    ["true", "false", "none", "True", "False", "None", "and", "or", "not", "in", "is", "if", "else", "loop", "self"]
)

TemplateSource = str | Mapping[str, str]
"""A template, or several by name ("default", "tool_use")."""


@dataclass(frozen=True, slots=True)
class HeadedTemplate:
    """A template with its header: HeadedTemplate("{#- posttrain-speech ...", {"enable_thinking": False}, None, ())."""

    source: Any
    """What is rendered and exported: a text, or a mapping of them."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """What the template is given, the start's own values among them."""
    date: str | None = None
    """The day that it writes; None if it reads no clock."""
    notes: tuple[str, ...] = ()


def with_header(
    source: TemplateSource, values: Mapping[str, Any], date: str | None, always_set: Collection[str] = ()
) -> HeadedTemplate:
    """A template with a header for what is given here and what its own header says.

    Args:
        values: win over the header's, name by name.
        date: wins over the header's; today where neither says one.
        always_set: names that every caller gives a value (`bos_token`), so that a default would never count.

    Raises:
        TemplateError: the template gives another text at each rendering.
    """
    if not isinstance(source, (str, Mapping)):  # a tokenizer of another make, which renders in its own way
        return HeadedTemplate(source, _plain_values(values), date)
    headers, bare = split_header(source)
    texts = list(bare.values()) if isinstance(bare, Mapping) else [bare]
    for text in texts:
        _refuse_random(text)
    saved, saved_date = headers
    merged = {**saved, **_plain_values(values)}
    reads_date = any(map(reads_clock, texts))
    day = (date or saved_date or today()) if reads_date else None
    notes = [*_notes_on_values(saved, _plain_values(values), texts), *_notes_on_date(day, saved_date)]

    def headed(text: str) -> str:
        return _header(text, merged, day, always_set) + text

    result = {name: headed(text) for name, text in bare.items()} if isinstance(bare, Mapping) else headed(bare)
    return HeadedTemplate(result, merged, day, tuple(notes))


def split_header(source: TemplateSource) -> tuple[tuple[dict[str, Any], str | None], TemplateSource]:
    """((values, date), template without its header); of several templates, the values of all and the first date."""
    if isinstance(source, str):
        return _split_text(source)
    parts = {name: _split_text(text) for name, text in source.items()}
    values = {name: value for (own_values, _), _ in parts.values() for name, value in own_values.items()}
    dates = [date for (_, date), _ in parts.values() if date is not None]
    return (values, dates[0] if dates else None), {name: text for name, (_, text) in parts.items()}


def template_for(source: TemplateSource, tools: Sequence[Any]) -> str | None:
    """The template that `transformers` would take of several; None leaves the choice, and the error, to it."""
    if isinstance(source, str):
        return source
    return source["tool_use"] if tools and "tool_use" in source else source.get("default")


def _split_text(text: str) -> tuple[tuple[dict[str, Any], str | None], str]:
    values: dict[str, Any] = {}
    date: str | None = None
    while (match := _HEADER.match(text)) is not None:
        try:
            record = json.loads(match["record"])
            values = {**record["template_kwargs"], **values}  # the outer header's values are set first, and stay
            date = date or record["date"]
        except (ValueError, KeyError, TypeError) as error:
            raise TemplateError(
                "the header that posttrain wrote into the chat template is torn",
                found=f"{match['record'][:60]!r}: {error}",
                expected='{"template_kwargs": {...}, "date": ...}',
                remedy="copy the model's folder again, or remove the lines up to `posttrain-speech-end`",
            ) from error
        text = text[match.end() :]
    return (values, date), text


def _header(text: str, values: Mapping[str, Any], day: str | None, always_set: Collection[str]) -> str:
    """The lines before a template, "" if it is given nothing. Each ends so that it writes no text of its own:
    `transformers` removes one line break after a tag, and the template's own first line break must stay."""
    day = day if reads_clock(text) else None
    if not values and day is None:
        return ""
    # "#}" would end the comment inside a value.
    record = json.dumps({"template_kwargs": values, "date": day}).replace("#", "\\u0023")
    lines = [f"{{#- posttrain-speech {record} #}}"]
    for name, value in values.items():
        setting = f"{{%- set {name} = {jinja_literal(value)} %}}"
        if name == "documents":  # an argument of its own, none where the caller gives none
            setting = f"{{%- if not {name} %}}{setting}{{%- endif %}}"
        elif name not in always_set:
            setting = f"{{%- if {name} is not defined %}}{setting}{{%- endif %}}"
        lines.append(setting)
    if day is not None:
        lines.append(frozen_clock(text, day))
    lines.append("{#- posttrain-speech-end #}\n")
    return "\n".join(lines)


# ---------------------------------------------------------------- what is refused, and what is said


def check_values(values: Mapping[str, Any]) -> None:
    """Refuse what cannot be written into a template.

    Raises:
        ConfigError: a name that no template can read, one that the call itself sets, or a value that JSON cannot hold.
    """
    for name, value in values.items():
        if not isinstance(name, str) or not name.isidentifier() or name in _WORDS_OF_JINJA:
            raise _bad_value(
                name, "no template can read a value of this name", repr(name), "a name as `enable_thinking`"
            )
        if name in _SET_BY_THE_CALL or name in (CLOCK, LIVE):
            raise _bad_value(name, "this is set by whoever renders a template", name, "a value that the template reads")
        if not _is_json_value(value):
            given = f"{value!r}, of type {type(value).__name__}"
            raise _bad_value(name, "the value cannot be saved with the model", given, "text, numbers, true, lists")


def _bad_value(name: Any, problem: str, found: str, expected: str) -> ConfigError:
    return ConfigError(
        problem,
        where=f"template_kwargs.{name}",
        found=found,
        expected=expected,
        remedy="correct it, or remove it from `template_kwargs`"
        + ("; `encoding: {date: 2026-11-30}` sets the day, or `date: today`" if name in (CLOCK, LIVE) else ""),
    )


def _is_json_value(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_json_value(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_json_value, value))
    return value is None or type(value) in (str, int, bool)


def _plain_values(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain_values(item) for key, item in value.items()}
    return [_plain_values(item) for item in value] if isinstance(value, (list, tuple)) else value


def _refuse_random(text: str) -> None:
    if random_names := random_parts(text):
        raise TemplateError(
            "the chat template gives another text at each rendering, so that no model could be asked as it was trained",
            found=", ".join(random_names),
            expected="a template whose text depends on the conversation and its values alone",
            remedy="take that out of the template and name the new file (`template: FILE`), or use `template: chatml`",
        )


def _notes_on_values(saved: Mapping[str, Any], given: Mapping[str, Any], texts: Sequence[str]) -> list[str]:
    notes = [
        f"the model was trained with the template's `{name}: {json.dumps(saved[name])}`, and is asked with "
        f"`{name}: {json.dumps(value)}` now"
        for name, value in given.items()
        # As text, for in Python False is 0 and 1.0 is 1, and a template prints them otherwise.
        if name in saved and json.dumps(saved[name]) != json.dumps(value)
    ]
    known = frozenset().union(*map(values_read, texts))
    for name in given:
        if name not in known and any(known):
            near = nearest(name, sorted(known))
            notes.append(
                f"the chat template reads no value `{name}`, so it changes nothing"
                + (f"; {did_you_mean(near)}" if near else "")
            )
    return notes


def _notes_on_date(day: str | None, saved: str | None) -> list[str]:
    if day is None:
        return []
    if saved is not None and saved != day:
        return [f"the model was trained with the date {saved} in its prompts, and is asked with {day} now"]
    return [
        f"the chat template writes today's date: it is {day} in every prompt of this model, here and in the exported "
        f"folder (another day: `encoding: {{date: 2026-01-31}}`; who serves the folder has the clock back by "
        f"`{LIVE}=True`)"
    ]
