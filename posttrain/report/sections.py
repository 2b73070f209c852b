"""The sections of the page as plain records, so that the templates only lay out: one a stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from posttrain.report.charts import Chart
from posttrain.report.diversity import diversity_charts
from posttrain.report.merging import MergeView, merge_view
from posttrain.report.numbers import count, duration, number, short_count, size
from posttrain.report.online import OnlineView, online_view
from posttrain.report.online_panels import is_online
from posttrain.report.panels import (
    AlarmGroup,
    curve_charts,
    evidence_items,
    group_alarms,
    pair_charts,
    present,
    sentence,
    smoothing,
)
from posttrain.report.reward import RewardView, reward_view
from posttrain.report.reward_steps import StepsView, steps_view
from posttrain.report.selection import SelectionView, selection_view
from posttrain.report.sources import SourceRow, source_panels, source_rows
from posttrain.report.text import LONGEST_TEXT, moment, short_row, shorten
from posttrain.runs.read import Stage
from posttrain.runs.records.budget import SolutionLine
from posttrain.runs.records.logs import WatchedRow
from posttrain.runs.records.stage import DataCounts
from posttrain.runs.values import as_text

WATCHED_ROWS = 6


@dataclass(frozen=True, slots=True)
class Bar:
    """A labelled length: Bar("kept", "1 900 rows", 95.0, "accent", "95.0 %")."""

    label: str
    value: str
    percent: float
    colour: str = "accent"
    note: str = ""


@dataclass(frozen=True, slots=True)
class ShownCheck:
    """One preflight check as shown."""

    title: str
    status: str
    detail: str
    evidence: list[tuple[str, str]]
    remedy: str


@dataclass(frozen=True, slots=True)
class ShownRow:
    """A decoded row; `pieces` are (text, trained)."""

    row: str
    kind: str
    pieces: list[tuple[str, bool]]


@dataclass(frozen=True, slots=True)
class ShownMemory:
    """The preflight's estimate: its items, largest first, and one sentence."""

    bars: list[Bar]
    said: str
    fits: bool


@dataclass(frozen=True, slots=True)
class Watched:
    """A training row whose answers were looked at now and again: (role, text, [(step, log-prob)])."""

    row: str
    prompt: str
    responses: list[tuple[str, str, list[tuple[str, str]]]]


@dataclass(frozen=True, slots=True)
class StageView:
    """A stage as the page shows it."""

    stage: Stage
    anchor: str
    took: str
    facts: list[tuple[str, str]]
    arithmetic: str
    data: list[Bar]
    data_said: list[str]
    sources: list[SourceRow]
    """Of a mixture."""
    selection: SelectionView | None
    checks: list[ShownCheck]
    rows: list[ShownRow]
    memory: ShownMemory | None
    alarms: list[AlarmGroup]
    curves: list[Chart]
    more_curves: list[Chart]
    smoothing: int
    pairs: list[list[Chart]]
    diversity: list[Chart]
    """Of the prompts that it had a model write."""
    reward: RewardView | None
    steps: StepsView | None
    online: OnlineView | None
    merge: MergeView | None
    watched: list[Watched]
    written: list[tuple[str, str, str]]
    """(prompt, chosen, rejected) of rows that the stage made."""
    solved: list[tuple[str, str, str]]
    """Of a search: the prompt, the answer that was found, and what it took."""
    dropped: list[tuple[str, str, str, str]]
    """(row, reason, message, content)"""


def _took(stage: Stage) -> str:
    """The time of the stage; of one that another run of a sweep trained, whose time it was."""
    if (shared := stage.about.shared) is not None:
        return f"{duration(shared.seconds)}, in the run {shared.run}"
    return duration(stage.seconds) if stage.seconds is not None else ""


