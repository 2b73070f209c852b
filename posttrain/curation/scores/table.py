"""Every score by the type of its settings. A new one is a record in `posttrain.config.scores`, named there in
`SCORE_KINDS` and `AnyScore`, and a function with a row here.

score_R = SCORES[type(settings)](settings, pool, tools)     # float64 [R], NaN where a row cannot be scored
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from posttrain.config.scores import ColumnScore, FormScore, LengthScore, ScoreSettings
from posttrain.curation.rows import Pool, Tools
from posttrain.curation.scores.column import column_score
from posttrain.curation.scores.form import form_score
from posttrain.curation.scores.length import length_score

ScoreFunction = Callable[[Any, Pool, Tools], np.ndarray]
"""(settings, pool, tools) -> float64 [R]: of the rows in play; NaN for all others, and for those without a score."""

SCORES: Mapping[type[ScoreSettings], ScoreFunction] = {
    LengthScore: length_score,
    FormScore: form_score,
    ColumnScore: column_score,
}
