"""Rows of published data sets whose layout is their own, each read as it is published.

Chatbot Arena, HelpSteer 1 to 3, Nectar, UltraFeedback; LIMA, Capybara and other exchanges; BFCL, MT-bench, verl.
What such a row says beside the example stays: in a task's metadata, or counted as a column that nothing reads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.data.formats import comparisons, demonstrations
from posttrain.data.formats.columns import (
    Messages,
    Row,
    assistant_turn,
    number_of,
    present,
    prompt_of,
    response_turns,
    user_turn,
    with_system,
)
from posttrain.data.formats.judged import answer_of
from posttrain.data.order import check_end, ordered
from posttrain.data.padding import whole
from posttrain.data.refusals import named_type, quoted, refuse, shown
from posttrain.data.roles import Rules
from posttrain.data.texts import stored, tools_of
from posttrain.types import Comparison, Demonstration, Message, RowRef, Task

# ---------------------------------------------------------------- comparisons

WINNERS: Mapping[str, int | None] = {
    **{name: 0 for name in ("model_a", "a")},
    **{name: 1 for name in ("model_b", "b")},
    **{name: None for name in ("tie", "tie (bothbad)", "bothbad", "both_bad", "both bad")},
}
"""What Arena's `winner` says: which side; None says that neither is better."""


def arena(row: Row, ref: RowRef, rules: Rules) -> Comparison:
    """`conversation_a`, `conversation_b` and `winner`: `model_a`, `model_b`, or one of the words for a tie."""
    winner = row.get("winner")
    word = winner.strip().lower() if isinstance(winner, str) else ""
    if word not in WINNERS:
        raise refuse(
            "bad_label",
            f"'winner' is {shown(winner)}",
            found=named_type(winner),
            expected=f"one of {quoted(WINNERS)}",
            remedy="write one of these, or remove the row",
        )
    best = WINNERS[word]
    if best is None:
        raise comparisons.tie(f"'winner' is {winner!r}: neither conversation is better", can_keep=False)
    sides = ("conversation_a", "conversation_b") if best == 0 else ("conversation_b", "conversation_a")
    # A prompt beside them would have to be theirs; rows that have one have a text of the first turn, in several forms.
    taken = {key: row.get(key) for key in (*sides, "system", "tools")}
    return comparisons.preference(taken, ref, rules, sides)


def helpsteer_preference(row: Row, ref: RowRef, rules: Rules) -> Comparison:
    """Two responses and which is better, from -3 (the first, by much) to 3 (the second); its size is the margin.

    Sources: the data cards of HelpSteer2 (`preference_strength`) and HelpSteer3 (`overall_preference`).
    """
    column = present(row, ("preference_strength", "overall_preference"))
    strength = number_of(row.get(column), column)
    if strength == 0:
        raise comparisons.tie(f"'{column}' is 0: neither response is better", can_keep=False)
    first, second = present(row, ("response_1", "response1")), present(row, ("response_2", "response2"))
    better, worse = (first, second) if strength < 0 else (second, first)
    prompt = prompt_of(row, rules, ("prompt", "context"))
    chosen, rejected = (response_turns(row.get(name), name, rules) for name in (better, worse))
    return comparisons.pair(prompt, chosen, rejected, {**row, "margin": abs(strength)}, ref, rules, (better, worse))


def nectar(row: Row, ref: RowRef, rules: Rules) -> Comparison:
    """`prompt` and `answers`, objects with `answer` and `rank`: 1 is the best."""
    answers = stored(row.get("answers"))
    ranks = [number_of(answer.get("rank"), f"rank of answer {place}") for place, answer in enumerate(answers, 1)]
    texts = [answer.get("answer") for answer in answers]
    listed = {"prompt": row.get("prompt"), "system": row.get("system"), "responses": texts}
    if len(set(ranks)) < len(ranks):
        # As scores, so that ties are refused or kept as they are there.
        return comparisons.ranked({**listed, "scores": [-rank for rank in ranks]}, ref, rules)
    order = sorted(range(len(ranks)), key=lambda place: ranks[place])
    return comparisons.ranked({**listed, "ranking": order}, ref, rules)


def is_nectar(row: Row) -> bool:
    return _all_have(row.get("answers"), ("answer", "rank"))


