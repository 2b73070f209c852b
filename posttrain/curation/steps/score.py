"""The step `score`: a number for every row in play, and the rows that it lets through."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from posttrain.config.select import Keep, Score
from posttrain.curation.rows import Pool, Removed, Taken, Tools, everything
from posttrain.curation.scores.scored import Scored
from posttrain.curation.scores.table import SCORES


def score_rows(settings: Score, pool: Pool, tools: Tools) -> Taken:
    """Adds the column of the score; removes what `keep` does not let through.

    Raises:
        ConfigError, DataError: what the score raises.
    """
    label = settings.score.label
    given = SCORES[type(settings.score)](settings.score, pool, tools)
    found = given if isinstance(given, Scored) else Scored(given)
    score_R = np.full(len(pool.rows), np.nan)
    score_R[pool.kept] = found.score_R[pool.kept]
    missing = int(np.isnan(score_R[pool.kept]).sum())
    keep = _within(settings.keep, settings.score.bound)
    removed = _not_let_through(keep, label, pool.kept, score_R[pool.kept], found.missing)
    notes = found.notes
    if missing:
        fate = "they are dropped" if keep.unscored == "drop" else "they are kept (`unscored: drop` drops them)"
        notes += (f"{missing:,} of {len(pool):,} rows have no score `{label}`; {fate}",)
        notes += tuple(f"no score `{label}`: {count:,} rows: {why}" for why, count in found.reasons().most_common())
    return everything(pool, removed, scores={label: score_R}, notes=notes)


def _within(keep: Keep, bound: float | None) -> Keep:
    """What a step keeps under the bound that its score has of its own."""
    if bound is None or (keep.most is not None and keep.most <= bound):
        return keep
    # Not validated again: a `least` above the bound keeps no row, and that is then said by its reason.
    return keep.model_copy(update={"most": bound})


def _not_let_through(
    keep: Keep, label: str, kept: np.ndarray, score_K: np.ndarray, missing: Mapping[int, str] = MappingProxyType({})
) -> list[Removed]:
    removed: list[Removed] = []
    scored = ~np.isnan(score_K)
    through = scored.copy()
    if keep.unscored == "drop":
        for row in kept[~scored].tolist():
            why = f": {missing[row]}" if row in missing else ""
            removed.append(Removed(row, "unscored", f"has no score `{label}`{why}"))
    for bound, reason, word, outside in (
        (keep.least, "below", "least", lambda bound: score_K < bound),
        (keep.most, "above", "most", lambda bound: score_K > bound),
    ):
        if bound is not None:
            gone = through & outside(bound)
            removed += [
                Removed(int(row), reason, f"`{label}` is {score:g}, at {word} {bound:g} is wanted")
                for row, score in zip(kept[gone], score_K[gone], strict=True)
            ]
            through &= ~gone
    share = keep.top if keep.top is not None else keep.bottom
    if share is not None:
        places = np.flatnonzero(through)
        order = places[np.argsort(score_K[places] * (-1 if keep.top is not None else 1), kind="stable")]
        end = "highest" if keep.top is not None else "lowest"
        removed += [
            Removed(int(kept[place]), f"not_{end}", f"`{label}` is {score_K[place]:g}, not in the {end} {share:.4g}")
            for place in order[math.ceil(share * len(order)) :].tolist()
        ]
    return sorted(removed, key=lambda one: one.row)
