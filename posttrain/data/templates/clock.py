"""The date in a chat template, frozen: a template that asks the clock would write other prompts tomorrow.

`transformers` and vLLM give templates one way to the clock, `strftime_now(format)`. Templates of gpt-oss, Mistral,
Llama 3.2, Granite and SmolLM3 write today's date with it. A model that was trained on Monday is then asked with
Tuesday's ids, a cache of encoded rows is used again on another day, and a resumed run trains half of its rows under one
date and half under another. So the template is given a `strftime_now` of its own, a Jinja macro that knows one day:

    frozen_clock(source, "2026-11-30")    # "{%- macro strftime_now(format) -%} ... {%- endmacro -%}"

A macro and not a keyword argument, for two reasons. `transformers` turns every value it hands to a template into plain
JSON, so that a function never arrives; and the macro is text, which is exported with the model, so that the date is the
one of training wherever the folder is used. A caller who wants today's date there passes `live_date=True`, to
`apply_chat_template` or among the `chat_template_kwargs` of a request to vLLM.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension

from posttrain.data.templates.constants import require_small_constants
from posttrain.errors import ConfigError, TemplateError

CLOCK = "strftime_now"
LIVE = "live_date"
"""A value for the exported template: true asks the clock again, as the template did before it was frozen."""
TODAY = "today"
_CODE_LETTERS = "aAbBcCdDeFgGhHIjklmMnpPrRsStTuUVwWxXyYzZ"
_FLAGS = "-_0^#"
_MACRO = """\
{{%- if not {live} %}}
{{%- macro {clock}(format) -%}}
{{%- set codes = {codes} -%}}
{{%- set state = namespace(text=true) -%}}
{{%- for part in format.split('%') -%}}
{{%- if state.text -%}}{{{{- part -}}}}{{%- set state.text = false -%}}
{{%- elif part == '' -%}}{{{{- '%' -}}}}{{%- set state.text = true -%}}
{{%- else -%}}
{{%- set size = 2 if part[0] in '{flags}' else 1 -%}}
{{{{- codes.get(part[:size], '%' + part[:size]) + part[size:] -}}}}
{{%- endif -%}}
{{%- endfor -%}}
{{%- endmacro -%}}
{{%- endif %}}"""
"""`part` is what follows a percent sign: its code, then text. An empty part is the second sign of "%%"."""


class _Generation(Extension):
    """The tag {% generation %} of `transformers`, which marks an assistant's text; here only its content counts."""

    tags = {"generation"}  # noqa: RUF012 - the name and the kind are jinja2's

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@lru_cache(maxsize=64)
def parsed(source: str) -> nodes.Template | None:
    """The template's syntax tree, or None if Jinja cannot parse it; rendering then refuses it in Jinja's own words.

    Raises:
        TemplateError: it has constants that are too large to be worked out.
    """
    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols", _Generation])
    environment.globals.clear()  # else `lipsum` would count as known, and be found nowhere
    try:
        tree = environment.parse(source)
    except jinja2.TemplateSyntaxError:
        return None
    require_small_constants(tree)  # before anything compiles it, which would work them out
    return tree


@lru_cache(maxsize=64)
def values_read(source: str) -> frozenset[str]:
    """The names that a template reads and does not set: values_read("{{ mood }}") -> {"mood"}."""
    tree = parsed(source)
    try:
        return frozenset(meta.find_undeclared_variables(tree)) if tree is not None else frozenset()
    except jinja2.TemplateSyntaxError:  # a filter that nobody knows: rendering refuses it
        return frozenset()


def reads_clock(source: str) -> bool:
    """Whether the template may write the date, by its text: also where only one branch does."""
    return CLOCK in values_read(source)


def random_parts(source: str) -> list[str]:
    """The parts of a template that give another text at each rendering: ["the filter `random`"]; [] for nearly all."""
    tree = parsed(source)
    if tree is None:
        return []
    parts = ["the filter `random`"] if any(node.name == "random" for node in tree.find_all(nodes.Filter)) else []
    # jinja2 brings `lipsum`, which invents sentences; as a name of the template's own it is harmless.
    return parts + (["the function `lipsum`"] if "lipsum" in values_read(source) else [])


