"""The final table: what the suites measured before and after each stage, and whether it moved.

A change is called clear only if chance does not explain it: where both evaluations kept what each prompt adds, by the
95 % interval of the change over the same prompts and by the paired randomisation test
(`posttrain.diagnostics.paired`); else if the two 95 % intervals do not overlap, which is stricter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from posttrain.diagnostics.paired import Paired, paired_change
from posttrain.diagnostics.suite_metrics import meaning
from posttrain.report.numbers import difference, interval, number
from posttrain.runs.read import Evaluated, RunContents
from posttrain.runs.records.evaluation import AnswerLine, Direction, Figure, Meaning


class Movement(Enum):
    """What became of it since the start. The value is the word behind the table's sign, and is read out for it."""

    BETTER = "better"
    WORSE = "worse"
    MOVED = "moved"
    UNCLEAR = "no clear change"
    SAME = "same"
    UNKNOWN = ""


@dataclass(frozen=True, slots=True)
class Cell:
    """One figure of the table, and what became of it since the start."""

    score: Figure
    value: str
    interval: str
    change: Movement
    why: str
    """In words: the difference, its interval, and what the judgement rests on."""


@dataclass(frozen=True, slots=True)
class TableRow:
    """One metric of one suite, over all columns; None where it was not measured."""

    suite: str
    metric: str
    meaning: Meaning
    cells: list[Cell | None]

    @property
    def telling(self) -> bool:
        """Worth a word: what the suite is asked for, and what else became clearly worse."""
        return self.meaning.primary or (self.last is not None and self.last.change is Movement.WORSE)

    @property
    def last(self) -> Cell | None:
        """The last figure after the start's column."""
        return next((cell for cell in reversed(self.cells[1:]) if cell is not None), None)


@dataclass(frozen=True, slots=True)
class Table:
    """Columns are "start" and every stage that was evaluated."""

    columns: list[str]
    rows: list[TableRow]


def final_table(run: RunContents) -> Table:
    """The figures of all evaluations, in the suites' order; what a suite is asked for first."""
    shown = [(name, found) for name, found in run.measured if found.scores]
    if not shown:
        return Table([], [])
    # The first column is what the others are compared with, so it is there even when the start was not evaluated.
    if not run.start.scores:
        shown = [("start", run.start), *shown]
    rows = [_row(suite, metric, shown) for suite, metric in _names([found for _, found in shown])]
    return Table([name for name, _ in shown], rows)


def _names(evaluated: list[Evaluated]) -> Iterator[tuple[str, str]]:
    suites = dict.fromkeys(suite for found in evaluated for suite in found.scores)
    for suite in suites:
        metrics = dict.fromkeys(metric for found in evaluated for metric in found.scores.get(suite, {}))
        # A stable sort: within each half the metrics keep the order in which the suite wrote them.
        for metric in sorted(metrics, key=lambda name: not _meaning(suite, name, evaluated).primary):
            yield suite, metric


def _meaning(suite: str, metric: str, evaluated: list[Evaluated]) -> Meaning:
    """As the suite's own kind says, else as the table knows it."""
    said = (found.meanings.get(suite, {}).get(metric) for found in evaluated)
    return next((own for own in said if own is not None), None) or meaning(metric)


def _row(suite: str, metric: str, shown: list[tuple[str, Evaluated]]) -> TableRow:
    how = _meaning(suite, metric, [found for _, found in shown])
    start = shown[0][1]
    cells: list[Cell | None] = []
    for _, found in shown:
        score = found.scores.get(suite, {}).get(metric)
        before = start.scores.get(suite, {}).get(metric)
        if score is None:
            cells.append(None)
            continue
        change, why = Movement.UNKNOWN, ""
        if found is not start and before is not None:
            answers = (start.answers.get(suite, []), found.answers.get(suite, []))
            paired = paired_change(metric, *answers, before, score)
            change, why = judge(before, score, how, paired)
        # A change against the start is 0 there by definition, so it can be judged without the start's own figure.
        elif how.wanted is Direction.STILL and found is not start:
            change, why = judge(Figure(0.0, 0.0, 0.0), score, how, None)
        cells.append(Cell(score, number(score.value, how.unit), interval(score.low, score.high, how.unit), change, why))
    return TableRow(suite, metric, how, cells)


def judge(before: Figure, after: Figure, how: Meaning, paired: Paired | None) -> tuple[Movement, str]:
    """Whether it moved, and whether that was wanted; with the reason in words."""
    # With enough prompts any drift is clear; whether it matters is a question of its size.
    if how.wanted is Direction.STILL and how.limit is not None:
        return _judge_still(after, how, how.limit)
    if paired is not None:
        clear, moved, same = paired.clear, paired.difference.value, paired.difference
        why = (
            f"{difference(moved, how.unit)} over the same {same.n} prompts, 95 % interval "
            f"{difference(same.low, how.unit).removesuffix(' points')} to {difference(same.high, how.unit)}, "
            f"p = {paired.p:.2g}"
        )
    else:
        moved = after.value - before.value
        clear = _apart(before, after)
        known = before.low is not None and after.low is not None
        reason = (
            ("the intervals do not overlap" if clear else "the intervals overlap") if known else "no intervals known"
        )
        why = f"{difference(moved, how.unit)}; {reason}"
    # An unchanged figure is called that: "no clear change" would hint at one.
    if moved == 0:
        return Movement.SAME, ""
    if not clear:
        return Movement.UNCLEAR, why
    if how.wanted in (Direction.OPEN, Direction.STILL):
        return Movement.MOVED, why
    return (Movement.BETTER if (moved > 0) == (how.wanted is Direction.UP) else Movement.WORSE), why


def _judge_still(after: Figure, how: Meaning, limit: float) -> tuple[Movement, str]:
    low, high = (
        (after.low if after.low is not None else after.value),
        (after.high if after.high is not None else after.value),
    )
    bound = number(limit, how.unit)
    if low > limit or high < -limit:
        return Movement.WORSE, f"beyond ±{bound}, the interval too"
    if abs(after.value) <= limit:
        return Movement.SAME, f"within ±{bound}"
    return Movement.UNCLEAR, f"beyond ±{bound}, but the interval reaches into it"


def _apart(before: Figure, after: Figure) -> bool:
    if before.low is None or before.high is None or after.low is None or after.high is None:
        return False
    return after.low > before.high or after.high < before.low


def aligned(answers: list[AnswerLine]) -> dict[tuple[str, int], AnswerLine]:
    """Answers by prompt and by the how-manieth of that prompt it is, so that repeated prompts stay apart."""
    seen: dict[str, int] = {}
    found = {}
    for answer in answers:
        seen[answer.prompt] = seen.get(answer.prompt, 0) + 1
        found[answer.prompt, seen[answer.prompt]] = answer
    return found
