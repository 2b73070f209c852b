"""What strategies found, kept as rows that train: winners to imitate, pairs to prefer, steps with labels.

    rows = winners(solutions)                       # Demonstrations: the prompt and the answer that was found
    rows = pairs(solutions, scores)                 # Comparisons: the best and the worst answer to each prompt
    rows = steps(solutions, right, step_labels)     # StepwiseFeedback, from trees of steps
    write_rows(Path("rows.jsonl"), rows)            # `posttrain.read` gives them back

A prompt that gives no row is named, with the reason: `Kept.without`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from re import Pattern
from typing import Generic, Protocol, TypeVar

from posttrain.auditing.fix import as_row
from posttrain.data.write import write_jsonl
from posttrain.inference.scorers import ABSTAINED
from posttrain.inference.solution import Node, Solution
from posttrain.types import Comparison, Demonstration, Example, Message, StepwiseFeedback, Task

Right = Callable[[Node], bool | None]
"""(a node that is a whole answer) -> whether it is right; None where nobody can tell."""
E = TypeVar("E", bound=Example)

WITHOUT = {
    "no_answer": "the strategy found none",
    "cut": "the answer was cut by a limit",
    "special_tokens": "the answer holds the name of a special token: encoded, it would end or begin a turn",
    "bad_character": "the answer holds a NUL character, which no reader of rows takes",
    "low_score": "its score is below `least_score`",
    "not_judged": "its scorer abstained",
    "one_answer": "there is no second answer to compare with",
    "same_text": "the best and the worst answer say the same",
    "same_score": "all answers have one score",
    "no_steps": "no step has a label",
}
"""Why a prompt gave no row."""


class StepLabels(Protocol):
    """Rows from a tree of steps: `posttrain.inference.labels.step_labels`."""

    def __call__(self, solution: Solution, right: Right) -> list[StepwiseFeedback]: ...


@dataclass(slots=True)
class Kept(Generic[E]):
    """Rows, and the prompts that gave none: Kept([...], [(solution, "same_score")])."""

    rows: list[E] = field(default_factory=list)
    without: list[tuple[Solution, str]] = field(default_factory=list)
    """With the reason, a key of WITHOUT."""

    @property
    def reasons(self) -> Counter[str]:
        """How many prompts gave no row, by reason."""
        return Counter(reason for _, reason in self.without)

    def __str__(self) -> str:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(self.reasons.items()))
        return f"{len(self.rows):,} rows" + (f"; prompts that gave none: {reasons}" if reasons else "")


def winners(
    solutions: Sequence[Solution],
    *,
    scores: Sequence[float | None] | None = None,
    least_score: float | None = None,
    special: Pattern[str] | None = None,
) -> Kept[Demonstration]:
    """The answer that was found to each prompt, as a conversation to imitate.

    Args:
        special: what names a special token (`encoder.tokens.special_pattern(...)`): answers with one make no row.
        scores: of each solution's answer; None where nobody could judge it. Needed by `least_score`.
        least_score: answers below it make no row.
    """
    assert least_score is None or scores is not None, "nothing says how good the answers are"
    kept: Kept[Demonstration] = Kept()
    for place, solution in enumerate(solutions):
        score = None if scores is None else scores[place]
        if reason := unfit(solution.answer, special) or _no_winner(solution, score, least_score):
            kept.without.append((solution, reason))
        else:
            kept.rows.append(demonstration_of(solution.task, solution.answer))
    return kept


def demonstration_of(task: Task, answer: str) -> Demonstration:
    """An answer to imitate. The assistant's turns in the prompt were given, not found: they do not train."""
    prompt = [
        replace(turn, train=False) if turn.role == "assistant" and turn.train is None else turn for turn in task.prompt
    ]
    return Demonstration((*prompt, Message("assistant", answer)), task.row, task.tools)


def unfit(text: str, special: Pattern[str] | None) -> str | None:
    """Why a text makes no row that trains as it stands. A model of bytes may sample U+0000, and a single such answer
    would end the stage that reads the rows."""
    if "\0" in text:
        return "bad_character"
    return "special_tokens" if special is not None and special.search(text) is not None else None


def _no_winner(solution: Solution, score: float | None, least: float | None) -> str | None:
    if not solution.answer.strip():
        return "no_answer"
    node = None if solution.chosen is None else solution.nodes[solution.chosen]
    # Imitated, a cut answer would teach to stop in the middle: a demonstration ends with a stop token.
    if node is not None and not node.ended and node.answer == solution.answer:
        return "cut"
    if least is None:
        return None
    if score is None or score == ABSTAINED:
        return "not_judged"
    return "low_score" if score < least else None


def pairs(
    solutions: Sequence[Solution], scores: Sequence[Sequence[float | None]], *, special: Pattern[str] | None = None
) -> Kept[Comparison]:
    """The best and the worst whole answer to each prompt, with their scores; of equal scores the earlier.

    Args:
        special: as of `winners`.
        scores: of each solution's `answers`, in their order; None or -inf where the scorer abstained.
    """
    kept: Kept[Comparison] = Kept()
    for solution, own in zip(solutions, scores, strict=True):
        judged = [
            (score, node)
            for node, score in zip(solution.answers, own, strict=True)
            # One that was cut would be rejected, or chosen, for an end that the sampling limit made.
            if score is not None and score != ABSTAINED and node.ended and node.answer.strip()
            if unfit(node.answer, special) is None
        ]
        pair = _pair(solution, judged)
        if isinstance(pair, str):
            kept.without.append((solution, pair))
        else:
            kept.rows.append(pair)
    return kept


def _pair(solution: Solution, judged: Sequence[tuple[float, Node]]) -> Comparison | str:
    """The pair, or why there is none."""
    if len(judged) < 2:
        return "one_answer" if judged else "not_judged"
    best_score, best = max(judged, key=lambda entry: (entry[0], -entry[1].number))
    worst_score, worst = min(judged, key=lambda entry: (entry[0], entry[1].number))
    if best_score == worst_score:
        return "same_score"
    if best.answer == worst.answer:
        return "same_text"
    task = solution.task
    responses = tuple((Message("assistant", node.answer),) for node in (best, worst))
    return Comparison(task.prompt, responses, 0, task.row, scores=(best_score, worst_score), tools=task.tools)


def steps(
    solutions: Sequence[Solution], right: Right, labels: StepLabels, *, special: Pattern[str] | None = None
) -> Kept[StepwiseFeedback]:
    """Rows of labelled steps from the trees of a search.

    Args:
        right: whether a whole answer is right.
        labels: makes the rows of one tree.
        special: as of `winners`.
    """
    kept: Kept[StepwiseFeedback] = Kept()
    for solution in solutions:
        labelled = [row for row in labels(solution, right) if any(label is not None for label in row.labels)]
        reasons = [unfit("\n".join(row.steps), special) for row in labelled]
        fit = [row for row, reason in zip(labelled, reasons, strict=True) if reason is None]
        kept.rows += fit
        if not fit:
            kept.without.append((solution, next(filter(None, reasons), "no_steps")))
    return kept


def write_rows(path: Path, rows: Sequence[Example]) -> int:
    """One line each, in the plain format of their kind, which `posttrain.read` reads as the same rows; returns how
    many."""
    return write_jsonl(path, (as_row(row) for row in rows))