def deterministic_rendering(render: Callable[[], str]) -> str:
    """The text of a rendering that is the same three times over.

    Raises:
        TemplateError: it is not, so that the ids of training are those of no prompt.
    """
    text, *others = [render() for _ in range(3)]
    for other in others:
        if other != text:
            raise TemplateError(
                "the same conversation is rendered differently each time",
                found=f"{text[:80]!r}, then {other[:80]!r}",
                expected="a text that depends on the conversation and the template's values alone",
                remedy="take what is random out of the template and name the new file (`template: FILE`)",
            )
    return text


def frozen_clock(source: str, day: str) -> str:
    """The macro that stands for the clock in this template: it knows the codes that the template asks for.

    Hours, minutes and seconds are 0: a run is frozen to a day. The names of days and months are those of the
    locale under which this was called, since another machine's locale is ambient state too.
    """
    moment = datetime.datetime.combine(date_of(day), datetime.time())
    codes = {code: text for code in _codes_of(source) if (text := _formatted(moment, code)) is not None}
    return _MACRO.format(live=LIVE, clock=CLOCK, codes=jinja_literal(codes), flags=_FLAGS)


def _formatted(moment: datetime.datetime, code: str) -> str | None:
    """The text of a code of `strftime`, or None if the platform does not know it."""
    try:
        text = moment.strftime(f"%{code}")
    except ValueError:
        return None
    return None if text == f"%{code}" else text


def _codes_of(source: str) -> list[str]:
    """The codes of all formats where each is written out in the template, else every code there is."""
    tree = parsed(source)
    all_codes = [flag + letter for flag in ("", *_FLAGS) for letter in _CODE_LETTERS]
    if tree is None:
        return all_codes
    named = sum(node.name == CLOCK for node in tree.find_all(nodes.Name))
    written_out, formats = 0, list[str]()
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Name) and call.node.name == CLOCK:
            first = call.args[0] if call.args else None
            if isinstance(first, nodes.Const) and isinstance(first.value, str):
                written_out += 1
                formats.append(first.value)
    # `strftime_now is defined` asks for no format.
    written_out += sum(
        isinstance(node.node, nodes.Name) and node.node.name == CLOCK for node in tree.find_all(nodes.Test)
    )
    return sorted({code for text in formats for code in codes_in(text)}) if written_out == named else all_codes


def codes_in(text: str) -> Iterator[str]:
    """codes_in("%d %b, 100%% of %-m") -> "d", "b", "-m"."""
    is_text = True
    for part in text.split("%"):
        if is_text:
            is_text = False
        elif not part:
            is_text = True
        else:
            yield part[: 2 if part[0] in _FLAGS else 1]


# ---------------------------------------------------------------- dates and values


def today() -> str:
    """The date of this machine: "2026-11-30"."""
    return datetime.date.today().isoformat()


def date_of(text: str) -> datetime.date:
    """
    Raises:
        ConfigError: no date of the calendar, written as 2026-11-30.
    """
    try:
        day = datetime.date.fromisoformat(text)
        if day.isoformat() == text:  # Python also reads 20261130 and 2026-W49-1
            return day
    except (TypeError, ValueError):
        pass
    raise ConfigError(
        "this is no date",
        where="encoding.date",
        found=text,
        expected="a day as 2026-11-30, or `today`",
        remedy="write year, month and day with two digits each",
    )


def jinja_literal(value: Any) -> str:
    """A JSON value as Jinja writes it: jinja_literal({"a": [True, None]}) -> "{'a': [true, none]}"."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return "'" + "".join(_jinja_escape(letter) for letter in value) + "'"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{jinja_literal(key)}: {jinja_literal(item)}" for key, item in value.items()) + "}"
    return "[" + ", ".join(map(jinja_literal, value)) + "]"


def _jinja_escape(letter: str) -> str:
    # Braces and percent signs are written as codes too: some readers of templates look for tags inside strings.
    if letter in "\\'{}%#" or ord(letter) < 32 or ord(letter) == 127:
        return f"\\x{ord(letter):02x}"
    return letter
