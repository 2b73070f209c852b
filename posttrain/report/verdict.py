"""The verdict: how the run ended, what moved, what went wrong, and what to do about it, in plain words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from posttrain.report.evaluation import Movement, Table, TableRow, final_table
from posttrain.report.lineage import lanes
from posttrain.report.numbers import count, duration, number, short_count
from posttrain.report.online_panels import is_online
from posttrain.report.online_verdict import online_findings
from posttrain.report.panels import AlarmGroup, group_alarms, sentence
from posttrain.report.purpose import Shortfall, goals_missed, shortfalls
from posttrain.report.statement import Statement
from posttrain.report.summaries import head_and_tail
from posttrain.report.text import moment
from posttrain.runs.read import SELECTING, Curve, RunContents, Stage, read_run
from posttrain.runs.records.evaluation import Direction
from posttrain.runs.records.preflight import CheckRecord

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
ORDER = {
    Movement.WORSE: 0,
    Movement.BETTER: 1,
    Movement.MOVED: 2,
    Movement.UNCLEAR: 3,
    Movement.SAME: 4,
    Movement.UNKNOWN: 5,
}


@dataclass(frozen=True, slots=True)
class RunVerdict:
    """RunVerdict("good", "Clean", "The run finished in 1 min 52 s: sft, then dpo.", [...], [...], [...])"""

    kind: str
    grade: str
    headline: str
    ran: list[Statement]
    """What was trained, a line per stage."""
    found: list[Statement]
    """What moved and what went wrong."""
    actions: list[Statement]


def verdict_of(run_dir: Path) -> RunVerdict:
    """The verdict of the run in this folder, as its report has it.

    Raises:
        SourceError: `run_dir` is no run folder.
    """
    run = read_run(run_dir)
    return verdict(run, final_table(run))


def verdict(run: RunContents, table: Table) -> RunVerdict:
    """Judge the whole run."""
    found = [
        *_movements(table),
        *_reach(run),
        *_selections(run),
        *_spent(run),
        *(finding for stage in run.stages for finding in _training(stage)),
    ]
    found += [finding for stage in run.stages for finding in _alarm_findings(stage)]
    # Figures of a run that broke off are not its result, so they fall short of nothing.
    short = shortfalls(run, table) if run.status == "done" else []
    found += [one.finding for one in short]
    actions = _actions(run, table, short)
    # Stable: within a kind the suites stay before the curves, and the curves before the alarms.
    found.sort(key=lambda finding: KINDS.index(finding.kind))
    kind, grade = _grade(run, found, actions)
    if not actions and run.status == "done":
        actions = [Statement("good", "Nothing asks for action.")]
    elif not actions:
        actions = [Statement("warn", f"{AGAIN}: finished stages are kept.")]
    said = f"{headline(run)} {_tally(run, table)}".strip()
    return RunVerdict(kind, grade, said, [_what_ran(stage) for stage in run.stages], found, actions)


def _grade(run: RunContents, found: list[Statement], actions: list[Statement]) -> tuple[str, str]:
    # How it ended goes before what it found: figures of a run that broke off are not its result.
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


def headline(run: RunContents) -> str:
    """How the run ended, in one sentence."""
    done = [stage.name for stage in run.stages if stage.status == "done"]
    if run.status == "done":
        took = f" in {duration(run.seconds)}" if run.seconds is not None else ""
        return f"The run finished{took}: {_order(run, done) or 'no stage'}."
    stopped = next((stage for stage in run.stages if stage.status not in ("done", "planned")), None)
    before = f" {_enumeration(done)} {'was' if len(done) == 1 else 'were'} finished before." if done else ""
    if stopped is None:
        return f"No stage has run to its end.{before}" if not done else f"The run has not ended.{before}"
    where = f"in stage {stopped.name}{_at_step(stopped)}"
    if stopped.status == "failed" or run.status == "failed":
        return f"The run failed {where}.{before}"
    if stopped.status == "interrupted":
        gone = f": the process is gone since {moment(run.gone_since)}" if run.gone_since else ""
        return f"The run was interrupted {where}{gone}.{before}"
    if stopped.status == "running":
        return f"The run is {where}, still going on or killed without a word.{before}"
    return f"The run ended {where}, and did not say how.{before}"


def _order(run: RunContents, done: list[str]) -> str:
    """What followed what: "sft, then dpo"; or, of stages that share a start, "a, b and c, each from embedded"."""
    lines = [
        (lane, names)
        for lane in lanes(run)
        if (names := [run.stages[place].name for place in lane.places if run.stages[place].name in done])
    ]
    origins = {lane.model or lane.origin for lane, _ in lines}
    if len(lines) < 2:
        return ", then ".join(done)
    if len(origins) == 1 and all(len(names) == 1 for _, names in lines):
        return f"{_enumeration([names[0] for _, names in lines])}, each from {origins.pop()}"
    return "; ".join(f"{', then '.join(names)} from {lane.model or lane.origin}" for lane, names in lines)


def _tally(run: RunContents, table: Table) -> str:
    """What moved, counted: "2 of 4 measures are clearly better, none worse; 1 critical alarm"."""
    judged = [
        row.last.change
        for row in table.rows
        if row.last and row.meaning.primary and row.meaning.wanted is not Direction.OPEN
    ]
    parts = []
    if judged:
        better, worse = judged.count(Movement.BETTER), judged.count(Movement.WORSE)
        parts.append(f"{better or 'None'} of {len(judged)} measures clearly better, {worse or 'none'} worse")
    missed, goals = goals_missed(table)
    if missed and run.status == "done":
        parts.append(f"{missed} of {goals} goals missed" if goals > 1 else "the goal is missed")
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
    total = stage.about.steps
    return f" at step {count(stage.last_step)}" + (f" of {count(total)}" if total else "")


def _what_ran(stage: Stage) -> Statement:
    if stage.status == "planned":
        return Statement("plain", f"{_called(stage)} was not started.")
    parts = []
    data, parameters = stage.about.data, stage.about.parameters
    if data is not None and data.kept is not None:
        parts.append(f"{count(data.kept)} rows")
    if stage.last_step:
        parts.append(f"{count(stage.last_step)} step{'s' if stage.last_step > 1 else ''}")
    if parameters is not None and parameters.total and (trainable := parameters.trainable) is not None:
        total = parameters.total
        share = "all" if trainable == total else f"{number(trainable / total, 'share')} of the"
        parts.append(f"{share} {short_count(total)} parameters trained")
    if stage.seconds is not None:
        parts.append(duration(stage.seconds))
    return Statement("plain", f"{_called(stage)}: {', '.join(parts) or stage.status}.")


def _called(stage: Stage) -> str:
    # Of a method that only says `custom`, the function is what somebody wants to see.
    called = [name for name in (stage.method, stage.about.objective) if name and name != stage.name]
    return f"{stage.name} ({', '.join(called)})" if called else stage.name


# ---------------------------------------------------------------- what moved


def _movements(table: Table) -> list[Statement]:
    """What the suites are asked for, and what else became worse; at most eight, the worst first."""
    told = [row for row in table.rows if row.last is not None and row.telling]
    told.sort(key=lambda row: ORDER[row.last.change] if row.last else 9)
    return [_movement(row) for row in told[:MOST_MOVES]]


def _movement(row: TableRow) -> Statement:
    last, first = row.last, row.cells[0]
    assert last is not None
    name = f"{row.suite}: {row.meaning.title}"
    spread = f" (95 % interval {last.interval})" if last.interval else ""
    if row.meaning.wanted is Direction.STILL:
        path = f"{name} {last.value}{spread}"
    elif first is None:
        path = f"{name} {last.value}{spread}; the start was not measured"
    else:
        path = f"{name} {first.value} → {last.value}{spread}"
    kinds = {Movement.BETTER: "good", Movement.WORSE: "bad", Movement.MOVED: "plain", Movement.UNCLEAR: "plain"}
    words = {
        Movement.BETTER: "clearly better",
        Movement.WORSE: "clearly worse",
        Movement.MOVED: "clearly moved",
        Movement.UNCLEAR: "no clear change",
        Movement.SAME: "stayed" if row.meaning.wanted is Direction.STILL else "unchanged",
        Movement.UNKNOWN: "",
    }
    kind = kinds.get(last.change, "good" if row.meaning.wanted is Direction.STILL else "plain")
    said = words[last.change]
    if row.meaning.wanted is Direction.STILL and last.change is Movement.WORSE:
        # How far a model may drift depends on what it was: a base model that learns to answer must leave where it was.
        kind, said = "warn", "beyond its limit"
    return Statement(kind, f"{path}{': ' + said if said else ''}.", last.why)


def _reach(run: RunContents) -> Iterator[Statement]:
    """What each stage did to pass@k, in the words of pass_at_k.json."""
    for change in run.pass_at_k:
        if change.said:
            yield Statement("good" if change.verdict == "widened" else "plain", f"{change.suite}: {change.said}")


def _selections(run: RunContents) -> Iterator[Statement]:
    """What each selection is worth against its random twin, in the words of twins.json."""
    kinds = {"gain": "good", "loss": "warn"}
    for comparison in run.twins:
        if not comparison.figures:
            yield Statement("warn", comparison.said)
        for figure in comparison.figures:
            yield Statement(kinds.get(figure.verdict, "plain"), f"{figure.said}.")


def _spent(run: RunContents) -> Iterator[Statement]:
    """Which strategy is best at the largest price, of the last model that each suite asked."""
    last = {suite: record for _, evaluated in run.measured for suite, record in evaluated.budgets.items()}
    for suite, record in last.items():
        # The first sentence is the answer; what else the curves say stands in their section.
        if record.findings and record.findings[0].said:
            found = record.findings[0]
            yield Statement("good" if found.kind == "good" else "plain", f"{suite}: {found.said}")


def _training(stage: Stage) -> Iterator[Statement]:
    """What the curves say: the loss, the held-out accuracy, overfitting, falling log-probs of the chosen answers."""
    if is_online(stage):  # its loss says nothing, and its pairs are its own
        yield from online_findings(stage)
        return
    train, held_out = stage.curves.get("train", {}), stage.curves.get("held_out", {})
    parts = []
    for name, title, unit in TOLD_CURVES:
        # Held-out first: what a model gained on its training rows it may have learned by heart.
        curve, split = (held_out.get(name), "held-out ") if name in held_out else (train.get(name), "")
        ends = head_and_tail(curve.values) if curve else None
        if ends:
            parts.append(f"{split}{title} {number(ends[0], unit)} → {number(ends[1], unit)}")
    if parts:
        yield Statement("plain", f"{stage.name}: {', '.join(parts)}.")
    turned = overfit(held_out.get("loss"))
    if turned:
        step, rise = turned
        yield Statement(
            "warn",
            f"{stage.name}: held-out loss was lowest at step {count(step)} and ended {number(rise, 'share')} higher.",
            "the last steps learned the training rows by heart",
        )
    chosen = held_out.get("logprob_chosen_change") or train.get("logprob_chosen_change")
    ends = head_and_tail(chosen.values) if chosen else None
    # A nat: the answer is 1/e as likely as it was, the size from which on the alarm of the same matter looks.
    if ends and ends[1] < -1.0 and not any(alarm.name == "likelihood_displacement" for alarm in stage.alarms):
        yield Statement(
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
    # Of equal losses the earliest: all steps after it were for nothing.
    lowest, step = min(known)
    last = known[-1][0]
    # A share of a loss that is 0 or negative means nothing.
    return (step, last / lowest - 1) if lowest > 0 and last > lowest * (1 + OVERFIT) else None


def _alarm_findings(stage: Stage) -> Iterator[Statement]:
    for group in group_alarms(stage):
        kind = "bad" if group.severity == "critical" else "warn"
        yield Statement(kind, f"{stage.name}, alarm {alarm_name(group)} ({group.when}): {group.message}")


def alarm_name(group: AlarmGroup) -> str:
    return group.name.replace("_", " ")


# ---------------------------------------------------------------- what to do


def _actions(run: RunContents, table: Table, short: Sequence[Shortfall]) -> list[Statement]:
    actions = [one.action for one in short if one.action is not None]
    for stage in run.stages:
        actions += _stopped(stage)
        actions += [
            Statement(
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
                Statement("warn", f"Stop near step {count(turned[0])}, or train for fewer epochs.", stage.name)
            )
    for row in table.rows:
        if row.last and row.last.change is Movement.WORSE:
            # Not every stage has a beta: an SFT stage's reader would look for a key that is refused.
            text = (
                "If the model should keep what it was: lower the learning rate, train fewer steps, or raise `beta`, "
                "where the method has one."
                if row.meaning.wanted is Direction.STILL
                else "Read its answers before and after, below, and see what became worse."
            )
            actions.append(Statement("warn", text, f"{row.suite}: {row.meaning.title}"))
    # Two alarms of one cause have one remedy, and a list that repeats itself is not read.
    unique = {(action.text, action.detail): action for action in actions}
    return sorted(unique.values(), key=lambda action: KINDS.index(action.kind))


def _stopped(stage: Stage) -> Iterator[Statement]:
    if stage.about.error:
        yield Statement("bad", stage.about.error, f"why {stage.name} stopped")
    if stage.status in ("failed", "interrupted", "running"):
        last = stage.checkpoints[-1] if stage.checkpoints else ""
        resumes = f"goes on from {last}" if last else "begins again, for it has no checkpoint yet"
        again = f"If it was killed, {AGAIN[:1].lower()}{AGAIN[1:]}" if stage.status == "running" else AGAIN
        kind = "plain" if stage.status == "running" else "warn"
        yield Statement(kind, f"{again}: finished stages are kept, {stage.name} {resumes}.")


def _checks_to_mend(stage: Stage) -> Iterator[Statement]:
    for check in _checks(stage):
        if check.status in ("warn", "fail") and check.remedy:
            kind = "bad" if check.status == "fail" else "warn"
            yield Statement(kind, sentence(check.remedy), f"{stage.name}, check: {check.title or check.name}")


def _checks(stage: Stage) -> Sequence[CheckRecord]:
    return stage.preflight.checks if stage.preflight is not None else ()


def _lost_rows(stage: Stage) -> Iterator[Statement]:
    data = stage.about.data
    # A selection is there to drop rows, and its own table says which.
    if data is None or not data.read or stage.method == SELECTING:
        return
    # A stage that asks for answers drops several for each prompt that it read: 27 of 15 prompts would be 180 %.
    made = data.prompts is not None
    total = max(data.read, (data.kept or 0) + sum(data.dropped.values())) if made else data.read
    longer = "; a larger `max_new_tokens` lets answers end" if "cut" in data.dropped else ""
    dropped = f"became no row; dropped.jsonl says why{longer}" if made else "were dropped; dropped.jsonl lists them"
    # The preflight's check of the data speaks of dropped rows with a better remedy; once is enough.
    said = any(check.name == "data" and check.remedy for check in _checks(stage))
    for reasons, consequence in (
        ({} if said else data.dropped, dropped),
        (data.truncated_by_reason, "were cut short; a larger max_length keeps them whole"),
    ):
        lost = sum(reasons.values())
        if lost / total >= NOTABLE_LOSS:
            main = max(reasons, key=lambda reason: reasons[reason]).replace("_", " ")
            yield Statement(
                "warn",
                f"{number(lost / total, 'share')} of {'what was asked for' if made else 'the rows'} {consequence}.",
                f"{stage.name}: mostly {main}",
            )
