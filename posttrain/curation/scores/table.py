"""Every score by the type of its settings. A new one is a record in `posttrain.config.scores`, named there in
`SCORE_KINDS` and `AnyScore`, and a function with a row here.

score_R = SCORES[type(settings)](settings, pool, tools)     # float64 [R], NaN where a row cannot be scored

Those that say why a row has no score give a `Scored` around it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import numpy as np

from posttrain.config.model_scores import (
    DEITAScore,
    IFDScore,
    InsTagScore,
    JudgeScore,
    LogProbScore,
    PassRateScore,
    PerplexityScore,
    RDSScore,
    RewardModelScore,
)
from posttrain.config.scores import (
    ColumnScore,
    CombineScore,
    DisagreementScore,
    FormScore,
    LengthScore,
    ScoreSettings,
)
from posttrain.curation.rows import Pool, Tools
from posttrain.curation.scores.column import column_score
from posttrain.curation.scores.combined import combine_score, disagreement_score
from posttrain.curation.scores.form import form_score
from posttrain.curation.scores.judged import deita_score, instag_score, judge_score
from posttrain.curation.scores.length import length_score
from posttrain.curation.scores.scored import Scored

ScoreFunction = Callable[[Any, Pool, Tools], np.ndarray | Scored]
"""(settings, pool, tools) -> float64 [R]: of the rows in play; NaN for all others, and for those without a score."""


def _of(module: str, function: str) -> ScoreFunction:
    """A score that loads a model, and torch with it: a selection by words must not wait for that."""

    def score(settings: Any, pool: Pool, tools: Tools) -> Scored:
        found: Scored = getattr(import_module(f"posttrain.curation.scores.{module}"), function)(settings, pool, tools)
        return found

    return score


SCORES: Mapping[type[ScoreSettings], ScoreFunction] = {
    LengthScore: length_score,
    FormScore: form_score,
    ColumnScore: column_score,
    IFDScore: _of("likelihood", "ifd_score"),
    PerplexityScore: _of("likelihood", "perplexity_score"),
    LogProbScore: _of("likelihood", "logprob_score"),
    RDSScore: _of("rds", "rds_score"),
    RewardModelScore: _of("reward_model", "reward_model_score"),
    JudgeScore: judge_score,
    DEITAScore: deita_score,
    InsTagScore: instag_score,
    PassRateScore: _of("pass_rate", "pass_rate_score"),
    CombineScore: combine_score,
    DisagreementScore: disagreement_score,
}
