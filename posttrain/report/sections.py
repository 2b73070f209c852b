"""The sections of the page as plain records, so that the templates only lay out: one a stage, one a suite's answers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from posttrain.report.charts import Chart
from posttrain.report.evaluation import aligned
from posttrain.report.numbers import MINUS, count, duration, number, short_count, size
from posttrain.report.panels import (
    AlarmGroup,
    curve_charts,
    evidence_items,
    group_alarms,
    pair_charts,
    sentence,
    smoothing,
)
from posttrain.report.read import Completion, Run, Stage
from posttrain.report.reward import RewardView, reward_view
from posttrain.report.tolerant import as_list, as_mapping, as_number, as_text, numbers_of

SHOWN_PROMPTS = 30
LONGEST_TEXT = 1_500
"""Characters of an answer or a row that the page carries; the files have the rest."""
WATCHED_ROWS = 6
FINISHES = {"length": "cut at the limit", "aborted": "aborted", "empty": "nothing said"}


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
    watched: list[Watched]
    written: list[tuple[str, str, str]]
    """(prompt, chosen, rejected) of rows that the stage made."""
    dropped: list[tuple[str, str, str, str]]
    """(row, reason, message, content)"""


def view(stage: Stage, index: int) -> StageView:
    alarms = group_alarms(stage)
    curves, more = curve_charts(stage, alarms)
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
        watched=_watched(stage),
        written=[_written(row) for row in stage.written],
        dropped=[_dropped(row) for row in stage.dropped],
    )


def shorten(text: str, longest: int = LONGEST_TEXT) -> str:
    """The beginning of a long text, which says how much is left out."""
    if len(text) <= longest:
        return text
    return f"{text[:longest]} … ({count(len(text) - longest)} more characters)"


def short_row(row: str) -> str:
    """Without the folders: short_row("/data/mine/pairs.jsonl, row 3") is "pairs.jsonl, row 3"."""
    return re.sub(r"^.*[/\\](?=[^/\\]+, row \d+$)", "", row)


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
    if tokens:
        yield "Tokens in the data", short_count(tokens)
        if trained is not None:
            yield "Trained tokens", f"{short_count(trained)} ({number(trained / tokens, 'share')})"
    stop_share = as_number(stage.data.get("stop_share"))
    if stop_share is not None:
        yield "Stop tokens among them", number(stop_share, "share")
    held_out = as_number(stage.data.get("held_out_rows"))
    if held_out is not None:
        yield "Held-out rows", count(held_out)
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


def moment(text: str) -> str:
    """An ISO time for reading: "2025-11-21T02:47:11.5+00:00" -> "2025-11-21 02:47 UTC"; other text as it is."""
    match = re.fullmatch(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d)(?::[\d.]+)?(Z|[+-]\d\d:?\d\d)?", text)
    if not match:
        return text
    zone = {"Z": " UTC", "+00:00": " UTC", None: ""}.get(match[3], f" {match[3]}")
    return f"{match[1]} {match[2]}{zone}"


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


# ---------------------------------------------------------------- answers before and after


@dataclass(frozen=True, slots=True)
class AnswerCell:
    """One model's answer; `change` is "up", "down" or "" against the start's score."""

    text: str
    score: str
    tokens: str
    finish: str
    """What is worth saying about its end; "" if it ended by itself."""
    change: str


@dataclass(frozen=True, slots=True)
class AnswerRow:
    """One prompt over all models; a cell is None where that model was not asked."""

    prompt: str
    wanted: str
    cells: list[AnswerCell | None]

    @property
    def moved(self) -> bool:
        return any(cell is not None and cell.change for cell in self.cells)


@dataclass(frozen=True, slots=True)
class AnswerSuite:
    """The first prompts of one suite."""

    name: str
    columns: list[str]
    rows: list[AnswerRow]
    total: int


def answer_suites(run: Run, order: list[str]) -> list[AnswerSuite]:
    """Answers to the same prompts side by side, start first; the suites in the `order` of the final table."""
    measured = [("start", run.start), *((stage.name, stage.evaluated) for stage in run.stages)]
    known = dict.fromkeys(suite for _, found in measured for suite in found.answers)
    # The answers of a perplexity suite are fixed: there is nothing to compare in their words.
    known = {suite: None for suite in known if not any("perplexity" in f.scores.get(suite, {}) for _, f in measured)}
    suites = [suite for suite in order if suite in known] + [suite for suite in known if suite not in order]
    return [
        _answer_suite(suite, [(name, found.answers.get(suite, [])) for name, found in measured]) for suite in suites
    ]


def _answer_suite(suite: str, answers: list[tuple[str, list[Completion]]]) -> AnswerSuite:
    known = [(name, aligned(given)) for name, given in answers if given]
    keys = list(dict.fromkeys(key for _, given in known for key in given))
    rows = []
    for key in keys[:SHOWN_PROMPTS]:
        found = [given.get(key) for _, given in known]
        start = found[0] if known[0][0] == "start" else None
        wanted = next((answer.answer for answer in found if answer and answer.answer), "")
        cells = [None if answer is None else _cell(answer, start) for answer in found]
        rows.append(AnswerRow(shorten(key[0]), shorten(wanted, 300), cells))
    return AnswerSuite(suite, [name for name, _ in known], rows, len(keys))


def _cell(answer: Completion, start: Completion | None) -> AnswerCell:
    change = ""
    if start is not None and start.score is not None and answer.score is not None and start.score != answer.score:
        change = "up" if answer.score > start.score else "down"
    return AnswerCell(
        text=shorten(answer.text),
        score="" if answer.score is None else f"{answer.score:g}".replace("-", MINUS),
        tokens="" if answer.tokens is None else count(answer.tokens),
        finish=FINISHES.get(answer.finish.lower(), ""),
        change=change,
    )
