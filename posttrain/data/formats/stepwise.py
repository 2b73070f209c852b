"""Rows to `StepwiseFeedback`: a response in steps with a label for each, in three layouts that are published."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.data.formats.columns import Row, prompt_of, user_turn, with_system
from posttrain.data.padding import whole
from posttrain.data.refusals import named_type, quoted, refuse, shown
from posttrain.data.roles import Rules
from posttrain.data.texts import stored, text_of, tools_of
from posttrain.errors import RowError
from posttrain.types import RowRef, StepwiseFeedback

PRM800K_NOTES: tuple[str, ...] = (
    "labeler",
    "timestamp",
    "generation",
    "is_quality_control_question",
    "is_initial_screening_question",
)
"""Columns of PRM800K that say who judged, and when."""
SHEPHERD_MARK = "ки"
"""What Math-Shepherd writes after each step, a token that its texts do not hold otherwise."""
_RATINGS: Mapping[Any, float | None] = {1: 1.0, 0: 1.0, -1: 0.0, None: None}
"""PRM800K's ratings; a neutral step counts as right, as the authors score it (Lightman et al. 2023, App. F.2)."""
_FIRST_STEP = re.compile(r"\s*(?=Step 1:)")


def stepwise(row: Row, ref: RowRef, rules: Rules) -> StepwiseFeedback:
    """`prompt`, `completions` (the steps, in order) and `labels` (one for each): the layout of TRL's PRMTrainer."""
    steps, labels = _listed(row, "completions"), _listed(row, "labels")
    if len(steps) != len(labels):
        raise refuse(
            "bad_label",
            f"{len(steps)} steps and {len(labels)} labels",
            found=f"'completions' of {len(steps)}, 'labels' of {len(labels)}",
            expected="one label for each step",
            remedy="add the missing ones; null stands for a step that nobody judged",
        )
    texts = [_step(text, f"step {place} in 'completions'") for place, text in enumerate(steps, 1)]
    return StepwiseFeedback(
        prompt_of(row, rules),
        tuple(texts),
        _judged([_label(label) for label in labels]),
        ref,
        tools_of(row.get("tools"), rules.noted),
    )


def prm800k(row: Row, ref: RowRef, rules: Rules) -> StepwiseFeedback:
    """The solution that the labelers followed, up to its end or to the first step that they did not go on from."""
    texts: list[str] = []
    labels: list[float | None] = []
    question, judged = _object(row.get("question"), "'question'"), _object(row.get("label"), "'label'")
    for place, step in enumerate(_listed(judged, "steps"), 1):
        step = _object(step, f"step {place}")
        taken, rating = _followed(step, place)
        if taken is None:
            break
        texts.append(_step(taken, f"step {place}"))
        labels.append(rating)
        # The labelers stopped here; what later steps say was never part of this solution.
        if step.get("chosen_completion") is None and not step.get("human_completion"):
            break
    problem = with_system((user_turn(question.get("problem"), "question.problem", rules),), row)
    if not texts:
        raise _no_steps("'steps'")
    return StepwiseFeedback(problem, tuple(texts), _judged(labels), ref)


def is_prm800k(row: Row) -> bool:
    question, label = stored(row.get("question")), stored(row.get("label"))
    return isinstance(question, Mapping) and isinstance(label, Mapping) and isinstance(label.get("steps"), list)


def math_shepherd(row: Row, ref: RowRef, rules: Rules) -> StepwiseFeedback:
    """The question ends where "Step 1:" begins; the mark after each step stands for the sign in `label`."""
    text, signed = text_of(row.get("input"), "'input'"), text_of(row.get("label"), "'label'")
    parts = text.split(SHEPHERD_MARK)
    # Text behind the last mark is a step without a label, and the labels would be off by one from there.
    if parts[-1].strip():
        raise _shepherd("the last step has no mark after it", parts[-1].strip()[:60])
    at = _FIRST_STEP.search(parts[0])
    if at is None:
        raise _shepherd("'input' has no 'Step 1:', where the answer begins", parts[0].strip()[:60])
    labels: list[float | None] = []
    place = 0
    for number, part in enumerate(parts[:-1], 1):
        # Walked in step with `input`: a + or - inside a formula is no label, so searching for signs would miscount.
        if not signed.startswith(part, place) or signed[place + len(part) : place + len(part) + 1] not in ("+", "-"):
            raise _shepherd(f"'label' does not say + or - after step {number}", signed[place : place + len(part) + 2])
        place += len(part) + 1
        labels.append(1.0 if signed[place - 1] == "+" else 0.0)
    steps = [parts[0][at.end() :], *parts[1:-1]]
    prompt = with_system((user_turn(parts[0][: at.start()], "input", rules),), row)
    return StepwiseFeedback(
        prompt, tuple(_step(step, f"step {number}") for number, step in enumerate(steps, 1)), tuple(labels), ref
    )


