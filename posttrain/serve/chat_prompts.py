"""A conversation's prompt: the ids that training has for it, and the thought that it leaves open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.data.encode import Encoder
from posttrain.data.templates.proof import read_prompt_end
from posttrain.data.templates.template import ChatTemplate
from posttrain.data.templates.thoughts import ThoughtMarks, marks_order, thought_state
from posttrain.errors import EncodingError
from posttrain.serve.refusals import refused
from posttrain.serve.served import ServedPolicy, thought_marks
from posttrain.serve.state import in_thread
from posttrain.types import Message


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """ChatPrompt([1, 70, 71], (ThoughtMarks("<think>", "</think>"),), opened=None)"""

    ids: list[int]
    marks: Sequence[ThoughtMarks]
    """The pairs around thoughts that the template itself reads or writes; () for one that knows none."""
    opened: ThoughtMarks | None
    """The pair of the thought that the prompt has opened."""


async def prompt_of(
    policy: ServedPolicy,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]],
    values: Mapping[str, Any],
    *,
    add_generation_prompt: bool,
    continue_final_message: bool,
) -> ChatPrompt:
    """`chat_prompt` beside the server's loop, by the policy's encoder.

    Args:
        values: what the request gives to the template.

    Raises:
        RequestRefused: the template refuses the conversation, in its own words or the encoder's, or the values.
    """
    try:
        return await in_thread(
            policy,
            lambda: chat_prompt(
                policy.encoder_with(values),
                messages,
                tools,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
            ),
        )
    except EncodingError as error:
        # Its remedy is for whoever has rows and recipes; a client has messages.
        raise refused(
            error.problem.replace(" of this row", ""),
            param="messages",
            found=error.found,
            expected=error.expected,
            remedy="send a conversation that this model's template takes",
        ) from error


def chat_prompt(
    encoder: Encoder,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
) -> ChatPrompt:
    """The prompt of a request.

    Raises:
        EncodingError: the template refuses or hides the messages.
    """
    template = encoder.template
    plain = [template.plain(message) for message in messages]
    if continue_final_message:
        turn = template.cut_turn(plain, len(plain) - 1, tools)
        context = encoder.tokens.ids(turn.context)
        ids = context + encoder.tokens.continuation(turn.context, context, turn.completion)
        opened = _opened_in(template, _generation_prompt_end(template, plain[:-1], turn.context) + turn.completion)
        return ChatPrompt(ids, thought_marks(template), opened)
    if not add_generation_prompt:
        return ChatPrompt(encoder.tokens.ids(template.render(plain, tools)), thought_marks(template), None)
    ids = encoder.prompt(messages, tools)
    if not thought_marks(template):
        return ChatPrompt(ids, (), None)
    end = _generation_prompt_end(template, plain, template.prompt(plain, tools))
    return ChatPrompt(ids, thought_marks(template), _opened_in(template, end))


def _generation_prompt_end(template: ChatTemplate, before: Sequence[Mapping[str, Any]], context: str) -> str:
    """The marks that a prompt ends with, as text: a mark that a message has is the message's own, and opens nothing."""
    return read_prompt_end(template, [dict(message) for message in before], context).prefill


def _opened_in(template: ChatTemplate, text: str) -> ThoughtMarks | None:
    marks = thought_marks(template)
    if thought_state(marks_order(text, marks)) != "open":
        return None
    return max(marks, key=lambda pair: text.rfind(pair.open))
