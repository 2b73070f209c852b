"""Tables that verbs print."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

SHARES = ("match", "unwanted_match", "exact", "accuracy", "win_rate")
"""Metrics that are shares of answers, shown in per cent."""
GENERAL = ("length", "cut_share", "empty_share", "distinct_1", "distinct_2", "reward")
"""Metrics of every suite that the report shows and the final table leaves out."""


def final_table(evaluations: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float | None]]]]) -> Table:
    """One row per figure, one column per stage, with 95 % intervals.

    Args:
        evaluations: {stage: {suite: {metric: {"value", "low", "high", "n"}}}}, as `RunFolder.evaluations` has it.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for stage in evaluations:
        table.add_column("before" if stage == "start" else f"after {stage}", justify="right")
    rows = dict.fromkeys(
        (suite, metric)
        for evaluation in evaluations.values()
        for suite, metrics in evaluation.items()
        for metric in metrics
        if metric not in GENERAL
    )
    for suite, metric in rows:
        label = suite if metric in SHARES else f"{suite}: {metric.replace('_', ' ')}"
        table.add_row(label, *(figure(found.get(suite, {}).get(metric), metric) for found in evaluations.values()))
    return table


def reward_table(evaluations: Mapping[str, Mapping[str, Any]]) -> Table:
    """One row per reward model: the share of held-out pairs that it and an untrained head order rightly.

    Args:
        evaluations: {stage: reward_evaluation.json}, as `RunFolder.reward_evaluations` has it.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("held-out pairs ordered rightly", "untrained head", "trained"):
        table.add_column(title, justify="right" if table.columns else "left")
    for stage, record in evaluations.items():
        scored = (record.get(side) or {} for side in ("untrained", "trained"))
        table.add_row(stage, *(figure(side.get("accuracy"), "accuracy") for side in scored))
    return table


def figure(entry: Mapping[str, float | None] | None, metric: str) -> str:
    """97 % [91, 99] for shares, +4.2 % for changes, 12.3 [11.8, 12.9] for the rest; - where nothing was measured."""
    value = None if entry is None else entry.get("value")
    if entry is None or value is None or not math.isfinite(value):
        return "-"
    low, high = entry.get("low"), entry.get("high")
    if metric in SHARES or metric.endswith("_change"):
        text, sign, scale = "%", "+" if metric.endswith("_change") else "", 100
    else:
        text, sign, scale = "", "", 1
    digits = ".0f" if metric in SHARES else ".1f" if scale == 100 else ".3g"
    shown = f"{value * scale:{sign}{digits}}{' %' if text else ''}"
    if low is None or high is None or low == high:
        return shown
    return f"{shown} [{low * scale:{sign}{digits}}, {high * scale:{sign}{digits}}]"


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
