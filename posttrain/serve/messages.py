"""The messages of a chat request as `Message`s, in OpenAI's layout: texts, tool calls and their results.

Empty texts are taken, since a model's empty answer comes back in the next request. Images and other media are refused
by name; so is a key that would change the prompt and is not known.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from posttrain.data.templates.thought_probe import REASONING_KEYS
from posttrain.data.texts import calls_of, clean, tools_of
from posttrain.errors import RowError, unknown
from posttrain.serve.fields import shown
from posttrain.serve.refusals import RequestRefused, refused
from posttrain.types import Message, Role

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
"""`developer` is OpenAI's newer word for `system`."""
MOST_MESSAGES = 2_000
TEXT_PARTS = ("text", "input_text", "output_text", "refusal")
HARMLESS = frozenset({"refusal", "annotations", "audio", "function_call", "id", "type", "status", "created_at"})
"""Keys of an answer that clients send back with it; they say nothing where they are empty."""


def messages_of(value: Any, param: str = "messages") -> tuple[Message, ...]:
    """The conversation of a request.

    Raises:
        RequestRefused: a turn is wrong; the error names it.
    """
    if not isinstance(value, list) or not value or len(value) > MOST_MESSAGES:
        raise refused(
            f"`{param}` is no conversation" if value is not None else f"there are no `{param}`",
            param=param,
            found=shown(value) if not isinstance(value, list) else f"{len(value):,} messages",
            expected=f'1 to {MOST_MESSAGES:,} messages such as {{"role": "user", "content": "2 + 2?"}}',
            remedy=f"write `{param}` as a list of messages",
        )
    return tuple(_message(turn, f"{param}[{index}]") for index, turn in enumerate(value))


def _message(turn: Any, param: str) -> Message:
    if not isinstance(turn, dict):
        raise refused(
            f"`{param}` is no message",
            param=param,
            found=shown(turn),
            expected='an object such as {"role": "user", "content": "2 + 2?"}',
            remedy="write each message with `role` and `content`",
        )
    role = turn.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise unknown(
            "role",
            role if isinstance(role, str) else shown(role),
            ROLES,
            error=RequestRefused,
            param=f"{param}.role",
            problem=None if isinstance(role, str) else f"`{param}` has no role",
        )
    known = {"role", "content", "name", "tool_calls", "tool_call_id", *REASONING_KEYS}
    for key, given in turn.items():
        # An image, a voice: what is passed over would be missing from the prompt without a word.
        if key not in known and given and key not in HARMLESS - {"audio", "function_call"}:
            raise refused(
                f"`{param}` has the key `{key[:80]}`, which is not read here",
                param=f"{param}.{key[:80]}",
                found=shown(given),
                expected=f"keys among {', '.join(sorted(known))}",
                remedy="use `tool_calls`" if key == "function_call" else f"leave `{key[:80]}` out",
            )
    try:
        calls = calls_of(turn.get("tool_calls") or None, param)
    except RowError as error:
        raise _as_refused(error, f"{param}.tool_calls") from error
    if calls and role != "assistant":
        raise refused(
            f"`{param}` is a message of the {role}, which calls no tools",
            param=f"{param}.tool_calls",
            remedy="leave `tool_calls` to messages of the assistant",
        )
    content = turn.get("content")
    reasoning = next((turn[key] for key in REASONING_KEYS if turn.get(key)), None)
    return Message(
        cast(Role, ROLES[role]),
        None if content is None and (calls or role == "assistant") else _text(content, f"{param}.content"),
        tool_calls=calls,
        name=_optional(turn, "name", param),
        tool_call_id=_optional(turn, "tool_call_id", param),
        reasoning=None if reasoning is None else _text(reasoning, f"{param}.reasoning_content"),
    )


def _text(value: Any, param: str) -> str:
    if isinstance(value, str):
        return _clean(value, param)
    if isinstance(value, list):
        return "".join(_part(part, f"{param}[{index}]") for index, part in enumerate(value))
    raise refused(
        f"`{param}` is no text",
        param=param,
        found=shown(value),
        expected='a text, or a list of parts such as {"type": "text", "text": "2 + 2?"}',
        remedy=f"write `{param}` as a text",
    )


def _part(part: Any, param: str) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in TEXT_PARTS and isinstance(part.get("text", part.get("refusal")), str):
        return _clean(part.get("text", part.get("refusal")), param)
    raise refused(
        f"`{param}` is a part of the type `{kind}`, and this model reads text alone"
        if isinstance(kind, str)
        else f"`{param}` is no part of a text",
        param=param,
        found=shown(part),
        expected='parts of the type "text": {"type": "text", "text": "2 + 2?"}',
        remedy="leave the part out, or say in words what it shows",
    )


def _optional(turn: Mapping[str, Any], key: str, param: str) -> str | None:
    value = turn.get(key)
    return None if value is None else _text(value, f"{param}.{key}")


def _clean(text: str, param: str) -> str:
    try:
        return clean(text, f"`{param}`")
    except RowError as error:
        raise _as_refused(error, param) from error


def tools_in(value: Any) -> tuple[Mapping[str, Any], ...]:
    """The tools of a request, in OpenAI's layout.

    Raises:
        RequestRefused: one has no name, or is no function.
    """
    if value is not None and not isinstance(value, list):
        raise refused(
            "`tools` is no list",
            param="tools",
            found=shown(value),
            expected='a list such as [{"type": "function", "function": {"name": "add", "parameters": {...}}}]',
            remedy="write `tools` as a list of functions",
        )
    for index, tool in enumerate(value or []):
        if isinstance(tool, dict) and tool.get("type", "function") != "function":
            raise refused(
                f"`tools[{index}]` is no function",
                param=f"tools[{index}].type",
                found=shown(tool.get("type")),
                expected='"function"',
                remedy="only functions can be shown to the model: leave the tool out",
            )
    try:
        tools = tools_of(value or None)
    except RowError as error:
        raise _as_refused(error, "tools") from error
    # What the platform alone reads (`strict`) would stand in the prompt, where no training row has it.
    return tuple(
        {**tool, "function": {key: item for key, item in tool["function"].items() if key != "strict"}} for tool in tools
    )


def _as_refused(error: RowError, param: str) -> RequestRefused:
    """An error of reading rows, as one of a request: there is no row to remove here."""
    return refused(
        error.problem,
        param=param,
        found=error.found,
        expected=error.expected,
        remedy=f"correct `{param}`",
    )