def ultrafeedback(row: Row, ref: RowRef, rules: Rules) -> Comparison:
    """`instruction` and `completions`, ranked by the mean of their ratings (`fine-grained_score`).

    `overall_score`, the mark that the judge gave with its critique, counts only where a completion has no ratings.
    """
    completions = stored(row.get("completions"))
    rated = all(item.get("fine-grained_score") is not None for item in completions)
    key = "fine-grained_score" if rated else "overall_score"
    scores = [number_of(item.get(key), f"{key} of completion {place}") for place, item in enumerate(completions, 1)]
    listed = {"prompt": row.get("instruction"), "responses": [item.get("response") for item in completions]}
    return comparisons.ranked({**listed, "system": row.get("system"), "scores": scores}, ref, rules)


def is_ultrafeedback(row: Row) -> bool:
    completions = row.get("completions")
    return _all_have(completions, ("response", "fine-grained_score")) or _all_have(
        completions, ("response", "overall_score")
    )


# ---------------------------------------------------------------- demonstrations

EXCHANGES = (
    ("human", "assistant"),
    ("input", "output"),
    ("user", "assistant"),
    ("human", "gpt"),
    ("question", "answer"),
)
"""What the two sides of an exchange are called: by ms-swift, Capybara, and others."""
_EXCHANGED = ("conversation", "conversations")


def helpsteer(row: Row, ref: RowRef, rules: Rules) -> Demonstration:
    """`prompt` and `response`; the ratings beside them say how good it is, and are counted as columns nobody reads."""
    return demonstrations.prompt_completion(row, ref, rules, "response")


def lima(row: Row, ref: RowRef, rules: Rules) -> Demonstration:
    """`conversations`: texts of the user and the assistant in turn."""
    texts = stored(row.get("conversations"))
    turns = [
        user_turn(text, f"text {place} of conversations", rules)
        if place % 2
        else assistant_turn(text, f"text {place} of conversations", rules)
        for place, text in enumerate(texts, 1)
    ]
    return _conversation(tuple(turns), row, "conversations", ref, rules)


def is_lima(row: Row) -> bool:
    texts = stored(row.get("conversations"))
    # Each turn may be stored as text of its own; such a list is a chat.
    return _is_list_of(texts, str) and not any(isinstance(stored(text), Mapping) for text in texts[:1])


def exchanges(row: Row, ref: RowRef, rules: Rules) -> Demonstration:
    """A list of exchanges, each what the user says and what the assistant answers."""
    column = present(row, _EXCHANGED)
    items = stored(row.get(column))
    names = next(pair for pair in EXCHANGES if {*pair} <= {*items[0]})
    turns: list[Message] = []
    for number, item in enumerate(items, 1):
        if not isinstance(item, Mapping) or not {*names} <= {*item}:
            raise refuse(
                "wrong_shape",
                f"exchange {number} of '{column}' has no {quoted(name for name in names if name not in item)}"
                if isinstance(item, Mapping)
                else f"exchange {number} of '{column}' is {named_type(item)}",
                found=shown(item),
                expected=f"an object with {quoted(names)}, as in the first exchange",
                remedy="complete the exchange or remove the row",
            )
        if rules.noted is not None and len(item) > 2:
            rules.noted.others("exchange", item, names)
        turns.append(user_turn(item[names[0]], f"{names[0]} of exchange {number}", rules))
        turns.append(assistant_turn(item[names[1]], f"{names[1]} of exchange {number}", rules))
    return _conversation(tuple(turns), row, column, ref, rules)


def is_exchanges(row: Row) -> bool:
    value = row.get(present(row, _EXCHANGED))
    first = value[0] if type(value) is list and value else None
    # A turn says who speaks, an exchange has both sides. Asked first, since nearly every row here is turns, and reading
    # is as fast as they are.
    if type(first) is dict and ("role" in first or "from" in first):
        return False
    items = stored(value)
    first = items[0] if isinstance(items, list | tuple) and items else None
    if not isinstance(first, Mapping) or "role" in first or "from" in first:
        return False
    return any({*pair} <= {*first} for pair in EXCHANGES)


def _conversation(turns: Messages, row: Row, column: str, ref: RowRef, rules: Rules) -> Demonstration:
    turns = ordered(with_system(turns, row), column, rules)
    check_end(turns, column)
    return Demonstration(turns, ref, tools_of(row.get("tools"), rules.noted))


# ---------------------------------------------------------------- tasks

