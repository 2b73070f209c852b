"""Rows as LLaMA-Factory writes them, where they differ from everybody else's: Alpaca pairs, and feedback with a tag.

{"instruction": ..., "input": ..., "chosen": ..., "rejected": ...}            a pair
{"instruction": ..., "input": ..., "output": ..., "kto_tag": true}            feedback
{"conversations": [...], "kto_tag": true}, {"messages": [...], "label": true} feedback on the last answer
"""

from __future__ import annotations

from posttrain.data.formats import comparisons, demonstrations
from posttrain.data.formats.columns import Messages, Row, continuation, response_turns, verdict_of
from posttrain.data.refusals import refuse
from posttrain.data.roles import Rules
from posttrain.types import Comparison, Demonstration, Feedback, RowRef

TAGS = ("kto_tag", "label")


def alpaca_preference(row: Row, ref: RowRef, rules: Rules) -> Comparison:
    """`instruction` and perhaps `input`, `history` and `system`, with `chosen` and `rejected` as answers."""
    prompt = _alpaca_prompt(row, ref, rules)
    chosen = response_turns(row.get("chosen"), "chosen", rules)
    rejected = response_turns(row.get("rejected"), "rejected", rules)
    return comparisons.pair(prompt, chosen, rejected, row, ref, rules)


def alpaca_feedback(row: Row, ref: RowRef, rules: Rules) -> Feedback:
    """An Alpaca row whose `kto_tag` says whether the output is good."""
    # Read as the demonstration that it also is, so that both have the same words for the same row.
    whole = demonstrations.alpaca(row, ref, rules)
    return Feedback(whole.messages[:-1], whole.messages[-1:], _good(row), ref, whole.tools)


def conversation_feedback(row: Row, ref: RowRef, rules: Rules) -> Feedback:
    """A conversation in either dialect; its tag says whether the last answer, all after the last user turn, is good."""
    read = demonstrations.sharegpt if row.get("conversations") is not None else demonstrations.chat
    whole: Demonstration = read(row, ref, rules)
    # Behind the last user turn, since an answer with tool calls is several turns, all of which the tag judges.
    places = [place for place, message in enumerate(whole.messages) if message.role == "user"]
    cut = places[-1] + 1 if places else 0
    prompt, answer = whole.messages[:cut], whole.messages[cut:]
    if not prompt or not answer:
        raise refuse(
            "wrong_shape",
            "the conversation has no user turn with an answer after it",
            found=" ".join(message.role for message in whole.messages),
            expected="a user turn, then the answer that the tag judges",
            remedy="complete the row or remove it",
        )
    return Feedback(prompt, continuation(prompt, answer, "the last answer", rules), _good(row), ref, whole.tools)


def judges_conversation(row: Row) -> bool:
    """A `kto_tag` always; a `label` only if it is true or false, for a number may be the topic."""
    label = row.get("label")
    says = isinstance(label, bool) or (isinstance(label, str) and label.strip().lower() in ("true", "false"))
    return row.get("kto_tag") is not None or says


def has_instruction_only(row: Row) -> bool:
    """The prompt is nowhere else in the row."""
    return row.get("prompt") is None and row.get("question") is None


def _alpaca_prompt(row: Row, ref: RowRef, rules: Rules) -> Messages:
    """The turns before the answer, by way of a row that has one."""
    # A pair has no `output`; the dash stands in for it and is cut off again.
    return demonstrations.alpaca({**row, "output": "-"}, ref, rules).messages[:-1]


def _good(row: Row) -> bool:
    # `kto_tag` first: a `label` beside it may be the topic.
    return verdict_of(row, next(name for name in TAGS if row.get(name) is not None))