def view(stage: Stage, index: int) -> StageView:
    alarms = group_alarms(stage)
    online = online_view(stage, alarms)
    curves, more = (
        curve_charts(stage, alarms, source_panels(stage, present(stage))) if online is None else ([], online.more)
    )
    return StageView(
        stage=stage,
        anchor=f"stage-{index}",
        took=_took(stage),
        facts=list(_facts(stage)),
        arithmetic=stage.about.arithmetic or "",
        data=_data_bars(stage),
        data_said=list(_data_said(stage)),
        sources=source_rows(stage),
        selection=selection_view(stage),
        checks=list(_checks(stage)),
        rows=list(_shown_rows(stage)),
        memory=_memory(stage),
        alarms=alarms,
        curves=curves,
        more_curves=more,
        smoothing=smoothing(stage),
        # Its own section shows a reward model's pairs, with the untrained head beside them.
        pairs=[] if stage.reward is not None else pair_charts(stage),
        diversity=diversity_charts(stage),
        reward=reward_view(stage),
        steps=steps_view(stage),
        online=online,
        merge=merge_view(stage),
        watched=_watched(stage),
        written=[(shorten(row.prompt), shorten(row.chosen), shorten(row.rejected)) for row in stage.written],
        solved=[(shorten(line.prompt), shorten(line.answer), _tried(line)) for line in stage.solved],
        dropped=[
            (short_row(row.row), shorten(row.reason), shorten(row.message), shorten(as_text(row.content)))
            for row in stage.dropped
        ],
    )


# ---------------------------------------------------------------- what ran


def _facts(stage: Stage) -> Iterator[tuple[str, str]]:
    about, data = stage.about, stage.about.data or DataCounts.from_json({})
    if about.start_model is not None:
        yield "Started from", _within_run(about.model_name, stage)
    if (parameters := about.parameters) is not None and parameters.total:
        yield "Parameters", short_count(parameters.total)
        if (trainable := parameters.trainable) is not None:
            share = "all" if trainable == parameters.total else number(trainable / parameters.total, "share")
            yield "Trained", f"{short_count(trainable)} ({share})"
    steps, done = about.steps, stage.last_step
    if steps or done:
        yield "Steps", count(done or 0) if steps in (None, done) else f"{count(done or 0)} of {count(steps)}"
    if is_online(stage):  # it reads prompts, and trains on what it samples
        sampled = stage.sampled
        if sampled is not None and sampled.completions:
            yield "Completions sampled", count(sampled.completions)
    elif data.answers is not None:  # they were paid for, whether a row came of them or not
        if data.tokens:
            yield "Tokens sampled", short_count(data.tokens)
    elif data.tokens:
        yield "Tokens in the data", short_count(data.tokens)
        if (trained := data.trained_tokens) is not None:
            yield "Trained tokens", f"{short_count(trained)} ({number(trained / data.tokens, 'share')})"
    if data.stop_share is not None and not is_online(stage):
        yield "Stop tokens among them", number(data.stop_share, "share")
    if data.held_out_rows is not None:
        yield "Held-out tasks" if is_online(stage) else "Held-out rows", count(data.held_out_rows)
    if about.seed is not None:
        yield "Seed", str(about.seed)
    if about.split_seed is not None:
        yield "Seed of the held-out split", str(about.split_seed)
    if about.reference:
        yield "Reference", about.reference.replace("_", " ")
    if about.logprobs:
        yield "Log-prob path", about.logprobs.replace("_", " ")
    if about.started:
        yield "Began", moment(about.started)


def _within_run(name: str, stage: Stage) -> str:
    """A model of this run without the way to the run: "/data/runs/mine/sft/model" is "sft/model"."""
    run = stage.folder.parent
    for beginning in (run.as_posix(), run.resolve().as_posix()):
        if name.startswith(f"{beginning}/"):
            return name.removeprefix(f"{beginning}/")
    return name


def _data_bars(stage: Stage) -> list[Bar]:
    """What became of the rows that were read."""
    data = stage.about.data
    if data is None or (kept := data.kept) is None:
        return []
    # The larger of the two: counts of a torn or foreign file need not add up, and no bar may pass 100 %.
    total = max(data.read or 0, kept + sum(data.dropped.values()), 1)
    parts = [("kept", kept, "accent"), *((reason, rows, "bad") for reason, rows in _largest_first(data.dropped))]
    return [
        Bar(label.replace("_", " "), count(rows), 100 * rows / total, colour, number(rows / total, "share"))
        for label, rows, colour in parts
        if rows or label == "kept"
    ]


def _tried(line: SolutionLine) -> str:
    """best_of_n: 16 pieces, 1 520 tokens, done"""
    return f"{line.strategy}: {count(len(line.nodes))} pieces, {count(line.sampled)} tokens, {line.stopped}"


