"""What a stage that samples came to, once its last step is taken: its held-out score, and what nobody may overlook."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from posttrain.diagnostics.alarms import Alarm
from posttrain.intervals import Score, average
from posttrain.runs.files import read_jsonl
from posttrain.runs.folder import StageFolder
from posttrain.runs.sampled import Examined

FEW_TASKS = 30
"""Held-out tasks below which one answer more or less moves the score by more than most stages do."""


def conclude(folder: StageFolder) -> list[str]:
    """Write the held-out score at the start, at its best and at the end to stage.json, and what went wrong as a whole.

    Returns:
        Lines that have to be said at the end; they are `warnings` of stage.json too.
    """
    scores = held_out_scores(folder)
    train = folder.metrics("train")
    updates = sum(_is_update(line["values"]) for line in train)
    warnings = []
    if train and not updates:
        alarm = _no_update(train[-1]["step"], train, folder.stage().get("no_update"))
        if all(one["name"] != alarm.name for one in folder.alarms()):
            folder.append_alarm(alarm.record())
        warnings.append(f"{alarm.message}. {alarm.remedy}")
    about = folder.stage()
    if about.get("best_lost"):
        warnings.append(str(about["best_lost"]))
    record = _record(scores, about.get("best"))
    if record is not None and record["kept"]["step"] == 0 < record["last"]["step"]:
        warnings.append(_handed_back(record))
    folder.write_stage(updates=updates, held_out_score=record, warnings=warnings)
    return warnings


def held_out_scores(folder: StageFolder) -> dict[int, Score]:
    """The score of each examination with its 95 % interval over tasks, by step."""
    examined: dict[int, Examined] = {}
    for line in read_jsonl(folder.path / "examinations.jsonl"):
        if line["score"] is not None:
            one = examined.setdefault(int(line["step"]), Examined(int(line["step"])))
            one.scores.setdefault((line["row"], line["prompt"]), []).append(float(line["score"]))
    return {step: average(list(one.by_task.values())) for step, one in sorted(examined.items())}


def _is_update(values: Mapping[str, Any]) -> bool:
    loss = values.get("loss")
    return loss is not None and math.isfinite(loss)


def _record(scores: Mapping[int, Score], best: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """{"start": {"step", "value", "low", "high", "n"}, "best", "last", "kept"}; kept is what was saved."""
    if not scores:
        return None
    steps = {"start": min(scores), "last": max(scores)}
    steps["best"] = max(scores, key=lambda step: (scores[step].value, step))
    steps["kept"] = int(best["step"]) if best and int(best["step"]) in scores else steps["last"]
    return {
        name: {
            "step": steps[name],
            "value": (score := scores[steps[name]]).value,
            "low": score.low,
            "high": score.high,
            "n": score.n,
        }
        for name in ("start", "best", "last", "kept")
    }


def _handed_back(record: Mapping[str, Any]) -> str:
    start, last = record["start"], record["last"]
    few = f"; {start['n']:,} tasks are too few to tell: hold more out" if (start["n"] or 0) < FEW_TASKS else ""
    return (
        "no examination was better than the start: the stage hands back the start's weights. The held-out score was "
        f"{start['value']:.3g} (95 % interval {start['low']:.3g} to {start['high']:.3g}) at step 0 and "
        f"{last['value']:.3g} at step {last['step']}{few}"
    )


def _no_update(step: int, train: list[dict[str, Any]], last: str | None) -> Alarm:
    """last: why the last step without an update had none, as it was said then."""
    abstained = all(line["values"].get("abstained_share") == 1 for line in train)
    cut = all(line["values"].get("truncated_share") == 1 for line in train)
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
        step=step,
        message=f"not one update was made in {len(train):,} steps, so the saved model is the start: {why}",
        evidence={"steps": len(train), "updates": 0},
        remedy=remedy,
    )
