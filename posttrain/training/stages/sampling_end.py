"""What a stage that samples came to, once its last step is taken: its held-out score, and what nobody may overlook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from posttrain.intervals import Score
from posttrain.runs.folder import StageFolder
from posttrain.runs.records.logs import Alarm, MetricsLine
from posttrain.runs.records.stage import HeldOutScore, StepScore
from posttrain.runs.sampled import held_out_scores

FEW_TASKS = 30
"""Held-out tasks below which one answer more or less moves the score by more than most stages do."""


def conclude(folder: StageFolder) -> list[str]:
    """Write the held-out score at the start, at its best and at the end to stage.json, and what went wrong as a whole.

    Returns:
        Lines that have to be said at the end; they are `warnings` of stage.json too.
    """
    scores = held_out_scores(folder)
    train = folder.metrics("train")
    updates = sum(_is_update(line) for line in train)
    about = folder.stage()
    warnings = []
    if train and not updates:
        alarm = _no_update(train, about.no_update)
        if all(raised.name != alarm.name for raised in folder.alarms()):
            folder.append(alarm)
        warnings.append(f"{alarm.message}. {alarm.remedy}")
    if about.best_lost:
        warnings.append(about.best_lost)
    record = _record(scores, about.best_step)
    if record is not None and record.kept.step == 0 < (record.last.step or 0):
        warnings.append(_handed_back(record))
    folder.write_stage(updates=updates, held_out_score=record, warnings=tuple(warnings))
    return warnings


def _is_update(line: MetricsLine) -> bool:
    return line.values.get("loss") is not None


def _record(scores: Mapping[int, Score], kept: int | None) -> HeldOutScore | None:
    """kept: the step whose weights were saved, where they are not the last."""
    if not scores:
        return None
    steps = {"start": min(scores), "last": max(scores)}
    steps["best"] = max(scores, key=lambda step: (scores[step].value, step))
    steps["kept"] = kept if kept is not None and kept in scores else steps["last"]
    return HeldOutScore(**{moment: StepScore.of(step, scores[step]) for moment, step in steps.items()})


def _handed_back(record: HeldOutScore) -> str:
    start, last = record.start, record.last
    few = f"; {start.n:,} tasks are too few to tell: hold more out" if (start.n or 0) < FEW_TASKS else ""
    return (
        "no examination was better than the start: the stage hands back the start's weights. The held-out score was "
        f"{start.value:.3g} (95 % interval {start.low:.3g} to {start.high:.3g}) at step 0 and "
        f"{last.value:.3g} at step {last.step}{few}"
    )


def _no_update(train: Sequence[MetricsLine], last: str | None) -> Alarm:
    """last: why the last step without an update had none, as it was said then."""
    abstained = all(line.values.get("abstained_share") == 1 for line in train)
    cut = all(line.values.get("truncated_share") == 1 for line in train)
    why = "every reward abstained from every completion" if abstained else "no step had anything to learn from"
    if last and not abstained:
        why += f": {last}"
    if abstained:
        remedy = "name the column of the answers (`columns: {answer: YOUR_COLUMN}`), or look why the rewards are None"
    elif cut:
        remedy = "raise `sampling.max_new_tokens`, or write `truncated: keep`; no completion came to its end"
    else:
        remedy = (
            "take tasks that the policy solves now and then, sample more completions of each, or look whether the "
            "reward reads the answer at all"
        )
    return Alarm(
        name="no_update",
        severity="critical",
        step=train[-1].step,
        message=f"not one update was made in {len(train):,} steps, so the saved model is the start: {why}",
        evidence={"steps": len(train), "updates": 0},
        remedy=remedy,
    )
