"""The step `budget`: so many rows, so large a share, or as many rows as have so many tokens; the best first."""

from __future__ import annotations

import math

import numpy as np

from posttrain.config.select import Budget
from posttrain.curation.rows import Pool, Removed, Taken, Tools, random_order
from posttrain.curation.tokens import token_counts
from posttrain.errors import ConfigError


def keep_budget(settings: Budget, pool: Pool, tools: Tools) -> Taken:
    """Keeps the first rows by the order that `by` names; rows without that score come last.

    Rows of equal score are taken in an order drawn by seed, so that what stays depends neither on how a file is sorted
    nor on which of two files was named first.

    Raises:
        ConfigError: tokens are wanted and no model is named whose they are.
    """
    by = _by(settings, pool)
    order = _in_order(settings, by, pool, tools.seed)
    if settings.tokens is not None:
        sums = np.cumsum(token_counts(pool.rows, order, tools))
        # The first row that does not fit ends it: to go on to shorter rows would prefer these.
        count = int(np.searchsorted(sums, settings.tokens, side="right"))
        size = f"{settings.tokens:,} tokens"
    else:
        count = min(len(order), settings.rows or math.ceil((settings.share or 1.0) * len(order)))
        size = f"{count:,} rows"
    reason = f"beyond the {size} that are wanted, by {by}"
    rank = {int(row): place for place, row in enumerate(order[count:].tolist(), count + 1)}
    removed = [Removed(row, "over_budget", f"{reason}: row {rank[row]:,} in that order") for row in sorted(rank)]
    notes: tuple[str, ...] = ()
    if settings.tokens is None and settings.rows is not None and settings.rows > len(order):
        notes = (f"the budget is {settings.rows:,} rows, and {len(order):,} are left: all of them are kept",)
    return Taken(order[:count], removed, is_order=True, notes=notes)


def _by(settings: Budget, pool: Pool) -> str:
    """What the budget goes by: "choice", "random", or the name of a score."""
    if settings.by == "choice" and pool.chosen is None:
        raise ConfigError(
            "the budget goes by the order of choice, and no step before it has chosen in an order",
            where="steps: budget",
            found="by: choice",
            expected="a step before it that chooses row by row, such as `diversify`, or a score",
            remedy="write `by: random`, or the name of a score",
        )
    if settings.by != "auto":
        return settings.by
    return "choice" if pool.chosen is not None else next(reversed(list(pool.scores)), "random")


def _in_order(settings: Budget, by: str, pool: Pool, seed: int) -> np.ndarray:
    """All rows in play, the best first."""
    if by == "choice":
        assert pool.chosen is not None
        return pool.chosen
    drawn = random_order(pool.rows, pool.kept, seed)
    if by == "random":
        return drawn
    score = pool.scores[by][drawn] * (1 if settings.lowest else -1)
    return drawn[np.argsort(np.where(np.isnan(score), np.inf, score), kind="stable")]
