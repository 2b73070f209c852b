"""The verdict: how the run ended, what moved, what went wrong, and what to do about it, in plain words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from posttrain.diagnostics.suite_metrics import Wanted
from posttrain.report.evaluation import Change, Table, TableRow
from posttrain.report.finding import Finding
from posttrain.report.numbers import count, duration, number, short_count
from posttrain.report.online_panels import is_online
from posttrain.report.online_verdict import online_findings
from posttrain.report.panels import AlarmGroup, group_alarms, sentence
from posttrain.report.summaries import head_and_tail
from posttrain.runs.read import Curve, Run, Stage
from posttrain.runs.tolerant import Files, as_list, as_mapping, as_number, as_text, numbers_of

MOST_MOVES = 8
AGAIN = "Give the same `posttrain run` command again"
KINDS = ("bad", "warn", "good", "plain")
"""The order in which findings are told."""
NOTABLE_LOSS = 0.05
"""A share of rows dropped or truncated from which on the verdict speaks of it."""
TOLD_CURVES = (
    ("loss", "loss", ""),
    ("reward_accuracy", "accuracy", "share"),
    ("reward_margin", "margin", ""),
    ("step_accuracy", "steps judged right", "share"),
)
OVERFIT = 0.05
"""Held-out loss this much above its minimum at the end is called overfitting."""
ORDER = {Change.WORSE: 0, Change.BETTER: 1, Change.MOVED: 2, Change.UNCLEAR: 3, Change.SAME: 4, Change.UNKNOWN: 5}


@dataclass(frozen=True, slots=True)
class Verdict:
    """Verdict("good", "Clean", "The run finished in 1 min 52 s: sft, then dpo.", [...], [...], [...])"""

    kind: str
    grade: str
    headline: str
    ran: list[Finding]
    """What was trained, a line per stage."""
    found: list[Finding]
    """What moved and what went wrong."""
    actions: list[Finding]


def verdict(run: Run, table: Table) -> Verdict:
    """Judge the whole run."""
    found = [*_movements(table), *_reach(run), *(finding for stage in run.stages for finding in _training(stage))]
    found += [finding for stage in run.stages for finding in _alarm_findings(stage)]
    actions = _actions(run, table)
    found.sort(key=lambda finding: KINDS.index(finding.kind))
    kind, grade = _grade(run, found, actions)
    if not actions and run.status == "done":
        actions = [Finding("good", "Nothing asks for action.")]
    elif not actions:
        actions = [Finding("warn", f"{AGAIN}: finished stages are kept.")]
    said = f"{headline(run)} {_tally(run, table)}".strip()
    return Verdict(kind, grade, said, [_what_ran(stage) for stage in run.stages], found, actions)


def _grade(run: Run, found: list[Finding], actions: list[Finding]) -> tuple[str, str]:
    if run.status == "failed" or any(stage.status == "failed" for stage in run.stages):
        return "bad", "failed"
    if run.status == "interrupted":
        return "warn", "interrupted"
    if run.status == "running":
        return "plain", "still running"
    if run.status != "done":
        return "warn", "incomplete"
    if any(finding.kind == "bad" for finding in found):
        return "bad", "needs attention"
    if actions or any(finding.kind == "warn" for finding in found):
        return "warn", "look closer"
    return "good", "clean"


def headline(run: Run) -> str:
    """How the run ended, in one sentence."""
    done = [stage.name for stage in run.stages if stage.status == "done"]
    if run.status == "done":
        took = f" in {duration(run.seconds)}" if run.seconds is not None else ""
        return f"The run finished{took}: {', then '.join(done) or 'no stage'}."
    stopped = next((stage for stage in run.stages if stage.status not in ("done", "planned")), None)
    before = f" {_enumeration(done)} {'was' if len(done) == 1 else 'were'} finished before." if done else ""
    if stopped is None:
        return f"No stage has run to its end.{before}" if not done else f"The run has not ended.{before}"
    where = f"in stage {stopped.name}{_at_step(stopped)}"
    if stopped.status == "failed" or run.status == "failed":
        return f"The run failed {where}.{before}"
    if stopped.status == "interrupted":
        return f"The run was interrupted {where}.{before}"
    if stopped.status == "running":
        return f"The run is {where}, still going on or killed without a word.{before}"
    return f"The run ended {where}, and did not say how.{before}"


def _tally(run: Run, table: Table) -> str:
    """What moved, counted: "2 of 4 measures are clearly better, none worse; 1 critical alarm"."""
    judged = [
        row.last.change
        for row in table.rows
        if row.last and row.meaning.primary and row.meaning.wanted is not Wanted.OPEN
    ]
    parts = []
    if judged:
        better, worse = judged.count(Change.BETTER), judged.count(Change.WORSE)
        parts.append(f"{better or 'None'} of {len(judged)} measures clearly better, {worse or 'none'} worse")
    groups = [group for stage in run.stages for group in group_alarms(stage)]
    critical = sum(group.severity == "critical" for group in groups)
    if groups:
        kind = f"{critical} critical" if critical else f"{len(groups)}"
        parts.append(f"{kind} alarm{'s' if (critical or len(groups)) > 1 else ''}")
    said = "; ".join(parts)
    return f"{said[:1].upper()}{said[1:]}." if said else ""


def _enumeration(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _at_step(stage: Stage) -> str:
    if stage.last_step is None:
        return " before its first step"
    total = as_number(stage.about.get("steps"))
    return f" at step {count(stage.last_step)}" + (f" of {count(total)}" if total else "")


def _what_ran(stage: Stage) -> Finding:
    if stage.status == "planned":
        return Finding("plain", f"{_called(stage)} was not started.")
    parts = []
    kept = as_number(stage.data.get("kept"))
    if kept is not None:
        parts.append(f"{count(kept)} rows")
    if stage.last_step:
        parts.append(f"{count(stage.last_step)} step{'s' if stage.last_step > 1 else ''}")
    parameters = as_mapping(stage.about.get("parameters"))
    total, trainable = as_number(parameters.get("total")), as_number(parameters.get("trainable"))
    if total and trainable is not None:
        share = "all" if trainable == total else f"{number(trainable / total, 'share')} of the"
        parts.append(f"{share} {short_count(total)} parameters trained")
    if stage.seconds is not None:
        parts.append(duration(stage.seconds))
    return Finding("plain", f"{_called(stage)}: {', '.join(parts) or stage.status}.")


def _called(stage: Stage) -> str:
    return stage.name if stage.method == stage.name else f"{stage.name} ({stage.method})"


# ---------------------------------------------------------------- what moved


def _movements(table: Table) -> list[Finding]:
    """What the suites are asked for, and what else became worse; at most eight, the worst first."""
    told = [row for row in table.rows if row.last is not None and row.telling]
    told.sort(key=lambda row: ORDER[row.last.change] if row.last else 9)
    return [_movement(row) for row in told[:MOST_MOVES]]


def _movement(row: TableRow) -> Finding:
    last, first = row.last, row.cells[0]
    assert last is not None
    name = f"{row.suite}: {row.meaning.title}"
    spread = f" (95 % interval {last.interval})" if last.interval else ""
    if row.meaning.wanted is Wanted.STILL:
        path = f"{name} {last.value}{spread}"
    elif first is None:
        path = f"{name} {last.value}{spread}; the start was not measured"
    else:
        path = f"{name} {first.value} → {last.value}{spread}"
    kinds = {Change.BETTER: "good", Change.WORSE: "bad", Change.MOVED: "plain", Change.UNCLEAR: "plain"}
    words = {
        Change.BETTER: "clearly better",
        Change.WORSE: "clearly worse",
        Change.MOVED: "clearly moved",
        Change.UNCLEAR: "no clear change",
        Change.SAME: "stayed" if row.meaning.wanted is Wanted.STILL else "unchanged",
        Change.UNKNOWN: "",
    }
    kind = kinds.get(last.change, "good" if row.meaning.wanted is Wanted.STILL else "plain")
    said = words[last.change]
    if row.meaning.wanted is Wanted.STILL and last.change is Change.WORSE:
        # How far a model may drift depends on what it was: a base model that learns to answer must leave where it was.
        kind, said = "warn", "beyond its limit"
    return Finding(kind, f"{path}{': ' + said if said else ''}.", last.why)


def _reach(run: Run) -> Iterator[Finding]:
    """What each stage did to pass@k, in the words of pass_at_k.json."""
    changes = as_list(Files(run.folder).record(run.folder / "pass_at_k.json").get("changes"))
    for one in map(as_mapping, changes):
        if said := as_text(one.get("said")):
            kind = "good" if one.get("verdict") == "widened" else "plain"
            yield Finding(kind, f"{as_text(one.get('suite'))}: {said}")


def _training(stage: Stage) -> Iterator[Finding]:
    """What the curves say: the loss, the held-out accuracy, overfitting, falling log-probs of the chosen answers."""
    if is_online(stage):  # its loss says nothing, and its pairs are its own
        yield from online_findings(stage)
        return
    train, held_out = stage.curves.get("train", {}), stage.curves.get("held_out", {})
    parts = []
    for name, title, unit in TOLD_CURVES:
        curve, split = (held_out.get(name), "held-out ") if name in held_out else (train.get(name), "")
        ends = head_and_tail(curve.values) if curve else None
        if ends:
            parts.append(f"{split}{title} {number(ends[0], unit)} → {number(ends[1], unit)}")
    if parts:
        yield Finding("plain", f"{stage.name}: {', '.join(parts)}.")
    turned = overfit(held_out.get("loss"))
    if turned:
        step, rise = turned
        yield Finding(
            "warn",
            f"{stage.name}: held-out loss was lowest at step {count(step)} and ended {number(rise, 'share')} higher.",
            "the last steps learned the training rows by heart",
        )
    chosen = held_out.get("logprob_chosen_change") or train.get("logprob_chosen_change")
    ends = head_and_tail(chosen.values) if chosen else None
    if ends and ends[1] < -1.0 and not any(alarm.get("name") == "likelihood_displacement" for alarm in stage.alarms):
        yield Finding(
            "plain",
            f"{stage.name}: the chosen answers, too, became less likely ({number(ends[1])} nats per answer).",
            "the margin grew because the rejected ones fell further",
        )


def overfit(curve: Curve | None) -> tuple[float, float] | None:
    """The step of the lowest held-out loss and the relative rise since, if that is more than 5 %."""
    if curve is None:
        return None
    known = [(value, step) for step, value in zip(curve.steps, curve.values, strict=True) if value is not None]
    if len(known) < 3:
        return None
    lowest, step = min(known)
    last = known[-1][0]
    return (step, last / lowest - 1) if lowest > 0 and last > lowest * (1 + OVERFIT) else None


def _alarm_findings(stage: Stage) -> Iterator[Finding]:
    for group in group_alarms(stage):
        kind = "bad" if group.severity == "critical" else "warn"
        yield Finding(kind, f"{stage.name}, alarm {alarm_name(group)} ({group.when}): {group.message}")


def alarm_name(group: AlarmGroup) -> str:
    return group.name.replace("_", " ")


# ---------------------------------------------------------------- what to do


def _actions(run: Run, table: Table) -> list[Finding]:
    actions: list[Finding] = []
    for stage in run.stages:
        actions += _stopped(stage)
        actions += [
            Finding(
                "bad" if group.severity == "critical" else "warn", group.remedy, f"{stage.name}: {alarm_name(group)}"
            )
            for group in group_alarms(stage)
            if group.remedy
        ]
        actions += _checks_to_mend(stage)
        actions += _lost_rows(stage)
        turned = overfit(stage.curves.get("held_out", {}).get("loss"))
        if turned:
            actions.append(
                Finding("warn", f"Stop near step {count(turned[0])}, or train for fewer epochs.", stage.name)
            )
    for row in table.rows:
        if row.last and row.last.change is Change.WORSE:
            text = (
                "If the model should keep what it was: lower the learning rate, train fewer steps, or raise beta."
                if row.meaning.wanted is Wanted.STILL
                else "Read its answers before and after, below, and see what became worse."
            )
            actions.append(Finding("warn", text, f"{row.suite}: {row.meaning.title}"))
    unique = {(action.text, action.detail): action for action in actions}
    return sorted(unique.values(), key=lambda action: KINDS.index(action.kind))


def _stopped(stage: Stage) -> Iterator[Finding]:
    if stage.error:
        yield Finding("bad", stage.error, f"why {stage.name} stopped")
    if stage.status in ("failed", "interrupted", "running"):
        last = stage.checkpoints[-1] if stage.checkpoints else ""
        resumes = f"goes on from {last}" if last else "begins again, for it has no checkpoint yet"
        again = f"If it was killed, {AGAIN[:1].lower()}{AGAIN[1:]}" if stage.status == "running" else AGAIN
        kind = "plain" if stage.status == "running" else "warn"
        yield Finding(kind, f"{again}: finished stages are kept, {stage.name} {resumes}.")


def _checks_to_mend(stage: Stage) -> Iterator[Finding]:
    for check in _checks(stage):
        remedy = sentence(as_text(check.get("remedy")))
        if check.get("status") in ("warn", "fail") and remedy:
            kind = "bad" if check["status"] == "fail" else "warn"
            yield Finding(kind, remedy, f"{stage.name}, check: {as_text(check.get('title') or check.get('name'))}")


def _checks(stage: Stage) -> list[dict[str, Any]]:
    return [as_mapping(check) for check in as_list(stage.preflight.get("checks"))]


def _lost_rows(stage: Stage) -> Iterator[Finding]:
    read = as_number(stage.data.get("read"))
    if not read:
        return
    said = any(check.get("name") == "data" and check.get("remedy") for check in _checks(stage))
    for what, consequence in (
        ("dropped", "were dropped; dropped.jsonl lists them"),
        ("truncated", "were cut short; a larger max_length keeps them whole"),
    ):
        reasons = numbers_of(stage.data.get(what))
        lost = sum(reasons.values())
        if lost / read >= NOTABLE_LOSS and not (said and what == "dropped"):
            main = max(reasons, key=lambda reason: reasons[reason]).replace("_", " ")
            yield Finding(
                "warn", f"{number(lost / read, 'share')} of the rows {consequence}.", f"{stage.name}: mostly {main}"
            )
