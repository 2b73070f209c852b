"""What became of an online stage, with intervals and in words: the held-out score decides, not the reward."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from posttrain.intervals import Difference, from_error, paired_difference
from posttrain.report.numbers import count, difference, interval, number
from posttrain.report.statement import Statement
from posttrain.report.summaries import head_and_tail
from posttrain.runs.read import Stage
from posttrain.runs.records.evaluation import Figure

MOVED = 0.02
"""A mean reward that moved by less than this share of its spread did not move in words."""
SHOWN_CURVES = (
    ("kl_sequence_reference", "KL to the start (sequence, k1)", "", " nats a response"),
    ("length_sampled", "length", "", " tokens"),
    ("truncated_share", "cut at the limit", "share", ""),
    ("entropy_sampled", "entropy (sampled)", "", " nats a token"),
    ("zero_signal_share", "groups without a signal", "share", ""),
    ("duplicate_share", "duplicates", "share", ""),
)


@dataclass(frozen=True, slots=True)
class Learned:
    """The held-out score at three moments: Learned(0, Figure(0.31), 15, Figure(0.45), 30, Figure(0.43), ...)."""

    first_step: int
    first: Figure
    best_step: int
    best: Figure
    last_step: int
    last: Figure
    kept_step: int | None
    """Of the weights that the stage ended with, where it kept the best."""
    change: Difference | None
    """From the first examination to the weights that the stage ends with, over the same tasks."""
    unit: str
    """share, where every score lies within 0 and 1."""

    @property
    def ends_step(self) -> int:
        """The step of the weights that the stage ends with."""
        return self.kept_step if self.kept_step is not None else self.last_step


def learned(stage: Stage) -> Learned | None:
    """None without an examination."""
    scores = scored(stage)
    if not scores:
        return None
    kept = stage.about.best_step
    # The later of two equal ones, as the stage decides; the report must not name another step than the weights are of.
    best_step, best = max(scores, key=lambda pair: (pair[1].value, pair[0]))
    by_step = dict(scores)
    # What the stage kept counts, also where rounding makes another score as large.
    if kept is not None and kept in by_step:
        best_step, best = kept, by_step[kept]
    ends = best_step if kept is not None else scores[-1][0]
    return Learned(
        *(scores[0][0], scores[0][1], best_step, best, scores[-1][0], scores[-1][1]),
        kept_step=kept,
        change=_change(stage, scores[0][0], ends),
        unit=score_unit(stage),
    )


def scored(stage: Stage) -> list[tuple[int, Figure]]:
    """The held-out score by step; with its 95 % interval over tasks where the answers are on disk."""
    held_out = stage.curves.get("held_out", {})
    curve, error = held_out.get("score"), held_out.get("score_error")
    known: dict[int, Figure] = {}
    if curve is not None:
        errors = dict(zip(error.steps, error.values, strict=True)) if error is not None else {}
        for step, value in zip(curve.steps, curve.values, strict=True):
            reach = errors.get(step)
            if value is not None and reach:
                known[int(step)] = Figure(value, *from_error(value, reach))
            elif value is not None:
                known[int(step)] = Figure(value)
    for one in stage.sampled.examined if stage.sampled is not None else ():
        if one.scores:
            # Answers on disk replace what the curve says: with them the interval is a suite's, and no approximation.
            known[one.step] = Figure.of(one.score)
    return sorted(known.items())


def score_unit(stage: Stage) -> str:
    """share, where every answer's score lies within 0 and 1: a mean of such scores reads as per cent; else ""."""
    if stage.sampled is not None and stage.sampled.examined:
        single = [score for one in stage.sampled.examined for scores in one.scores.values() for score in scores]
        return "share" if single and min(single) >= 0 and max(single) <= 1 else ""
    held_out = stage.curves.get("held_out", {})
    return "share" if held_out.get("score") == held_out.get("solved_share") else ""


def _change(stage: Stage, first: int, last: int) -> Difference | None:
    """Over the tasks that both examinations asked; None if those are not on disk, or are the same one."""
    by_step = {one.step: one.by_task for one in stage.sampled.examined} if stage.sampled is not None else {}
    before, after = by_step.get(first, {}), by_step.get(last, {})
    # The same tasks on both sides: pairing removes what is merely hard about a task, and far fewer tasks show a change.
    both = [key for key in before if key in after]
    if first == last or not both:
        return None
    return paired_difference([before[key] for key in both], [after[key] for key in both])


# ---------------------------------------------------------------- in words


def online_findings(stage: Stage) -> Iterator[Statement]:
    """The lines of an online stage in the run's verdict."""
    found = learned(stage)
    if found is not None:
        yield _score_finding(stage, found)
        yield _weights(stage, found)
    else:
        yield Statement(
            "plain", f"{stage.name}: no held-out task was asked; the reward alone cannot tell learning from gaming."
        )
    yield from _reward(stage, found)


