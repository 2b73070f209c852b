"""The record of a kind of suite: what the runner has to know of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.evaluate.asking import Suite
from posttrain.runs.progress import Progress
from posttrain.runs.records.evaluation import Figure, Meaning
from posttrain.sampling import SamplingDistribution
from posttrain.types import Example

Load = Callable[[Any, list[Example], SamplingDistribution], Suite]
"""(the recipe's settings, the rows, how answers are drawn) -> the suite; a kind without prompts gets no rows. Raises
DataError for rows that do not fit."""
Rejudge = Callable[[Any, Mapping[str, Figure], Path, Path, str, Progress], dict[str, Figure]]
"""(the loaded suite, its figures so far, out, baseline, device, progress) -> its figures now, as evaluation.json has
them."""


@dataclass(frozen=True, slots=True)
class SuiteKind:
    """SuiteKind(win_rate.load, rejudge=win_rate.rejudge, beside=("reward_model",))"""

    load: Load
    metrics: Mapping[str, Meaning] = field(default_factory=dict)
    """How the report calls and judges figures that `diagnostics.suite_metrics` does not know, by their names. They are
    written beside the figures, for the report reads folders and no kinds."""
    described: Callable[[str, Path], Mapping[str, Meaning]] | None = None
    """(suite, the stage's folder) -> the same, of a kind whose figures are known when they are measured."""
    beside: tuple[str, ...] = ()
    """Settings that change no answer: a change of theirs alone does not have the model asked again."""
    content: Callable[[Any], str] | None = None
    """(settings) -> what its figures depend on beside the settings and the rows: the source of a function."""
    items: Callable[[Any], Mapping[str, int]] | None = None
    """(the loaded suite) -> {figure: how many items it is a mean of}, of figures that are means of scores in [0, 1];
    "" is the only one. None: what the suite can show is not known before it is asked."""
    rejudge: Rejudge | None = None
    """Judges answers that were kept, without asking the model: their judge may have been trained since."""
