"""Rows as ms-swift writes them, and LLaMA-Factory v1 where its rows differ from everybody else's.

{"query": ..., "response": ..., "history": [[..., ...]], "rejected_response": ..., "system": ...}
{"messages": [...], "rejected_response": ...}, {"messages": [...], "rejected_messages": [...]}
{"chosen_messages": [...], "rejected_messages": [...]}                                  LLaMA-Factory v1
"""

from __future__ import annotations

from posttrain.data.formats import comparisons, demonstrations
from posttrain.data.formats.columns import Messages, Row, present, response_turns, verdict_of
from posttrain.data.refusals import refuse
from posttrain.data.roles import Rules
from posttrain.types import Comparison, Demonstration, Feedback, RowRef

_QUERY = ("query", "response")


def query_response(row: Row, ref: RowRef, rules: Rules) -> Demonstration:
    """`query` and `response`, after `history` (pairs of question and answer) and `system`."""
    # `input` belongs to Alpaca's rows; in one of these it is a column that nothing reads, and is counted as that.
    return demonstrations.alpaca({**row, "input": None}, ref, rules, _QUERY)


def query_feedback(row: Row, ref: RowRef, rules: Rules) -> Feedback:
    """The same with `label`: whether the response is good."""
    whole = query_response(row, ref, rules)
    return Feedback(whole.messages[:-1], whole.messages[-1:], verdict_of(row, "label"), ref, whole.tools)


def query_preference(row: Row, ref: RowRef, rules: Rules) -> Comparison:
    """The same with `rejected_response`, the worse of the two."""
    whole = query_response(row, ref, rules)
    return _against(whole.messages[:-1], whole.messages[-1:], row, ref, rules, "response")


def rejected_response(row: Row, ref: RowRef, rules: Rules) -> Comparison:
    """`messages` (or `conversations`) whose last answer, all after the last user turn, beats `rejected_response`."""
    column = present(row, ("messages", "conversations"))
    whole = demonstrations.chat(row, ref, rules)
    cut = max((place for place, turn in enumerate(whole.messages) if turn.role == "user"), default=-1) + 1
    if not cut:
        raise refuse(
            "wrong_shape",
            f"'{column}' has no turn of the user",
            found=" ".join(turn.role for turn in whole.messages),
            expected="a user turn, then the answer that is better than `rejected_response`",
            remedy="complete the row or remove it",
        )
    return _against(whole.messages[:cut], whole.messages[cut:], row, ref, rules, f"the last answer of {column}")


def paired_messages(row: Row, ref: RowRef, rules: Rules) -> Comparison:
    """Two whole conversations: `chosen_messages` (or `messages`, `conversations`) and `rejected_messages`."""
    better = present(row, ("chosen_messages", "messages", "conversations"))
    # Only the two sides: `conversations` beside them would be taken for the prompt.
    taken = {better, "rejected_messages", "system", "tools", "margin"}
    sides = {key: value for key, value in row.items() if key in taken}
    if better == "conversations":
        sides["messages"], better = sides.pop(better), "messages"
    return comparisons.preference(sides, ref, rules, (better, "rejected_messages"))


def _against(prompt: Messages, better: Messages, row: Row, ref: RowRef, rules: Rules, name: str) -> Comparison:
    worse = response_turns(row.get("rejected_response"), "rejected_response", rules)
    return comparisons.pair(prompt, better, worse, row, ref, rules, (name, "rejected_response"))
