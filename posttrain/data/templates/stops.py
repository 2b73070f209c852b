"""Which ids end an answer: those that the template writes, the tokenizer's eos, and what the model's folder lists.

A folder's `generation_config.json` may list further ids (`eos_token_id: [7, 9]`). They are part of how its model is
spoken to: a model that was trained to end with any of them goes on after it if only one stops it, and what it says then
is noise. Nothing else of that file is read (`posttrain.sampling`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from posttrain.data.templates.probe import ANSWER, PROBE_TOOL, QUESTION, THOUGHT, PlainMessage
from posttrain.errors import EncodingError

if TYPE_CHECKING:
    from posttrain.data.templates.template import ChatTemplate


def resolve_stop_ids(template: ChatTemplate, listed: Iterable[int]) -> tuple[frozenset[int], list[str]]:
    """All ids at which an answer ends, and what to say of those that were listed and cannot be among them.

    An id that the template writes inside an answer (the mark between thoughts and answer, say) would cut every answer
    there. An id that the tokenizer does not know can never be sampled as text.
    """
    tokens = template.tokens
    template_ids = {stop.id for stop in template.stops} | ({tokens.eos_id} if tokens.eos_id is not None else set())
    further = sorted(set(listed) - template_ids)
    if not further:
        return frozenset(template_ids), []
    # Not the last id of an answer: it ends one, whatever the template does after it.
    inside = {number for text in _answers(template) for number in tokens.ids(text)[:-1]}
    notes = [
        f"the model's folder lists {_id_text(template, number)} among the ids that end an answer, and the template "
        "writes it in the middle of one: it does not stop anything here"
        for number in further
        if number in inside
    ]
    usable = {number for number in further if number not in inside and _is_known_id(template, number)}
    return frozenset(template_ids | usable), notes


def _is_known_id(template: ChatTemplate, number: int) -> bool:
    return 0 <= number < len(template.tokens.tokenizer)


def _id_text(template: ChatTemplate, number: int) -> str:
    return f"{template.tokens.decode([number])!r} ({number})" if _is_known_id(template, number) else str(number)


def _answers(template: ChatTemplate) -> Iterator[str]:
    """What the template makes of answers of each kind, up to the token that ends them: plain, with thoughts, a call.

    Thoughts and arguments are given in the form that the template takes: in another it would refuse them, and a mark in
    the middle of its answers would be taken for an end.
    """
    answer: PlainMessage = {"role": "assistant", "content": ANSWER}
    turns: list[tuple[PlainMessage, list[Any]]] = [(answer, [])]
    if template.thoughts.key is not None:
        turns.append(({**answer, template.thoughts.key: THOUGHT}, []))
    if template.calls.written:
        calling = template.calls.exchange()[0]
        turns += [(calling, [PROBE_TOOL]), ({**calling, "content": ANSWER}, [PROBE_TOOL])]
    for turn, tools in turns:
        try:
            yield template.turn([QUESTION, turn], 1, tools).completion
        except EncodingError:  # this template writes no such turns
            continue
