"""Rows to `Comparison`: pairs in five layouts, and ranked lists.

A pair becomes responses (chosen, rejected) with winner 0. A ranked list keeps the order of the file, and its
`ranking` says which is best.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from posttrain.data.formats.columns import (
    Messages,
    Row,
    continuation,
    number_of,
    optional_number,
    present,
    prompt_of,
    prompt_turns,
    response_turns,
    with_system,
)
from posttrain.data.order import check_prompt, ordered
from posttrain.data.padding import whole
from posttrain.data.refusals import named_type, quoted, refuse, shown
from posttrain.data.roles import Rules
from posttrain.data.texts import stored, text_of, tools_of
from posttrain.errors import RowError
from posttrain.types import Comparison, Message, RowRef

# ---------------------------------------------------------------- pairs


def preference(row: Row, ref: RowRef, rules: Rules, sides: tuple[str, str] = ("chosen", "rejected")) -> Comparison:
    """`prompt`, `chosen`, `rejected` as strings or turns, or `chosen` and `rejected` alone as whole conversations.

    Also ultrafeedback_binarized (`score_chosen`, `score_rejected`) and orca_dpo_pairs (`system`, `question`).
    A side that begins with a turn of the system or the user is a whole conversation and must contain the prompt.

    Args:
        sides: what the better and the worse side are called.
    """
    chosen = response_turns(row.get(sides[0]), sides[0], rules)
    rejected = response_turns(row.get(sides[1]), sides[1], rules)
    column = present(row, ("prompt", "question", "conversations"))
    given = row.get(column)
    if chosen[0].role == "assistant" and rejected[0].role == "assistant":
        prompt = prompt_of(row, rules, (column,))
    else:
        prompt, chosen, rejected = _split(chosen, rejected, given, column, rules, sides)
        prompt = with_system(prompt, row)
    return pair(prompt, chosen, rejected, row, ref, rules, sides)


def hh_rlhf(row: Row, ref: RowRef, rules: Rules) -> Comparison:
    """`chosen` and `rejected` as two dialogues in one string each, with a common beginning."""
    chosen = _dialogue(row.get("chosen"), "chosen")
    rejected = _dialogue(row.get("rejected"), "rejected")
    prompt, chosen, rejected = _split(chosen, rejected, None, "prompt", rules)
    return pair(with_system(prompt, row), chosen, rejected, row, ref, rules)


def align_anything(row: Row, ref: RowRef, rules: Rules) -> Comparison:
    """`question`, `response_1`, `response_2`, and `overall_response`: 1 or 2, the better one; 0 is a tie."""
    verdict = row.get("overall_response")
    # CSV has no numbers: what is read from there is text.
    if isinstance(verdict, str) and verdict.strip() in ("0", "1", "2", "0.0", "1.0", "2.0"):
        verdict = int(float(verdict))
    if isinstance(verdict, bool) or verdict not in (0, 1, 2):
        raise refuse(
            "bad_label",
            f"'overall_response' is {shown(row.get('overall_response'))}",
            found=named_type(row.get("overall_response")),
            expected="1 or 2, the number of the better response (0 says that neither is better)",
            remedy="write 1 or 2, or remove the row",
        )
    # A tie whose better side is unknown has no pair to keep, so `allow_ties` does not help here.
    if verdict == 0:
        raise tie("'overall_response' is 0: neither response is better", can_keep=False)
    better, worse = ("response_1", "response_2") if verdict == 1 else ("response_2", "response_1")
    prompt = prompt_of(row, rules, ("question", "prompt"))
    chosen = response_turns(row.get(better), better, rules)
    rejected = response_turns(row.get(worse), worse, rules)
    return pair(prompt, chosen, rejected, row, ref, rules, (better, worse))


def pair(
    prompt: Messages,
    chosen: Messages,
    rejected: Messages,
    row: Row,
    ref: RowRef,
    rules: Rules,
    columns: tuple[str, str] = ("chosen", "rejected"),
) -> Comparison:
    """Two responses to one prompt, the better one first, with the row's margin, scores and votes."""
    chosen = continuation(prompt, chosen, columns[0], rules)
    rejected = continuation(prompt, rejected, columns[1], rules)
    # Compared without their training flags: two equal answers with other flags still teach nothing.
    if _words(chosen) == _words(rejected):
        raise _identical(*columns, chosen)
    return Comparison(
        prompt=prompt,
        responses=(chosen, rejected),
        winner=0,
        row=ref,
        margin=_margin(row),
        scores=_pair_scores(row, rules),
        votes=_votes(row["votes"], 2) if row.get("votes") is not None else None,
        tools=tools_of(row.get("tools"), rules.noted),
    )


