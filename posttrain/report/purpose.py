"""Whether a run did what it was for, and whether its figures can tell: what a headline of "clean" would pass over.

A run may end without an alarm and still have failed whoever started it: its goal is missed, its loss was still falling,
its answers turn in a circle, or it was measured on so few prompts that no figure means anything. Each of these is a
`Shortfall` with its figures, what to do about it, and a rule that keeps quiet where chance explains what is seen.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from posttrain.intervals import chance_of_fall, prompts_to_tell, prompts_within
from posttrain.report.evaluation import Movement, Table, TableRow
from posttrain.report.numbers import count, difference, number
from posttrain.report.online_panels import is_online
from posttrain.report.statement import Statement
from posttrain.report.summaries import head_and_tail
from posttrain.runs.read import Curve, RunContents, Stage
from posttrain.runs.records.evaluation import AnswerLine, Direction

WIDE = 0.2
"""Half of an interval's width above which a share says next to nothing: 5 right answers of 5 may be 57 % of all."""
SURE = 0.1
"""Half of the width that a reader can do something with; how many prompts it takes is said."""
SHIFT = 0.05
"""A change of a share that is worth more prompts, if they showed it to be one."""
FEWEST_HELD_OUT = 20
"""Below it the 95 % interval of a share is more than 40 points wide in the middle."""
LAST_PART = 1 / 3
"""Of the steps, in which a loss has to have fallen to be called still falling."""
FEWEST_STEPS = 6
"""In that part: the fewest of which the test below can be sure."""
STILL_FALLING = 0.15
"""Share of the whole fall that the last third still brought; an even fall would bring a third there, one that has
settled a few per cent."""
CERTAIN = 0.01
"""How seldom noise may pass for a fall."""
REPEATS = 3
"""How often a piece of text stands in a row at the end of an answer that turns in a circle."""
SHORTEST_CIRCLE = 24
"""Characters that the repeated pieces fill together; "ha ha ha" is no fault."""
LONGEST_PIECE = 200
SHOWN = 60
"""Characters of an answer or a prompt that a finding quotes."""
NOTABLE_REPEATS = 0.1
"""Share of a suite's answers from which on their circles are spoken of."""


@dataclass(frozen=True, slots=True)
class Shortfall:
    """One thing that the run did not do: the finding, and what to do (None: the finding says it all)."""

    finding: Statement
    action: Statement | None = None


def shortfalls(run: RunContents, table: Table) -> list[Shortfall]:
    """All of them, the missed goals first."""
    found = [*_goals(table), *_too_few_prompts(table), *_circles(run)]
    for stage in run.stages:
        found += [*_still_falling(stage), *_few_held_out(stage, table)]
    return found


def goals_missed(table: Table) -> tuple[int, int]:
    """(how many goals the run ended below, how many it had)"""
    judged = [row for row in table.rows if row.meaning.goal is not None and row.last is not None]
    return sum(not _reached(row) for row in judged), len(judged)


# ---------------------------------------------------------------- what the recipe set out to do


def _reached(row: TableRow) -> bool:
    assert row.last is not None and row.meaning.goal is not None
    value, goal = row.last.score.value, row.meaning.goal
    return value <= goal if row.meaning.wanted is Direction.DOWN else value >= goal


def _goals(table: Table) -> Iterator[Shortfall]:
    for row in table.rows:
        goal, last = row.meaning.goal, row.last
        if goal is None or last is None:
            continue
        unit, down = row.meaning.unit, row.meaning.wanted is Direction.DOWN
        aim = f"at {'most' if down else 'least'} {number(goal, unit)}"
        spread = f"95 % interval {last.interval}" if last.interval else ""
        if _reached(row):
            yield Shortfall(Statement("good", f"{row.suite}: the goal of {aim} is reached with {last.value}.", spread))
            continue
        bound = last.score.low if down else last.score.high
        sure = bound is not None and (bound > goal if down else bound < goal)
        finding = Statement(
            "bad" if sure else "warn",
            f"{row.suite}: the goal of {aim} is missed with {last.value}.",
            spread if sure else f"{spread}; the goal lies within it: chance may have decided".lstrip("; "),
        )
        remedy = "Read the answers that fail, below; add rows for what they were asked, then raise `epochs`."
        yield Shortfall(finding, Statement(finding.kind, remedy, f"{row.suite}: goal missed"))


