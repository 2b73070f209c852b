"""What lm-eval measured, as figures with intervals and a line for each document.

A metric that is the mean of its documents' scores gets the interval that such a mean has everywhere
(`posttrain.intervals`); a perplexity that of a ratio of sums; any other the normal approximation from lm-eval's own
standard error. Every line keeps what its document adds to each figure, so that two models are compared on the same
documents.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from posttrain.diagnostics.corpus_figures import corpus_score, formula_of
from posttrain.evaluate.asking import Figures
from posttrain.intervals import Score, average, from_error
from posttrain.runs.records.evaluation import GIVEN, AnswerLine, Direction, Meaning
from posttrain.runs.records.lm_eval import LmEvalResults, TaskFigure, TaskResult

CHOSEN = "chosen"
"""The `finish` of a line whose answer is the likeliest of the given choices."""
ANSWERED = "answered"


@dataclass(frozen=True, slots=True)
class Measured:
    """What one evaluation gave."""

    figures: Figures
    lines: list[AnswerLine]
    record: LmEvalResults


def measured(results: Mapping[str, Any], *, version: str, chat_template: bool, seed: int) -> Measured:
    """lm-eval's results in our words.

    Args:
        results: of `lm_eval.simple_evaluate`, with its samples.
        version: lm-eval's.
    """
    figures: Figures = {}
    lines: list[AnswerLine] = []
    tasks: dict[str, TaskResult] = {}
    for task, samples in results["samples"].items():
        known = _figures_of(task, results["results"].get(task, {}), results["higher_is_better"].get(task, {}))
        parts = _parts_by_document(task, samples)
        lines += _lines(task, samples, parts, next(iter(known), None))
        for name, figure in known.items():
            if figure.value is not None:
                figures[name] = _score(name, figure, [own[name] for own in parts.values() if name in own])
        counts = results["n-samples"][task]
        shots = results["n-shot"].get(task)
        tasks[task] = TaskResult(
            str(results["versions"].get(task, "")), shots, counts["effective"], counts["original"], known
        )
    groups = {
        name: figure
        for group, found in (results.get("groups") or {}).items()
        for name, figure in _figures_of(group, found, results["higher_is_better"].get(group, {})).items()
    }
    for name, figure in groups.items():
        if figure.value is not None:
            figures[name] = _score(name, figure, [])
    return Measured(figures, lines, LmEvalResults(version, chat_template, seed, tasks, groups))


def meanings(record: LmEvalResults) -> dict[str, Meaning]:
    """How the report calls the figures: with each task's version and number of examples."""
    found = {}
    for task, result in record.tasks.items():
        about = ", ".join(
            part
            for part in (
                f"version {result.version}" if result.version else "",
                f"{result.num_fewshot}-shot" if result.num_fewshot is not None else "",
            )
            if part
        )
        for name, figure in result.figures.items():
            found[name] = _meaning(task, figure, about)
    for name, figure in record.groups.items():
        found[name] = _meaning(name.removesuffix(f"_{figure.metric}"), figure, "group")
    return found


def figure_name(task: str, metric: str, of_filter: str) -> str:
    """figure_name("gsm8k", "exact_match", "strict-match") == "gsm8k_exact_match_strict-match"; the filter `none` is not
    named."""
    return f"{task}_{metric}" if of_filter == "none" else f"{task}_{metric}_{of_filter}"


# ---------------------------------------------------------------- figures


def _figures_of(task: str, found: Mapping[str, Any], better: Mapping[str, bool | None]) -> dict[str, TaskFigure]:
    """{"acc,none": 0.62, "acc_stderr,none": 0.03} as records."""
    figures = {}
    for key, value in found.items():
        metric, _, of_filter = key.partition(",")
        if not of_filter or metric.endswith("_stderr"):
            continue
        error = found.get(f"{metric}_stderr,{of_filter}")
        figures[figure_name(task, metric, of_filter)] = TaskFigure(
            metric, of_filter, _number(value), _number(error), better.get(metric)
        )
    return figures