def _margin(row: Row) -> float | None:
    margin = optional_number(row, "margin")
    # Trained, it would ask the policy to put the rejected response ahead.
    if margin is not None and margin < 0:
        raise refuse(
            "score_order",
            "'margin' says that the rejected response is the better one",
            found=f"{margin:g}",
            expected="how much better the chosen response is, 0 or more",
            remedy="swap the two sides if the labels are wrong, or remove `margin` if it measures something else",
        )
    return margin


def _pair_scores(row: Row, rules: Rules) -> tuple[float, float] | None:
    if row.get("score_chosen") is None and row.get("score_rejected") is None:
        return None
    chosen = number_of(row.get("score_chosen"), "score_chosen")
    rejected = number_of(row.get("score_rejected"), "score_rejected")
    if chosen == rejected and not rules.allow_ties:
        raise tie(f"'score_chosen' and 'score_rejected' are both {chosen:g}", can_keep=True)
    if chosen < rejected:
        raise refuse(
            "score_order",
            "the rejected response has the higher score",
            found=f"score_chosen {chosen:g}, score_rejected {rejected:g}",
            expected="a chosen response that scores higher than the rejected one",
            remedy="swap the two sides if the labels are wrong, or remove the scores if they measure something else",
        )
    return chosen, rejected


# ---------------------------------------------------------------- whole conversations


def _split(
    chosen: Messages,
    rejected: Messages,
    given: Any,
    column: str,
    rules: Rules,
    sides: tuple[str, str] = ("chosen", "rejected"),
) -> tuple[Messages, Messages, Messages]:
    """Two whole conversations -> (the prompt they share, the two continuations).

    The prompt is the common beginning, shortened until both continuations begin with the assistant.
    """
    # Both sides alike, before they are compared: a greeting that one of them lost would part them at the first turn.
    chosen, rejected = ordered(chosen, sides[0], rules), ordered(rejected, sides[1], rules)
    if _words(chosen) == _words(rejected):
        raise _identical(*sides, chosen)
    # Not strict: one side may go on longer, and what they share ends where the shorter one does.
    pairs = zip(_words(chosen), _words(rejected), strict=False)
    common = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(chosen), len(rejected)))
    differ_at = common
    # An empty side is no response, and a tool's result belongs to the call before it: the prompt gives turns back.
    while common and (len(chosen) == common or len(rejected) == common or chosen[common].role == "tool"):
        common -= 1
    while common and rejected[common].role == "tool":
        common -= 1
    prompt, ends = chosen[:common], (chosen[common:], rejected[common:])
    # A user turn after the sides part would train the policy on answers to two different questions.
    if not prompt or any(message.role in ("system", "user") for end in ends for message in end):
        raise _prompts_differ(chosen, rejected, differ_at, sides)
    check_prompt(prompt, f"the common beginning of {sides[0]} and {sides[1]}")
    if given is not None:
        _check_given(given, prompt, column, rules)
    return prompt, ends[0], ends[1]


def _words(messages: Messages) -> Messages:
    """The messages without what they say of their training: the same words are the same turn."""
    if all(message.train is None for message in messages):
        return messages
    return tuple(replace(message, train=None) for message in messages)


def _check_given(given: Any, prompt: Messages, column: str, rules: Rules) -> None:
    """The prompt that the row gives must be the one that its conversations begin with."""
    turns = prompt_turns(given, column, rules)
    turns, prompt = _words(turns), _words(prompt)
    texts = [(message.content or "").strip() for message in prompt if message.role == "user"]
    agrees = (
        (isinstance(given, str) and given.strip() in (texts[0], texts[-1]))
        or turns == prompt
        or turns == tuple(message for message in prompt if message.role != "system")
    )
    if not agrees:
        raise refuse(
            "prompts_differ",
            f"the conversations in 'chosen' and 'rejected' do not begin with the row's '{column}'",
            found=f"'{column}': {shown(turns[-1].content, 60)}; the conversations: {shown(prompt[-1].content, 60)}",
            expected="one and the same prompt in all three columns",
            remedy=f"correct the row, or leave out `{column}`: it is read off the two conversations",
        )


