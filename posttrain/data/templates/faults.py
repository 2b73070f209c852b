"""What went wrong when a chat template was rendered, as a named error of the right kind.

A template can end in three ways that have nothing in common: it refuses the conversation by its own check
(`raise_exception`), its code has a fault (a text added to a mapping, an undefined name), or it is no Jinja at all. Each
has another remedy, so one error text for all three would send two of three readers the wrong way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2.exceptions import TemplateError as JinjaError
from jinja2.exceptions import TemplateSyntaxError, UndefinedError

from posttrain.data.templates.bounds import Exceeded
from posttrain.errors import TemplateError

_TEMPLATE_FILES = ("<template>", "<unknown>")
"""The file names that Jinja gives to a template made from a text, in its own tracebacks."""


def render_fault(error: Exception, label: str, source: Any, messages: Sequence[Mapping[str, Any]]) -> TemplateError:
    """The named error for whatever rendering raised.

    render_fault(TypeError('can only concatenate str (not "dict") to str'), "the tokenizer's chat template", ...)

    Args:
        label: names the template, as in "the template 'mine.jinja'".
        source: its Jinja text, for the line that is shown; anything else shows none.
    """
    roles = ", ".join(str(message["role"]) for message in messages) or "no messages"
    if isinstance(error, TemplateSyntaxError):
        return TemplateError(
            f"{label} is not valid Jinja: {error.message} (line {error.lineno})",
            found=_line(source, error.lineno),
            expected="a template that Jinja can compile",
            remedy="correct that line, or name another template (`template: chatml`, or a file)",
        )
    if isinstance(error, Exceeded | MemoryError | RecursionError):
        return TemplateError(
            f"{label} does not come to an end, or grows without one: {error}"
            if isinstance(error, Exceeded)
            else f"{label} takes more memory or depth than there is ({type(error).__name__})",
            found=f"{_line(source, _line_number(error))} with a conversation of roles: {roles}",
            expected="a template that goes through the conversation a few times",
            remedy="correct that line of the template, or name another template (`template: chatml`, or a file)",
        )
    # `raise_exception` in a template raises exactly this class; its subclasses are faults of the template's code.
    if isinstance(error, JinjaError) and not isinstance(error, UndefinedError):
        return TemplateError(
            f"the chat template refuses this conversation: {error}",
            found=f"roles: {roles}",
            expected="a conversation that the template's own checks let pass",
            remedy=f"{_repair(messages)}, or name another template (`template: chatml`, or a file)",
        )
    at = _line_number(error)
    where = f" in line {at}" if at is not None else ""
    return TemplateError(
        f"a fault inside {label}{where}: {type(error).__name__}: {error}",
        found=f"{_line(source, at)} with a conversation of roles: {roles}",
        expected="a template that can render what these messages hold (text, tool calls, thoughts)",
        remedy="correct that line of the template, take out of the rows what it cannot render, or name another "
        "template (`template: chatml` renders tool calls and thoughts)",
    )


def _repair(messages: Sequence[Mapping[str, Any]]) -> str:
    """What to do with the rows, by what a template may have refused in them."""
    roles = [str(message["role"]) for message in messages]
    if "system" in roles:
        return (
            "put the system prompt into the user's turn (`repairs: {system_into_user: true}` under `data`, if that is "
            "what the template refuses)"
        )
    if roles[:1] == ["assistant"]:
        return "leave out the greeting that comes first (`repairs: {first_greeting: drop}` under `data`)"
    return "change the rows"


def _line_number(error: Exception) -> int | None:
    """The line of the template that was running, or None if the fault is outside of the template."""
    trace, line = error.__traceback__, None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename in _TEMPLATE_FILES:
            line = trace.tb_lineno  # the innermost one wins: a macro's line says more than that of its call
        trace = trace.tb_next
    return line


def _line(source: Any, number: int | None) -> str:
    lines = source.splitlines() if isinstance(source, str) else []
    if number is None or not 0 < number <= len(lines):
        return "a template"
    text = lines[number - 1].strip()
    # Many templates are one line of several thousand characters, of which the beginning says nothing.
    return f"line {number}: {text[:200]}" + (" ..." if len(text) > 200 else "")
