"""From settings to the rule, and from its choice to what is said of every row."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from posttrain.config.diversity import DEITA, DPP, DiversitySettings, FacilityLocation, KCentre, SemDeDup
from posttrain.curation.diversity.chosen import Choice, Chosen, completed
from posttrain.curation.diversity.deita import deita
from posttrain.curation.diversity.dpp import dpp
from posttrain.curation.diversity.facility_location import facility_location
from posttrain.curation.diversity.k_centre import k_centre
from posttrain.curation.diversity.semdedup import semdedup
from posttrain.curation.diversity.vectors import by_score
from posttrain.errors import DataError
from posttrain.runs.progress import Progress

RULES: Mapping[type[DiversitySettings], Callable[..., Choice]] = {
    SemDeDup: semdedup,
    KCentre: k_centre,
    FacilityLocation: facility_location,
    DPP: dpp,
    DEITA: deita,
}
"""(features, settings of that type, *, scores, budget, seed) -> Choice. Quotas take values instead (`quotas.py`)."""
SHOWN = (KCentre, FacilityLocation)
"""Rules that take minutes on many rows, and show themselves how far they are."""


def choose(
    features: np.ndarray,
    settings: DiversitySettings,
    *,
    scores: np.ndarray | None = None,
    budget: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Chosen:
    """Rows that are unlike each other; all rows where the budget is no limit to a rule that has no other.

    Args:
        features: float32 [R, D], of length 1 or 0.
        scores: float64 [R], higher is better; NaN where a row has none.
        progress: of the rules that are `SHOWN`.

    Raises:
        DataError: a vector holds NaN or an infinite number, or is longer than 1.
        ConfigError: the rule needs a score or another budget.
    """
    features = np.asarray(features)
    count = len(features)
    _require_unit_length(features)
    if not count:
        return completed(Choice(np.empty(0, np.int64)), features, 0)
    if isinstance(settings, KCentre | FacilityLocation | DPP) and (budget is None or budget >= count):
        # Nothing is left out, so that there is nothing to compute; without this, `dpp` would stop at duplicates.
        order = by_score(scores if settings.quality else None, count)
        return completed(Choice(order), features, count)
    shown = {"progress": progress} if isinstance(settings, SHOWN) else {}
    choice = RULES[type(settings)](features, settings, scores=scores, budget=budget, seed=seed, **shown)
    return completed(choice, features, count)


def _require_unit_length(features: np.ndarray) -> None:
    squared = np.einsum("rd,rd->r", features, features)
    wrong = np.flatnonzero(~((np.abs(squared - 1) < 1e-3) | (squared == 0)))
    if len(wrong):
        raise DataError(
            "a vector of the rows is not of length 1",
            found=f"length {float(np.sqrt(squared[wrong[0]])):.4g} at place {int(wrong[0])}",
            expected="vectors of length 1, or of zeros where there is nothing to compare",
            remedy="divide each by its length: `posttrain.curation.diversity.vectors.unit_length(vectors)`",
        )