def _prompts_differ(chosen: Messages, rejected: Messages, at: int, sides: tuple[str, str]) -> RowError:
    def turn(side: Messages) -> str:
        return f"{side[at].role} {shown(side[at].content, 60)}" if at < len(side) else "nothing (it ends before)"

    return refuse(
        "prompts_differ",
        f"'{sides[0]}' and '{sides[1]}' do not answer the same prompt: they part at turn {at + 1}",
        found=f"{sides[0]}: {turn(chosen)}; {sides[1]}: {turn(rejected)}",
        expected="the same turns in both up to the assistant's answer, where they part, and no turn of the user after",
        remedy="correct or remove the row; where whole exchanges are compared, give the shared turns in a column "
        "`prompt` and in `chosen` and `rejected` only what follows",
    )


_SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):")


def _dialogue(value: Any, column: str) -> Messages:
    """hh-rlhf's text form: "\\n\\nHuman: Hi\\n\\nAssistant: Hello." -> two messages."""
    text = text_of(value, f"'{column}'")
    _, *parts = _SPEAKER.split(text)
    if not parts or not _SPEAKER.match(text.lstrip()):
        raise refuse(
            "wrong_shape",
            f"'{column}' is not a dialogue",
            found=shown(text),
            expected=r"a text that begins with '\n\nHuman:' and goes on with '\n\nAssistant:'",
            remedy="write it so, or give the prompt in a column of its own: prompt, chosen, rejected",
        )
    turns = [
        Message("user" if speaker == "Human" else "assistant", words.strip())
        for speaker, words in zip(parts[::2], parts[1::2], strict=True)
    ]
    for number, message in enumerate(turns, 1):
        if not message.content:
            raise refuse(
                "empty_response" if message.role == "assistant" else "empty_turn",
                f"turn {number} of '{column}' ({message.role}) has no text",
                found="an empty text, or nothing but white space",
                expected="text in every turn",
                remedy="remove the row; `bad_rows: skip` leaves such rows out and counts them",
            )
    return tuple(turns)


# ---------------------------------------------------------------- ranked lists


def ranked(row: Row, ref: RowRef, rules: Rules) -> Comparison:
    """`prompt`, `responses`, and `ranking` (indices from 0, best first), `scores` (higher is better) or `votes`."""
    prompt = prompt_of(row, rules)
    responses = _responses(row.get("responses"), prompt, rules)
    count = len(responses)
    scores = _numbers(row["scores"], "scores", count) if row.get("scores") is not None else None
    votes = _votes(row["votes"], count) if row.get("votes") is not None else None
    if row.get("ranking") is not None:
        ranking = _ranking(row["ranking"], count)
        if scores is not None:
            _check_scores_fall(ranking, scores)
    else:
        # A ranking outweighs scores, scores outweigh votes: the more direct statement of the annotator first.
        values, column = (scores, "scores") if scores is not None else (votes or (), "votes")
        ranking = tuple(sorted(range(count), key=lambda index: -values[index]))
        _check_ties(values, ranking, column, rules)
    return Comparison(
        prompt=prompt,
        responses=responses,
        winner=ranking[0],
        row=ref,
        ranking=ranking,
        scores=scores,
        votes=votes,
        tools=tools_of(row.get("tools"), rules.noted),
    )


def _responses(value: Any, prompt: Messages, rules: Rules) -> tuple[Messages, ...]:
    value = stored(value)
    if not isinstance(value, list | tuple) or len(value) < 2:
        is_list = isinstance(value, list | tuple)
        raise refuse(
            "too_few_responses" if is_list else "wrong_shape",
            f"'responses' has {len(value)} of them" if is_list else f"'responses' is {named_type(value)}, not a list",
            found=shown(value),
            expected="a list of two or more responses, each a string or a list of turns",
            remedy="a comparison needs at least two responses: add one or remove the row",
        )
    names = [f"response {number}" for number in range(len(value))]
    responses = [
        continuation(prompt, response_turns(item, name, rules), name, rules)
        for item, name in zip(value, names, strict=True)
    ]
    for number, response in enumerate(responses):
        # Refused and not merged: which of the two places in the ranking would be meant cannot be told.
        if response in responses[:number]:
            raise _identical(names[responses.index(response)], names[number], response)
    return tuple(responses)


