"""What a template writes before and after a user's text: with the one a model is asked to write the user's turn itself,
with the other one knows that it has ended.

    user_turn(template, [])      # UserTurn("<|im_start|>user\\n", stop=StopToken("<|im_end|>", 2), stop_text=None)

An aligned model has seen that beginning before every request, so that what it writes after it is a request (Magpie: Xu
et al. 2024, arXiv:2406.08464). No family is known by name: a text that occurs nowhere else is rendered as a user's
turn, and what stands around it is read off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from posttrain.data.templates.probe import QUESTION, USER, PlainMessage, StopToken
from posttrain.data.templates.template import ChatTemplate
from posttrain.errors import TemplateError


@dataclass(frozen=True, slots=True)
class UserTurn:
    """UserTurn("<|im_start|>user\\n", stop=StopToken("<|im_end|>", 2), stop_text=None)"""

    prefix: str
    """All that stands before the user's text, earlier turns included."""
    stop: StopToken | None
    """The token that ends it; None where the template ends it with plain text."""
    stop_text: str | None
    """The text that ends it, where that comes before any such token."""


def user_turn(template: ChatTemplate, before: Sequence[PlainMessage] = ()) -> UserTurn:
    """Where a turn of the user begins and how it ends, after the turns `before`.

    Raises:
        TemplateError: the template refuses the turns; it writes nothing before a user's text, so that nothing would say
            who speaks; nothing after it, so that nobody would know its end; or the text more than once.
    """
    bare = template.render([QUESTION], add_generation_prompt=True)
    beginning, _, _ = bare.partition(USER)
    tokens = template.tokens
    if not beginning.removeprefix(tokens.bos_text or "").strip():
        raise _unusable(template, "writes nothing before a user's text, so that nothing asks a model for one", bare)
    rendered = template.render([*before, QUESTION], add_generation_prompt=True)
    if rendered.count(USER) != 1:
        raise _unusable(template, f"writes a user's text {rendered.count(USER)} times", rendered)
    prefix, _, tail = rendered.partition(USER)
    closing = tokens.first_added(tail)
    text = tail if closing is None else tail[: closing[0]]
    stop = None if closing is None else StopToken(closing[1], tokens.added[closing[1]])
    if stop is None and not text.strip():
        raise _unusable(template, "writes nothing after a user's text, so that nobody would know where it ends", bare)
    # A blank at the end is the first part of the next word's token in most vocabularies: before it, the model would go
    # on as it has never been trained to. It writes the blank itself.
    return UserTurn(prefix.rstrip(" "), stop, text.rstrip() if text.strip() else None)


def _unusable(template: ChatTemplate, problem: str, found: str) -> TemplateError:
    return TemplateError(
        f"{template.label} {problem}",
        found=repr(found),
        expected="a template with a mark before and after each user's turn, as `<|im_start|>user` and `<|im_end|>`",
        remedy="take an aligned model whose template has such marks as the teacher, or make prompts by another kind: "
        "`self_instruct`, `evol_instruct`, `personas`",
    )
