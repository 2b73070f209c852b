"""Tables that verbs print."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence

from rich.table import Table
from rich.text import Text

from posttrain.report.verdict import RunVerdict
from posttrain.runs.folder import RunFolder
from posttrain.runs.layout import model_label
from posttrain.runs.meanings import meanings_in
from posttrain.runs.records.evaluation import Figure, PairedChanges, SuiteScores
from posttrain.runs.records.merging import MergeComparison, TaskVector
from posttrain.runs.records.reward import RewardEvaluation, StepEvaluation
from posttrain.runs.records.stage import HeldOutScore, StepScore

ALONE = ("match", "unwanted_match", "exact", "accuracy", "win_rate")
"""The one figure of their suite, which stands for it in a table."""
SHARES = (
    *ALONE,
    *("lc_win_rate", "order_agreement"),
    *("instructions", "arithmetic", "f1", "exact_match", "rouge_l", "rouge_lsum", "rouge_1", "rouge_2"),
)
"""Metrics that are shares of answers, shown in per cent."""
GENERAL = (
    "length",
    "cut_share",
    "empty_share",
    "distinct_1",
    "distinct_2",
    "reward",
    "abstained_share",
    "order_agreement",
)
"""Metrics of every suite that the report shows and the final table leaves out."""

_GRADES = {"bad": "bold red", "warn": "bold yellow"}
_PASS_AT_K = re.compile(r"pass_at_(\d+)")
_OF_STRATEGIES = re.compile(r"(oracle|majority)_at_\d+|(best|weighted)_of_\d+_.+|solved_by_.+")
"""Shares of prompts that a suite of kind budget measures."""


def final_table(
    evaluations: Mapping[str, SuiteScores],
    titles: Mapping[str, str] | None = None,
    shares: Collection[tuple[str, str]] = (),
) -> Table:
    """One row per figure, one column per stage, with 95 % intervals.

    Args:
        evaluations: {stage: figures of its suites}, as `RunFolder.evaluations` has it.
        titles: {stage: what its column is called}, where they are no stages of a training.
        shares: (suite, metric) of figures that are shares by what their suite says of them; see `shares_of`.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for stage in evaluations:
        title = "before" if stage == "start" else f"after {stage}"
        table.add_column(Text((titles or {}).get(stage, title)), justify="right")
    rows = dict.fromkeys(
        (suite, metric)
        for evaluation in evaluations.values()
        for suite, metrics in evaluation.suites.items()
        for metric in metrics
        if metric not in GENERAL
    )
    for suite, metric in rows:
        # Missing where a stage was not evaluated; its cell stays empty and the others keep their columns.
        entries = (evaluation.suites.get(suite, {}).get(metric) for evaluation in evaluations.values())
        is_share = (suite, metric) in shares
        table.add_row(_label(suite, metric), *(figure(entry, metric, is_share=is_share) for entry in entries))
    return table


def shares_of(run: RunFolder) -> set[tuple[str, str]]:
    """(suite, metric) of the figures that a kind with names of its own calls shares: {("tasks", "arc_easy_acc")}."""
    folders = [run.start, *run.stages()] if run.exists else []
    return {
        (suite, metric)
        for folder in folders
        for suite, metrics in meanings_in(folder).items()
        for metric, how in metrics.items()
        if how.unit == "share"
    }


def paired_lines(paired: PairedChanges) -> list[str]:
    """What the last stage changed on the same items, a line for each figure; then what each stage cost."""
    last = paired.changes[-1].stage if paired.changes else ""
    return [*(change.said for change in paired.changes if change.stage == last), *paired.cost.values()]


def _label(suite: str, metric: str) -> str:
    """identity, unrelated: perplexity change, sums pass@8"""
    if k := _PASS_AT_K.fullmatch(metric):
        return f"{suite} pass@{k[1]}"
    if metric == "lc_win_rate":
        return f"{suite}, at equal length"
    return suite if metric in ALONE else f"{suite}: {metric.replace('_', ' ')}"


MOST_FINDINGS = 3
"""Findings of the verdict under the tables; the report has all, with what to do about each."""


def verdict_lines(verdict: RunVerdict) -> Text:
    """The report's verdict in a few lines: its grade, its headline, and what is worst.

    A table of figures alone lets a run that taught the wrong thing look like any other to whoever never opens the page.
    """
    lines = Text(f"verdict {verdict.grade}: {verdict.headline}", style=_GRADES.get(verdict.kind, ""))
    worst = [finding for finding in verdict.found if finding.kind == verdict.kind and finding.kind in _GRADES]
    for finding in worst[:MOST_FINDINGS]:
        lines.append(f"\n        {finding.text}")
    if len(worst) > MOST_FINDINGS:
        lines.append(f"\n        and {len(worst) - MOST_FINDINGS} more, in the report")
    return lines