def _score_finding(stage: Stage, found: Learned) -> Statement:
    unit = found.unit
    path = [f"{number(found.first.value, unit)} at step {count(found.first_step)}"]
    if found.best_step not in (found.first_step, found.last_step):
        path.append(f"{number(found.best.value, unit)} at step {count(found.best_step)} (the best)")
    if found.last_step != found.first_step:
        path.append(f"{number(found.last.value, unit)} at step {count(found.last_step)}")
    text = f"{stage.name}: held-out score {' → '.join(path)}"
    if found.change is None:
        return Statement("plain", f"{text}.")
    low, high = (difference(bound, unit) for bound in (found.change.low, found.change.high))
    spread = f"{low.removesuffix(' points')} to {high}"
    kind, said = "plain", "no clear change"
    if found.change.clear:
        kind, said = ("good", "clearly better") if found.change.value > 0 else ("bad", "clearly worse")
    detail = (
        f"step {count(found.first_step)} to step {count(found.ends_step)} {difference(found.change.value, unit)} "
        f"(95 % interval {spread}) over the same {count(found.change.n)} tasks"
    )
    # The maximum of several noisy scores is above its own expectation; the interval does not know that it was chosen.
    chosen = found.kept_step is not None and found.kept_step != found.last_step
    return Statement(
        kind, f"{text}: {said}.", f"{detail}; the best of several flatters itself a little" if chosen else detail
    )


def _weights(stage: Stage, found: Learned) -> Statement:
    if found.kept_step is not None and found.kept_step == found.first_step < found.last_step:
        return _handed_back(stage, found)
    if found.kept_step is not None:
        return Statement(
            "plain", f"{stage.name}: ended with the weights of step {count(found.kept_step)}, its best examination."
        )
    if stage.status == "done":
        kind = "warn" if found.best.value > found.last.value else "plain"
        return Statement(kind, f"{stage.name}: ended with its last weights, not with those of its best examination.")
    return Statement(
        "plain", f"{stage.name}: not ended yet; its best examination so far is that of step {count(found.best_step)}."
    )


def _handed_back(stage: Stage, found: Learned) -> Statement:
    """Nothing that was trained is in the saved model."""
    text = f"{stage.name}: no examination was better than the start; the stage hands back the start's weights."
    if found.first.low is None:
        return Statement("warn", text)
    tasks = f" over {count(found.first.n)} tasks" if found.first.n else ""
    return Statement(
        "warn",
        text,
        f"the start's held-out score is {number(found.first.value, found.unit)} "
        f"(95 % interval {interval(found.first.low, found.first.high, found.unit)}{tasks}); "
        "with few tasks the start may be the best by luck: hold more out",
    )


def _reward(stage: Stage, found: Learned | None) -> Iterator[Statement]:
    """The reward's way, and whether it climbed while the held-out score fell."""
    train = stage.curves.get("train", {})
    ends = head_and_tail(train["reward"].values) if "reward" in train else None
    if ends is None:
        return
    spread = head_and_tail(train["reward_deviation"].values) if "reward_deviation" in train else None
    # By the spread among completions: rewards have any scale, so that no fixed size would do.
    noise = MOVED * (spread[0] if spread else 0.0)
    path = f"{stage.name}: mean reward {number(ends[0])} → {number(ends[1])}"
    rose = ends[1] - ends[0] > noise
    # Only a clear fall: that a score did not rise while the reward did has too many harmless reasons.
    if rose and found is not None and found.change is not None and found.change.clear and found.change.value < 0:
        yield Statement(
            "bad", f"{path}, while the held-out score fell.", "the reward is gamed, or the tasks are learnt by heart"
        )
        return
    yield Statement("plain", f"{path}{'' if rose else ': it did not rise'}.")


def _curves(stage: Stage) -> Iterator[str]:
    train = stage.curves.get("train", {})
    for name, title, unit, after in SHOWN_CURVES:
        ends = head_and_tail(train[name].values) if name in train else None
        if ends is not None and any(ends):
            yield f"{title} {number(ends[0], unit)} → {number(ends[1], unit)}{after}"


@dataclass(frozen=True, slots=True)
class Tile:
    """A figure at the head of the section: Tile("Best", "45.3 %", "34.6 to 56.5 %", "step 15", "good")."""

    title: str
    value: str
    interval: str
    note: str
    kind: str = "plain"


def tiles(stage: Stage) -> list[Tile]:
    """The held-out score at the start, at its best and at the end, and the change."""
    found = learned(stage)
    if found is None:
        return []
    unit = found.unit

    def tile(title: str, score: Figure, step: int, kind: str = "plain") -> Tile:
        kept = " · kept" if step == found.kept_step else ""
        return Tile(
            title, number(score.value, unit), interval(score.low, score.high, unit), f"step {count(step)}{kept}", kind
        )

    made = [tile("First", found.first, found.first_step)]
    if found.last_step != found.first_step:
        made.append(tile("Best", found.best, found.best_step))
        made.append(tile("Last", found.last, found.last_step))
    if found.change is not None:
        low, high = (difference(bound, unit).removesuffix(" points") for bound in (found.change.low, found.change.high))
        kind = "plain" if not found.change.clear else "good" if found.change.value > 0 else "bad"
        note = f"step {count(found.first_step)} to {count(found.ends_step)}, same {count(found.change.n)} tasks"
        made.append(Tile("Change", difference(found.change.value, unit), f"{low} to {high}", note, kind))
    return made


def said_of(stage: Stage) -> list[Statement]:
    """The stage's own lines, without its name before each, and what else moved."""
    start = f"{stage.name}: "
    found = [replace(one, text=_capital(one.text.removeprefix(start))) for one in online_findings(stage)]
    moved = list(_curves(stage))
    if moved:
        found.append(Statement("plain", f"{_capital('; '.join(moved))}.", "first tenth of the steps → last tenth"))
    return found


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
