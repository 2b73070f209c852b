"""Every step by the type of its settings. A new one is a record in `posttrain.config`, named in `STEP_KINDS` and
`AnyStep` of `posttrain.config.select`, and a function with a row here."""

from __future__ import annotations

from collections.abc import Mapping

from posttrain.config.diversity import Diversify
from posttrain.config.select import Budget, Decontaminate, Deduplicate, Score
from posttrain.config.step import StepSettings
from posttrain.curation.diversity.step import diversify
from posttrain.curation.rows import StepFunction
from posttrain.curation.steps.budget import keep_budget
from posttrain.curation.steps.decontaminate import decontaminate
from posttrain.curation.steps.deduplicate import deduplicate
from posttrain.curation.steps.score import score_rows

STEPS: Mapping[type[StepSettings], StepFunction] = {
    Decontaminate: decontaminate,
    Score: score_rows,
    Deduplicate: deduplicate,
    Diversify: diversify,
    Budget: keep_budget,
}