def _numbers(value: Any, column: str, count: int) -> tuple[float, ...]:
    value = stored(value)
    if not isinstance(value, list | tuple) or len(value) != count:
        size = f"a list of {len(value)}" if isinstance(value, list | tuple) else named_type(value)
        raise refuse(
            "bad_score",
            f"'{column}' does not give one number for each of the {count} responses",
            found=size,
            expected=f"a list of {count} numbers, in the order of the responses",
            remedy=f"correct `{column}` or remove the row",
        )
    return tuple([number_of(item, f"{column}[{index}]") for index, item in enumerate(value)])


def _votes(value: Any, count: int) -> tuple[int, ...]:
    votes = _numbers(value, "votes", count)
    if any(vote < 0 or vote != int(vote) for vote in votes):
        raise refuse(
            "bad_score",
            "'votes' holds something that is no count",
            found=shown(value),
            expected="whole numbers, zero or more",
            remedy="correct `votes` or remove the row",
        )
    return tuple(int(vote) for vote in votes)


def _ranking(value: Any, count: int) -> tuple[int, ...]:
    value = whole(stored(value))
    order = list(value) if isinstance(value, list | tuple) else None
    counted = order is not None and all(isinstance(item, int) and not isinstance(item, bool) for item in order)
    if order is not None and counted and sorted(order) == list(range(count)):
        return tuple(order)
    from_one = order is not None and counted and sorted(order) == list(range(1, count + 1))
    remedy = "correct 'ranking', or give 'scores' instead"
    if order is not None and from_one:
        listed = [index - 1 for index in order]
        ranked = [order.index(rank) for rank in range(1, count + 1)]
        # The two readings differ in which response is best: taking one for the other turns pairs around.
        remedy = f"where it lists the responses, the best first, subtract 1 from each index: {listed}" + (
            f"; where it gives the rank of each response, write {ranked}" if ranked != listed else ""
        )
    raise refuse(
        "bad_ranking",
        f"'ranking' is not an order of the {count} responses",
        found=shown(value) + (", which counts from 1" if from_one else ""),
        expected=f"the indices 0 to {count - 1}, each once, the best response first",
        remedy=remedy,
    )


def _check_scores_fall(ranking: Sequence[int], scores: Sequence[float]) -> None:
    ordered = [scores[index] for index in ranking]
    if any(after > before for before, after in itertools.pairwise(ordered)):
        raise refuse(
            "score_order",
            "'scores' and 'ranking' say different things",
            found=f"the scores in the order of the ranking: {quoted(ordered)}",
            expected="scores that do not rise from the best response to the worst",
            remedy="correct one of the two, or leave one out",
        )


def _check_ties(values: Sequence[float], ranking: Sequence[int], column: str, rules: Rules) -> None:
    ordered = [values[index] for index in ranking]
    if len(set(ordered)) == len(ordered) or (rules.allow_ties and ordered[0] > ordered[1]):
        return
    # A tie below the best leaves the winner known, so the user may keep such rows; a tie at the top does not.
    best = ordered[0] == ordered[1]
    what = "the best responses are level" if best else "two responses are level"
    raise tie(f"{what}: '{column}' is {list(values)}", can_keep=not best)


# ---------------------------------------------------------------- refusals


def tie(problem: str, *, can_keep: bool) -> RowError:
    """The error for a row in which nothing is better; `can_keep` where `allow_ties` would keep it."""
    keep = ", or keep such rows, whose winner is known, with `allow_ties: true`" if can_keep else ""
    return refuse(
        "tie",
        problem,
        found="a tie",
        expected="one response that is better than the other",
        remedy=f"a tie teaches no preference: remove the row, skip and count such rows with `bad_rows: skip`{keep}",
    )


def _identical(first: str, second: str, messages: Messages) -> RowError:
    return refuse(
        "identical_responses",
        f"'{first}' and '{second}' are the same",
        found=shown(messages[-1].content),
        expected="two different responses",
        remedy="a pair without a difference teaches nothing: remove the row; `bad_rows: skip` counts such rows",
    )