def is_math_shepherd(row: Row) -> bool:
    return isinstance(row.get("label"), str) and isinstance(row.get("input"), str) and SHEPHERD_MARK in row["input"]


# ---------------------------------------------------------------- steps and labels


def _object(value: Any, place: str) -> Mapping[str, Any]:
    value = stored(value)
    if isinstance(value, Mapping):
        return value
    raise refuse(
        "wrong_shape",
        f"{place} is {named_type(value)}, not an object",
        found=shown(value),
        expected="an object as in the published file",
        remedy="correct the row, or write steps and labels as lists (`completions`, `labels`)",
    )


def _listed(row: Row, column: str) -> Sequence[Any]:
    value = stored(row.get(column))
    if isinstance(value, list | tuple):
        if not value:
            raise _no_steps(f"'{column}'")
        return value
    raise refuse(
        "wrong_shape",
        f"'{column}' is {named_type(value)}, not a list",
        found=shown(value),
        expected="a list with an entry for each step",
        remedy=f"write `{column}` as a list",
    )


def _step(text: Any, place: str) -> str:
    """White space around a step is the mark's business, and is left out."""
    text = text_of(text, place).strip()
    if text:
        return text
    raise refuse(
        "empty_response",
        f"{place} has no text",
        found="an empty text, or nothing but white space",
        expected="what the step says",
        remedy="remove the step and its label; `bad_rows: skip` leaves such rows out and counts them",
    )


def _label(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool | int | float) and 0 <= value <= 1:
        return float(value)
    raise refuse(
        "bad_label",
        f"a label of 'labels' is {shown(value)}",
        found=named_type(value),
        expected="true (right), false (wrong), a probability from 0 to 1, or null where nobody judged",
        remedy="write true or false; of ratings -1, 0, 1, false, null (or true) and true",
    )


def _judged(labels: Sequence[float | None]) -> tuple[float | None, ...]:
    if any(label is not None for label in labels):
        return tuple(labels)
    raise refuse(
        "bad_label",
        "no step of the row has a label",
        found=f"{len(labels)} steps that nobody judged",
        expected="at least one label",
        remedy="remove the row",
    )


def _followed(step: Mapping[str, Any], place: int) -> tuple[Any, float | None]:
    """What the solution goes on with: the chosen completion, the labeler's own, or the first where it ends."""
    chosen, own = whole(step.get("chosen_completion")), step.get("human_completion")
    offered = _listed(step, "completions") if step.get("completions") else []
    if chosen is None and own:
        taken = own if isinstance(own, Mapping) else {"text": own}
        # A step that the labeler wrote is right by definition; the file has no rating for it.
        return taken.get("text"), 1.0
    if not offered:
        return None, None
    if isinstance(chosen, bool) or not isinstance(chosen, int | None) or not 0 <= (chosen or 0) < len(offered):
        raise refuse(
            "wrong_shape",
            f"'chosen_completion' of step {place} is {shown(chosen)}",
            found=f"{len(offered)} completions",
            expected="the index of one of them, or null",
            remedy="correct the row, or remove it",
        )
    taken = _object(offered[chosen or 0], f"a completion of step {place}")
    rating = whole(taken.get("rating"))
    if not isinstance(rating, int | None) or rating not in _RATINGS:
        raise refuse(
            "bad_label",
            f"the rating of step {place} is {shown(rating)}",
            found=named_type(rating),
            expected=f"one of {quoted(_RATINGS)}",
            remedy="write one of these, or remove the row",
        )
    return taken.get("text"), _RATINGS[rating]


def _no_steps(where: str) -> RowError:
    return refuse(
        "wrong_shape",
        f"{where} is empty",
        found="no step",
        expected="at least one step",
        remedy="remove the row",
    )


def _shepherd(problem: str, found: str) -> RowError:
    return refuse(
        "wrong_shape",
        problem,
        found=shown(found),
        expected=f"a text with {SHEPHERD_MARK!r} after each step, and the same text in 'label' with + or - there",
        remedy="correct the row, or write steps and labels as lists (`completions`, `labels`)",
    )