def _score(name: str, figure: TaskFigure, parts: Sequence[tuple[float, ...]]) -> Score:
    assert figure.value is not None
    if parts and all(len(part) == 1 for part in parts):
        values = np.array([part[0] for part in parts])
        if math.isclose(float(values.mean()), figure.value, rel_tol=1e-9, abs_tol=1e-12):
            return average(values)
    elif parts and formula_of(name) is not None:
        of_sums = corpus_score(name, np.array(parts, dtype=float))
        if math.isclose(of_sums.value, figure.value, rel_tol=1e-9):
            return of_sums
    if figure.stderr is None:
        return Score(figure.value, figure.value, figure.value, len(parts))
    return Score(figure.value, *from_error(figure.value, figure.stderr), len(parts))


def _meaning(task: str, figure: TaskFigure, about: str) -> Meaning:
    wanted = {True: Direction.UP, False: Direction.DOWN}.get(figure.higher_is_better)  # type: ignore[arg-type]
    of_filter = "" if figure.filter == "none" else f", {figure.filter}"
    unit = "share" if figure.metric in SHARES else ""
    title = f"{task} {figure.metric}{of_filter}" + (f" ({about})" if about else "")
    return Meaning(title, unit, wanted or Direction.OPEN, primary=True)


SHARES = frozenset({"acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "f1", "em", "pass@1"})
"""Metrics of lm-eval that lie between 0 and 1."""


def _number(value: Any) -> float | None:
    """lm-eval writes N/A where it has no standard error."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


# ---------------------------------------------------------------- documents


def _parts_by_document(task: str, samples: Sequence[Mapping[str, Any]]) -> dict[int, dict[str, tuple[float, ...]]]:
    """{document: {figure: what it adds}}; a document stands in the samples once for each filter."""
    found: dict[int, dict[str, tuple[float, ...]]] = {}
    for sample in samples:
        own = found.setdefault(sample["doc_id"], {})
        for metric in sample["metrics"]:
            part = _part(sample[metric])
            if part is not None:
                own[figure_name(task, metric, sample["filter"])] = part
    return found


def _part(value: Any) -> tuple[float, ...] | None:
    if isinstance(value, bool | int | float | np.integer | np.floating):
        return (float(value),)
    # Of rolling likelihoods: (log-prob, words or bytes); nats are positive in our sums.
    if isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(one, int | float) for one in value):
        return (-float(value[0]), float(value[1]))
    return None


def _lines(
    task: str, samples: Sequence[Mapping[str, Any]], parts: Mapping[int, Mapping[str, tuple[float, ...]]], first: Any
) -> list[AnswerLine]:
    lines = {}
    for sample in sorted(samples, key=lambda one: one["doc_id"]):
        document = sample["doc_id"]
        if document not in lines:
            text, finish = _said(sample)
            score = parts[document].get(first, ())
            lines[document] = AnswerLine(
                # The document's number: two documents may ask the same words.
                prompt=f"{task} {document}: {sample['arguments'][0][0]}",
                completion=text,
                answer=str(sample["target"]),
                score=score[0] if len(score) == 1 else None,
                tokens=0,
                finish=finish,
                by_metric=parts[document],
            )
    return list(lines.values())


def _said(sample: Mapping[str, Any]) -> tuple[str, str]:
    """What the model answered: its text, or the likeliest choice; nothing where a text was scored."""
    responses, arguments = sample["resps"], sample["arguments"]
    first = responses[0][0]
    if isinstance(first, str):
        filtered = sample["filtered_resps"][0]
        return filtered if isinstance(filtered, str) else json.dumps(filtered, ensure_ascii=False), ANSWERED
    if isinstance(first, tuple | list) and len(arguments[0]) > 1:
        likeliest = max(range(len(responses)), key=lambda place: responses[place][0][0])
        return str(arguments[likeliest][1]), CHOSEN
    return "", GIVEN