# ---------------------------------------------------------------- whether the figures can tell


def _too_few_prompts(table: Table) -> Iterator[Shortfall]:
    """Suites whose interval is too wide to read, and changes that more prompts would tell from chance."""
    said: set[str] = set()
    for row in table.rows:
        last = row.last
        if last is None or not row.meaning.primary or row.meaning.unit != "share" or row.suite in said:
            continue
        prompts, low, high = last.score.n, last.score.low, last.score.high
        if row.meaning.wanted not in (Direction.UP, Direction.DOWN) or not prompts or low is None or high is None:
            continue
        if (high - low) / 2 > WIDE:
            # From the middle: where so few prompts were asked, the share itself may be anywhere.
            needed = prompts_within(0.5, SURE)
            text = f"{row.suite}: {count(prompts)} prompts are too few: {last.value} may be {last.interval} of all."
            remedy = f"Ask {count(needed)} prompts for an interval of {100 * SURE:.0f} points to each side."
        elif (enough := _prompts_for(row)) is not None:
            needed, moved = enough
            text = (
                f"{row.suite}: {count(prompts)} prompts are too few to tell {difference(moved, 'share')} from chance."
            )
            remedy = f"Ask about {count(needed)} prompts: so many would show a change of this size."
        else:
            continue
        said.add(row.suite)
        yield Shortfall(Statement("warn", text), Statement("warn", remedy, f"{row.suite}: too few prompts"))


def _prompts_for(row: TableRow) -> tuple[int, float] | None:
    """(prompts that would show the change, the change), where there is one that is worth it and that is not clear."""
    first, last = row.cells[0], row.last
    assert last is not None and last.score.low is not None and last.score.high is not None and last.score.n
    if first is None or last.change is not Movement.UNCLEAR:
        return None
    moved = last.score.value - first.score.value
    if abs(moved) < SHIFT:
        return None
    # Of both figures' own intervals, as if their prompts were others each time: a bound from above.
    before = (first.score.high - first.score.low) / 2 if first.score.low is not None and first.score.high else 0.0
    half = math.hypot((last.score.high - last.score.low) / 2, before)
    needed = prompts_to_tell(moved, half, last.score.n)
    return None if needed is None else (_rounded(needed), moved)