def _data_said(stage: Stage) -> Iterator[str]:
    data = stage.about.data
    if data is None:
        return
    truncated, read = data.truncated_by_reason, data.read
    if data.answers is not None:
        yield f"{count(data.answers)} answers to {count(data.prompts)} prompts were sampled."
        if data.truncated_answers is not None:
            yield f"{count(data.truncated_answers)} of the rejected ones were cut at the limit."
    elif read is not None:
        yield f"{count(read)} rows were read."
    if data.prompts is not None:  # of a stage that made rows: what it said of them when it ended
        yield from (sentence(note) for note in data.notes)
    cut = sum(truncated.values())
    if cut:
        reasons = ", ".join(f"{reason.replace('_', ' ')} {count(rows)}" for reason, rows in _largest_first(truncated))
        share = f" ({number(cut / read, 'share')})" if read else ""
        yield f"{count(cut)} were cut short{share}: {reasons}."
    elif data.answers is None:
        yield "None was cut short."
    if data.findings:
        listed = ", ".join(f"{name.replace('_', ' ')} {count(rows)}" for name, rows in _largest_first(data.findings))
        yield f"Also noticed: {listed}."


def _largest_first(reasons: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(reasons.items(), key=lambda item: -item[1])


# ---------------------------------------------------------------- preflight


def _checks(stage: Stage) -> Iterator[ShownCheck]:
    for check in stage.preflight.checks if stage.preflight is not None else ():
        yield ShownCheck(
            title=sentence(check.title or check.name.replace("_", " ")),
            # A status that is not known here is worth a look; to show it as passed would be a guess.
            status=check.status if check.status in ("pass", "warn", "fail") else "warn",
            detail=check.detail,
            evidence=[(key, shorten(value, 300)) for key, value in evidence_items(check.evidence)],
            remedy=sentence(check.remedy or ""),
        )


def _shown_rows(stage: Stage) -> Iterator[ShownRow]:
    for row in stage.preflight.rows if stage.preflight is not None else ():
        pieces = []
        # One budget for the whole row: cut piece by piece, a long conversation would still fill the page.
        room = 3 * LONGEST_TEXT
        for piece in row.pieces:
            pieces.append((shorten(piece.text, room) if room > 0 else "", piece.trained is True))
            room -= len(piece.text)
        yield ShownRow(short_row(row.row), row.kind, [piece for piece in pieces if piece[0]])


def _memory(stage: Stage) -> ShownMemory | None:
    record = stage.preflight.memory if stage.preflight is not None else None
    if record is None or not record.items:
        return None
    items = {item.name: float(item.bytes or 0) for item in record.items}
    total = record.total_bytes or sum(items.values())
    available = record.available_bytes
    largest = max([*items.values(), 1.0])
    bars = [
        Bar(name, size(needed), 100 * needed / largest, "accent", number(needed / total, "share") if total else "")
        for name, needed in _largest_first(items)
    ]
    if not available:
        return ShownMemory(bars, f"About {size(total)} in all; what the machine has is not known.", True)
    fits = total <= available
    said = f"About {size(total)} of the {size(available)} that were free ({number(total / available, 'share')})."
    return ShownMemory(bars, said if fits else f"{said} It does not fit.", fits)


# ---------------------------------------------------------------- rows of text


def _watched(stage: Stage) -> list[Watched]:
    """Rows of samples.jsonl with the log-prob of each answer over the steps; those seen most often, in their order."""
    by_row: dict[str, list[WatchedRow]] = {}
    for sample in stage.samples:
        by_row.setdefault(sample.row, []).append(sample)
    # The rows that were looked at most: what they show is a course, and a row that was seen once has none.
    often = sorted(by_row, key=lambda row: -len(by_row[row]))[:WATCHED_ROWS]
    return [_watched_row(row, samples) for row, samples in by_row.items() if row in often]


def _watched_row(row: str, samples: list[WatchedRow]) -> Watched:
    texts: dict[str, str] = {}
    logprobs: dict[str, list[tuple[str, str]]] = {}
    for sample in samples:
        for response in sample.responses:
            role = response.role or "answer"
            texts[role] = shorten(response.text)
            if (value := response.shown) is not None:
                logprobs.setdefault(role, []).append((count(sample.step), number(value)))
    responses = [(role, text, _ends(logprobs.get(role, []))) for role, text in texts.items()]
    return Watched(short_row(row), shorten(samples[0].prompt), responses)


def _ends(values: list[tuple[str, str]], most: int = 6) -> list[tuple[str, str]]:
    """At most `most` values, evenly taken, the first and the last among them."""
    if len(values) <= most:
        return values
    return [values[round(index * (len(values) - 1) / (most - 1))] for index in range(most)]