JSON_TYPES: Mapping[str, str] = {
    **{name: "object" for name in ("dict", "HashMap", "Hashtable")},
    **{name: "array" for name in ("tuple", "list", "Array", "ArrayList", "Queue", "Stack")},
    **{name: "number" for name in ("float", "double")},
    **{name: "integer" for name in ("int", "byte", "short", "long", "Bigint")},
    **{name: "string" for name in ("any", "Any", "char", "String")},
    "bool": "boolean",
}
"""BFCL's names of types in schemas, those of Python, Java and JavaScript, as JSON Schema has them: its own map."""


def verl(row: Row, ref: RowRef, rules: Rules) -> Task:
    """`prompt` (turns) and `reward_model.ground_truth`, the answer; `data_source`, `extra_info` and all else stay."""
    reward = stored(row["reward_model"])
    truth = reward["ground_truth"]
    # Some sets list the answers that will do; of one there is no doubt which to name.
    if isinstance(truth, list | tuple) and len(truth) == 1:
        truth = truth[0]
    if isinstance(truth, list | tuple | Mapping):
        raise refuse(
            "bad_label",
            f"'reward_model.ground_truth' is {named_type(truth)}, not one answer",
            found=shown(truth),
            expected="the right answer as a text or a number, or a list of one",
            remedy="name where in it the answer is, as `columns: {answer: reward_model.ground_truth.target.0}`, or, "
            "to leave it to a reward of your own as metadata, write `format: prompts`",
        )
    answer = answer_of(truth, "reward_model.ground_truth")
    metadata = _metadata({**row, "reward_model": reward}, {"prompt", "system", "tools"})
    return Task(prompt_of(row, rules), answer, ref, metadata, tools_of(row.get("tools"), rules.noted))


def is_verl(row: Row) -> bool:
    reward = stored(row.get("reward_model"))
    # An answer of the row's own, or one that `columns` maps, says more.
    return isinstance(reward, Mapping) and reward.get("ground_truth") is not None and row.get("answer") is None


def mt_bench(row: Row, ref: RowRef, rules: Rules) -> Task:
    """`turns`, what the user asks one after the other: the first is the prompt, and its `reference` the answer."""
    turns, references = stored(row.get("turns")), stored(row.get("reference"))
    first = references[0] if isinstance(references, list | tuple) and references else None
    if len(turns) > 1:
        _note_later(rules, "turns")
    prompt = with_system((user_turn(turns[0], "turns[0]", rules),), row)
    answer = answer_of(first, "reference[0]") if first != "" else None
    return Task(prompt, answer, ref, _metadata(row, {"system"}))


def is_mt_bench(row: Row) -> bool:
    return _is_list_of(stored(row.get("turns")), str)


def bfcl(row: Row, ref: RowRef, rules: Rules) -> Task:
    """`question`, a list of turns for each step, and `function`, the tools; `ground_truth` is the answer, as JSON."""
    steps, functions = stored(row.get("question")), stored(row.get("function"))
    if len(steps) > 1:
        _note_later(rules, "question")
    prompt = prompt_of({**row, "question": steps[0]}, rules, ("question",))
    functions = functions if isinstance(functions, list | tuple) else [functions]
    tools = tools_of([_json_schema(stored(function)) for function in functions], rules.noted)
    truth = row.get("ground_truth")
    answer = None if truth is None else truth if isinstance(truth, str) else json.dumps(truth, ensure_ascii=False)
    return Task(prompt, answer, ref, _metadata(row, {"function", "system"}), tools)


def is_bfcl(row: Row) -> bool:
    steps = stored(row.get("question"))
    return isinstance(steps, list | tuple) and bool(steps) and _is_list_of(steps[0], Mapping)


def _json_schema(value: Any) -> Any:
    """A function with BFCL's types in its schema written as JSON Schema writes them."""
    if isinstance(value, list | tuple):
        return [_json_schema(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    # A parameter may be called `type`; it then holds a schema and no name.
    return {
        key: JSON_TYPES.get(item, item) if key == "type" and isinstance(item, str) else _json_schema(item)
        for key, item in value.items()
    }


def _metadata(row: Row, used: set[str]) -> dict[str, Any]:
    return {key: whole(value) for key, value in row.items() if key not in used}


def _note_later(rules: Rules, column: str) -> None:
    """Notes that a task asks the first of several turns."""
    if rules.noted is not None:
        rules.noted.key("task", f"{column} after the first (kept as metadata)")


# ---------------------------------------------------------------- forms of values


def _all_have(value: Any, keys: Sequence[str]) -> bool:
    items = stored(value)
    return _is_list_of(items, Mapping) and all(key in item for item in items for key in keys)


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(item, kind) for item in value)