def _rounded(prompts: int) -> int:
    """Two digits, upwards: more would promise a precision that the estimate has not."""
    step = 10 ** max(0, len(str(prompts)) - 2)
    return -(-prompts // step) * step


def _few_held_out(stage: Stage, table: Table) -> Iterator[Shortfall]:
    data = stage.about.data
    rows = data.held_out_rows if data is not None else None
    if rows is None or rows >= FEWEST_HELD_OUT or not stage.curves.get("train"):
        return
    # Where a suite asks enough prompts, that is where the result is read, and the held-out loss is a side light.
    measured = any(
        row.meaning.primary and row.last is not None and (row.last.score.n or 0) >= FEWEST_HELD_OUT
        for row in table.rows
    )
    few = f"{count(rows)} held-out row{'' if rows == 1 else 's'}" if rows else "no row is held out"
    text = (
        f"{stage.name}: {few}: the held-out figures are those of single rows."
        if rows
        else f"{stage.name}: {few}, so that nothing tells learning from learning by heart."
    )
    kind = "plain" if measured else "warn"
    kept = data.kept if data is not None else None
    share = FEWEST_HELD_OUT / kept if kept else None
    remedy = (
        f"Hold out at least {FEWEST_HELD_OUT} rows: `held_out: {math.ceil(100 * share) / 100:g}`."
        if share is not None and share <= 0.25
        else f"Write a suite of {FEWEST_HELD_OUT} prompts or more that do not train; of so few rows none can be spared."
    )
    yield Shortfall(
        Statement(kind, text),
        None if measured else Statement("warn", remedy, f"{stage.name}: {few}"),
    )


# ---------------------------------------------------------------- whether it was trained long enough


def _still_falling(stage: Stage) -> Iterator[Shortfall]:
    if is_online(stage) or stage.status != "done":  # an online loss says nothing
        return
    curve = stage.curves.get("train", {}).get("loss")
    held_out = stage.curves.get("held_out", {}).get("loss")
    part = falling_at_end(curve) if curve is not None else None
    # More steps would only learn the training rows by heart, if the held-out rows no longer gain by them.
    if part is None or (held_out is not None and not _falls(held_out)):
        return
    ends = head_and_tail(curve.values) if curve is not None else None
    assert ends is not None
    path = f"{number(ends[0])} → {number(ends[1])}"
    yield Shortfall(
        Statement(
            "warn",
            f"{stage.name}: the training loss was still falling at the end ({path}).",
            f"the last third of the steps brought {number(part, 'share')} of the whole fall",
        ),
        Statement(
            "warn", "Train longer: double `epochs`, or raise `learning_rate`.", f"{stage.name}: loss still falling"
        ),
    )


def falling_at_end(curve: Curve) -> float | None:
    """The share of the whole fall that the last third of the steps brought, if it is 15 % or more and no noise.

    The slope is Theil and Sen's, the median of the slopes of all pairs of steps, which single spikes do not move;
    whether it is noise says the test of Mann (1945) and Kendall, by the signs of the same pairs.
    """
    values = [value for value in curve.values if value is not None]
    last = values[len(values) - max(FEWEST_STEPS, round(len(values) * LAST_PART)) :]
    ends = head_and_tail(values)
    if len(values) < 2 * FEWEST_STEPS or ends is None or ends[0] <= ends[1]:
        return None
    # Long runs in pieces of equal length: a few hundred pairs decide as well as a million.
    last = _in_pieces(last, 60)
    slopes = [(last[j] - last[i]) / (j - i) for i in range(len(last)) for j in range(i + 1, len(last))]
    share = -median(slopes) * (len(last) - 1) / (ends[0] - ends[1])
    if share < STILL_FALLING or chance_of_fall(last) > CERTAIN:
        return None
    return min(1.0, share)


def _falls(curve: Curve) -> bool:
    """Whether the last measurement is the lowest."""
    values = [value for value in curve.values if value is not None]
    return len(values) < 2 or values[-1] <= min(values)


def _in_pieces(values: Sequence[float], most: int) -> list[float]:
    if len(values) <= most:
        return list(values)
    edges = [piece * len(values) // most for piece in range(most + 1)]
    return [sum(values[low:high]) / (high - low) for low, high in pairwise(edges)]


# ---------------------------------------------------------------- whether the answers go anywhere


def _circles(run: RunContents) -> Iterator[Shortfall]:
    """Suites whose last answers repeat themselves up to the limit."""
    asked = [evaluated for _, evaluated in run.measured[1:] if evaluated.answers]
    for suite, answers in asked[-1].answers.items() if asked else ():
        turning = [answer for answer in answers if circle_of(answer) is not None]
        if not turning or len(turning) / len(answers) < NOTABLE_REPEATS:
            continue
        share = number(len(turning) / len(answers), "share")
        yield Shortfall(
            Statement(
                "warn",
                f"{suite}: {count(len(turning))} of {count(len(answers))} answers ({share}) repeat themselves up "
                "to the limit.",
                f"“{_end_of(turning[0].completion)}”, asked “{_start_of(turning[0].prompt)}”",
            ),
            Statement(
                "warn",
                "Teach it to stop: rows whose answers end (`stop_token: train`), more epochs on them, or a lower "
                "`learning_rate` where the start did not repeat itself.",
                f"{suite}: answers in circles",
            ),
        )


def circle_of(answer: AnswerLine) -> str | None:
    """The piece of text that an answer repeats until it is cut: "the team of " of "... the team of the team of the".

    None for answers that end by themselves, or are cut in the middle of something new.
    """
    text = answer.completion.rstrip()
    if answer.finish != "length" or len(text) < SHORTEST_CIRCLE:
        return None
    for size in range(1, min(LONGEST_PIECE, len(text) // REPEATS) + 1):
        # Each character is the one a piece before it, as far back as the circle goes.
        reach = size
        while reach < len(text) and text[-1 - reach] == text[-1 - reach + size]:
            reach += 1
        if reach >= max(REPEATS * size, SHORTEST_CIRCLE):
            piece = text[-size:]
            # Dots and lines fill tables and blanks; a circle says something.
            return piece if re.search(r"\w", piece) else None
    return None


def _end_of(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= SHOWN else "…" + words[1 - SHOWN :]


def _start_of(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= SHOWN else words[: SHOWN - 1] + "…"
