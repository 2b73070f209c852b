"""What tasks of lm-eval measured: evaluations/<suite>.lm_eval.json, beside the answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from posttrain.runs.records.base import Record


@dataclass(frozen=True, slots=True)
class TaskFigure(Record):
    """TaskFigure(metric="acc", filter="none", value=0.62, stderr=0.03, higher_is_better=True)"""

    metric: str
    filter: str
    """Of lm-eval: what became of an answer before the metric saw it."""
    value: float | None
    stderr: float | None
    """lm-eval's own, of one model alone."""
    higher_is_better: bool | None


@dataclass(frozen=True, slots=True)
class TaskResult(Record):
    """TaskResult(version="1.0", num_fewshot=5, documents=200, of_documents=2376, figures={"arc_easy_acc": ...})"""

    version: str
    num_fewshot: int | None
    documents: int | None
    """That were asked."""
    of_documents: int | None
    figures: Mapping[str, TaskFigure]
    """By the names of the suite's figures."""


@dataclass(frozen=True, slots=True)
class LmEvalResults(Record):
    """LmEvalResults(lm_eval="0.4.13", tasks={"arc_easy": TaskResult(...)}, groups={"mmlu_acc": TaskFigure(...)})"""

    lm_eval: str
    """Version of lm-eval."""
    chat_template: bool | None
    seed: int | None
    tasks: Mapping[str, TaskResult]
    groups: Mapping[str, TaskFigure]
    """Of groups that average their tasks, as they weigh them."""
