"""What the figures of a stage's suites mean, where their kinds have names of their own."""

from __future__ import annotations

from collections.abc import Mapping

from posttrain.runs.files import read_json
from posttrain.runs.folder import StageFolder
from posttrain.runs.records.evaluation import Meaning, SuiteMeanings


def meanings_in(folder: StageFolder) -> Mapping[str, Mapping[str, Meaning]]:
    """By suite and metric; {} where no suite wrote any."""
    path = folder.path / "evaluations" / "metrics.json"
    return SuiteMeanings.from_json(read_json(path)).suites if path.exists() else {}
