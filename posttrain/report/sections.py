"""The sections of the page as plain records, so that the templates only lay out: one a stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from posttrain.report.charts import Chart
from posttrain.report.numbers import count, duration, number, short_count, size
from posttrain.report.online import OnlineView, online_view
from posttrain.report.online_panels import is_online
from posttrain.report.panels import (
    AlarmGroup,
    curve_charts,
    evidence_items,
    group_alarms,
    pair_charts,
    sentence,
    smoothing,
)
from posttrain.report.reward import RewardView, reward_view
from posttrain.report.reward_steps import StepsView, steps_view
from posttrain.report.text import LONGEST_TEXT, moment, short_row, shorten
from posttrain.runs.read import Stage
from posttrain.runs.tolerant import as_list, as_mapping, as_number, as_text, numbers_of

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
class Check:
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
class Memory:
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
    checks: list[Check]
    rows: list[ShownRow]
    memory: Memory | None
    alarms: list[AlarmGroup]
    curves: list[Chart]
    more_curves: list[Chart]
    smoothing: int
    pairs: list[list[Chart]]
    reward: RewardView | None
    steps: StepsView | None
    online: OnlineView | None
    watched: list[Watched]
    written: list[tuple[str, str, str]]
    """(prompt, chosen, rejected) of rows that the stage made."""
    dropped: list[tuple[str, str, str, str]]
    """(row, reason, message, content)"""


def view(stage: Stage, index: int) -> StageView:
    alarms = group_alarms(stage)
    online = online_view(stage, alarms)
    curves, more = curve_charts(stage, alarms) if online is None else ([], online.more)
    return StageView(
        stage=stage,
        anchor=f"stage-{index}",
        took=duration(stage.seconds) if stage.seconds is not None else "",
        facts=list(_facts(stage)),
        arithmetic=as_text(stage.about.get("arithmetic")),
        data=_data_bars(stage),
        data_said=list(_data_said(stage)),
        checks=list(_checks(stage)),
        rows=list(_shown_rows(stage)),
        memory=_memory(stage),
        alarms=alarms,
        curves=curves,
        more_curves=more,
        smoothing=smoothing(stage),
        pairs=[] if stage.reward else pair_charts(stage),
        reward=reward_view(stage),
        steps=steps_view(stage),
        online=online,
        watched=_watched(stage),
        written=[_written(row) for row in stage.written],
        dropped=[_dropped(row) for row in stage.dropped],
    )


# ---------------------------------------------------------------- what ran


def _facts(stage: Stage) -> Iterator[tuple[str, str]]:
    model = as_mapping(stage.about.get("start_model"))
    if model:
        yield "Started from", _within_run(as_text(model.get("name")) or as_text(model.get("path")), stage)
    parameters = as_mapping(stage.about.get("parameters"))
    total, trainable = as_number(parameters.get("total")), as_number(parameters.get("trainable"))
    if total:
        yield "Parameters", short_count(total)
        if trainable is not None:
            share = "all" if trainable == total else number(trainable / total, "share")
            yield "Trained", f"{short_count(trainable)} ({share})"
    steps = as_number(stage.about.get("steps"))
    done = stage.last_step
    if steps or done:
        yield "Steps", count(done or 0) if steps in (None, done) else f"{count(done or 0)} of {count(steps)}"
    tokens, trained = as_number(stage.data.get("tokens")), as_number(stage.data.get("trained_tokens"))
    if is_online(stage):  # it reads prompts, and trains on what it samples
        sampled = stage.sampled
        if sampled is not None and sampled.completions:
            yield "Completions sampled", count(sampled.completions)
    elif tokens:
        yield "Tokens in the data", short_count(tokens)
        if trained is not None:
            yield "Trained tokens", f"{short_count(trained)} ({number(trained / tokens, 'share')})"
    stop_share = as_number(stage.data.get("stop_share"))
    if stop_share is not None and not is_online(stage):
        yield "Stop tokens among them", number(stop_share, "share")
    held_out = as_number(stage.data.get("held_out_rows"))
    if held_out is not None:
        yield "Held-out tasks" if is_online(stage) else "Held-out rows", count(held_out)
    for key, title in (("reference", "Reference"), ("logprobs", "Log-prob path"), ("started", "Began")):
        said = as_text(stage.about.get(key))
        if said:
            yield title, moment(said) if key == "started" else said.replace("_", " ")


def _within_run(name: str, stage: Stage) -> str:
    """A model of this run without the way to the run: "/data/runs/mine/sft/model" is "sft/model"."""
    run = stage.folder.parent
    for beginning in (run.as_posix(), run.resolve().as_posix()):
        if name.startswith(f"{beginning}/"):
            return name.removeprefix(f"{beginning}/")
    return name


def _data_bars(stage: Stage) -> list[Bar]:
    """What became of the rows that were read."""
    kept = as_number(stage.data.get("kept"))
    dropped = numbers_of(stage.data.get("dropped"))
    if kept is None:
        return []
    total = max(as_number(stage.data.get("read")) or 0, kept + sum(dropped.values()), 1)
    parts = [("kept", kept, "accent"), *((reason, rows, "bad") for reason, rows in _largest_first(dropped))]
    return [
        Bar(label.replace("_", " "), count(rows), 100 * rows / total, colour, number(rows / total, "share"))
        for label, rows, colour in parts
        if rows or label == "kept"
    ]


def _data_said(stage: Stage) -> Iterator[str]:
    read, answers = as_number(stage.data.get("read")), as_number(stage.data.get("answers"))
    truncated = numbers_of(stage.data.get("truncated"))
    if answers is not None:
        yield f"{count(answers)} answers to {count(as_number(stage.data.get('prompts')))} prompts were sampled."
        yield f"{count(as_number(stage.data.get('truncated')))} of the rejected ones were cut at the limit."
    elif read is not None:
        yield f"{count(read)} rows were read."
    cut = sum(truncated.values())
    if cut:
        reasons = ", ".join(f"{reason.replace('_', ' ')} {count(rows)}" for reason, rows in _largest_first(truncated))
        share = f" ({number(cut / read, 'share')})" if read else ""
        yield f"{count(cut)} were cut short{share}: {reasons}."
    elif stage.data and answers is None:
        yield "None was cut short."
    findings = numbers_of(stage.data.get("findings"))
    if findings:
        listed = ", ".join(f"{name.replace('_', ' ')} {count(rows)}" for name, rows in _largest_first(findings))
        yield f"Also noticed: {listed}."


def _largest_first(reasons: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(reasons.items(), key=lambda item: -item[1])


# ---------------------------------------------------------------- preflight


def _checks(stage: Stage) -> Iterator[Check]:
    for check in map(as_mapping, as_list(stage.preflight.get("checks"))):
        status = as_text(check.get("status"))
        yield Check(
            title=sentence(as_text(check.get("title")) or as_text(check.get("name")).replace("_", " ")),
            status=status if status in ("pass", "warn", "fail") else "warn",
            detail=as_text(check.get("detail")),
            evidence=[(key, shorten(value, 300)) for key, value in evidence_items(check.get("evidence"))],
            remedy=sentence(as_text(check.get("remedy"))),
        )


def _shown_rows(stage: Stage) -> Iterator[ShownRow]:
    for row in map(as_mapping, as_list(stage.preflight.get("rows"))):
        pieces = []
        room = 3 * LONGEST_TEXT
        for piece in map(as_mapping, as_list(row.get("pieces"))):
            text = as_text(piece.get("text"))
            pieces.append((shorten(text, room) if room > 0 else "", piece.get("trained") is True))
            room -= len(text)
        yield ShownRow(
            short_row(as_text(row.get("row"))), as_text(row.get("kind")), [piece for piece in pieces if piece[0]]
        )


def _memory(stage: Stage) -> Memory | None:
    record = as_mapping(stage.preflight.get("memory"))
    items = {
        as_text(item.get("name")): as_number(item.get("bytes")) or 0.0
        for item in map(as_mapping, as_list(record.get("items")))
    }
    if not items:
        return None
    total = as_number(record.get("total_bytes")) or sum(items.values())
    available = as_number(record.get("available_bytes"))
    largest = max([*items.values(), 1.0])
    bars = [
        Bar(name, size(needed), 100 * needed / largest, "accent", number(needed / total, "share") if total else "")
        for name, needed in _largest_first(items)
    ]
    if not available:
        return Memory(bars, f"About {size(total)} in all; what the machine has is not known.", True)
    fits = total <= available
    said = f"About {size(total)} of the {size(available)} that were free ({number(total / available, 'share')})."
    return Memory(bars, said if fits else f"{said} It does not fit.", fits)


# ---------------------------------------------------------------- rows of text


def _watched(stage: Stage) -> list[Watched]:
    """Rows of samples.jsonl with the log-prob of each answer over the steps; those seen most often, in their order."""
    by_row: dict[str, list[dict[str, Any]]] = {}
    for sample in stage.samples:
        by_row.setdefault(as_text(sample.get("row")), []).append(sample)
    often = sorted(by_row, key=lambda row: -len(by_row[row]))[:WATCHED_ROWS]
    return [_watched_row(row, samples) for row, samples in by_row.items() if row in often]


def _watched_row(row: str, samples: list[dict[str, Any]]) -> Watched:
    texts: dict[str, str] = {}
    logprobs: dict[str, list[tuple[str, str]]] = {}
    for sample in samples:
        for response in map(as_mapping, as_list(sample.get("responses"))):
            role = as_text(response.get("role")) or "answer"
            texts[role] = shorten(as_text(response.get("text")))
            value = as_number(response.get("reward" if "reward" in response else "logprob"))
            if value is not None:
                logprobs.setdefault(role, []).append((count(as_number(sample.get("step"))), number(value)))
    responses = [(role, text, _ends(logprobs.get(role, []))) for role, text in texts.items()]
    return Watched(short_row(row), shorten(as_text(samples[0].get("prompt"))), responses)


def _ends(values: list[tuple[str, str]], most: int = 6) -> list[tuple[str, str]]:
    """At most `most` values, evenly taken, the first and the last among them."""
    if len(values) <= most:
        return values
    return [values[round(index * (len(values) - 1) / (most - 1))] for index in range(most)]


def _written(row: Mapping[str, Any]) -> tuple[str, str, str]:
    prompt, chosen, rejected = (shorten(as_text(row.get(key))) for key in ("prompt", "chosen", "rejected"))
    return prompt, chosen, rejected


def _dropped(row: Mapping[str, Any]) -> tuple[str, str, str, str]:
    reason, message, content = (shorten(as_text(row.get(key))) for key in ("reason", "message", "content"))
    return short_row(as_text(row.get("row"))), reason, message, content