def reward_table(evaluations: Mapping[str, RewardEvaluation]) -> Table:
    """One row per reward model: the share of held-out pairs that it and an untrained head order rightly.

    Args:
        evaluations: {stage: reward_evaluation.json}, as `RunFolder.reward_evaluations` has it.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("held-out pairs ordered rightly", "untrained head", "trained"):
        table.add_column(title, justify="right" if table.columns else "left")
    for stage, record in evaluations.items():
        scored = (record.untrained or {}, record.trained)
        table.add_row(stage, *(figure(side.get("accuracy"), "accuracy") for side in scored))
    return table


def step_table(evaluations: Mapping[str, StepEvaluation]) -> Table:
    """One row per process reward model: the steps that it and an untrained head judge rightly, and the first errors.

    Args:
        evaluations: {stage: step_evaluation.json}, as `RunFolder.step_evaluations` has it.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("held-out steps", "judged right, untrained", "trained", "first error found, untrained", "trained"):
        table.add_column(title, justify="right" if table.columns else "left")
    for stage, record in evaluations.items():
        heads = (record.untrained or {}, record.trained)
        names = ("step_accuracy", "first_error_accuracy")
        table.add_row(stage, *(figure(head.get(name), "accuracy") for name in names for head in heads))
    return table


def held_out_table(scores: Mapping[str, HeldOutScore]) -> Table:
    """One row per stage that sampled: its score on held-out tasks at the start, at its best and at the end.

    Args:
        scores: {stage: its held-out score}, as `RunFolder.held_out_scores` has it.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("held-out score", "tasks", "start", "best", "last", "saved"):
        table.add_column(title, justify="right" if table.columns else "left")
    for stage, record in scores.items():
        moments = (record.start, record.best, record.last)
        bounds = [bound for score in moments for bound in (score.low, score.value, score.high)]
        share = all(bound is not None and 0 <= bound <= 1 for bound in bounds)
        cells = [f"{figure(score, 'accuracy' if share else 'score')} at step {score.step}" for score in moments]
        table.add_row(stage, f"{record.start.n}", *cells, f"step {record.kept.step}")
    return table


def figure(measured: Figure | StepScore | None, metric: str, *, is_share: bool = False) -> str:
    """97 % [91, 99] for shares, +4.2 % for changes, 12.3 [11.8, 12.9] for the rest; - where nothing was measured."""
    if measured is None or (value := measured.value) is None or not math.isfinite(value):
        return "-"
    low, high = measured.low, measured.high
    is_share = is_share or metric in SHARES or any(names.fullmatch(metric) for names in (_PASS_AT_K, _OF_STRATEGIES))
    if is_share or metric.endswith("_change"):
        text, sign, scale = "%", "+" if metric.endswith("_change") else "", 100
    else:
        text, sign, scale = "", "", 1
    digits = ".0f" if is_share else ".1f" if scale == 100 else ".3g"
    shown = f"{value * scale:{sign}{digits}}{' %' if text else ''}"
    if low is None or high is None or low == high:
        return shown
    return f"{shown} [{low * scale:{sign}{digits}}, {high * scale:{sign}{digits}}]"


def merge_table(compared: MergeComparison) -> Table:
    """One row per model: how far it is from the base, how much of it changed, and its angles to the others."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(f"over {model_label(compared.base or '')}")
    names = [vector.model for vector in compared.vectors]
    letters = [chr(ord("a") + index) for index in range(len(names))]
    for title in ("change", "of the base", "entries changed", *(f"cosine to {letter}" for letter in letters)):
        table.add_column(title, justify="right")
    rows = zip(letters, compared.vectors, compared.cosines, strict=True)
    for letter, vector, cosines in rows:
        table.add_row(Text(f"{letter}: {vector.model}"), *_vector_cells(vector, cosines))
    if compared.merged is not None:
        table.add_row("merged", *_vector_cells(compared.merged, compared.merged_cosines))
    return table


def _vector_cells(vector: TaskVector, cosines: Sequence[float | None]) -> list[str]:
    def said(value: float | None, form: str) -> str:
        return "-" if value is None else f"{value:{form}}"

    shares = [said(value, ".2%").replace("%", " %") for value in (vector.relative_norm, vector.changed)]
    return [said(vector.norm, ".4g"), *shares, *(said(value, ".2f") for value in cosines)]


def side_by_side(prompts: Sequence[str], models: Sequence[tuple[str, str]], columns: Sequence[Sequence[str]]) -> Table:
    """A prompt and each model's answer to it, one row per prompt.

    Args:
        models: (letter, name) of each column; the same model may stand in two.
    """
    table = Table(show_lines=True, header_style="bold", expand=True)
    table.add_column("prompt", ratio=2, overflow="fold")
    for letter, name in models:
        table.add_column(Text(f"{letter}: {name}"), ratio=3, overflow="fold")
    for prompt, *row in zip(prompts, *columns, strict=True):
        table.add_row(Text(prompt), *(Text(answer) for answer in row))
    return table
