"""The step `diversify` of a selection: vectors of the rows, a rule, and what is said of each row that goes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from posttrain.auditing.language import detect_language
from posttrain.config.diversity import Diversify, Quotas, SemDeDup
from posttrain.curation.diversity.choose import choose
from posttrain.curation.diversity.chosen import OVER_BUDGET, Chosen, completed
from posttrain.curation.diversity.deita import PASSED_OVER
from posttrain.curation.diversity.dpp import NO_VOLUME
from posttrain.curation.diversity.quotas import MISSING, NO_QUOTA, OVER_QUOTA, quotas
from posttrain.curation.diversity.semdedup import DUPLICATE
from posttrain.curation.embeddings.embed import embed
from posttrain.curation.rows import Pool, Removed, Taken, Tools, random_order
from posttrain.errors import unknown

UNKNOWN = "unknown"
"""The language of a text of which the audit is not sure."""
MESSAGES: Mapping[str, str] = {
    OVER_BUDGET: "the budget was spent on rows that were chosen before it",
    DUPLICATE: "says what another row says, by the cosine of their embeddings",
    PASSED_OVER: "is like a kept row with a better score",
    NO_VOLUME: "adds no volume to the chosen rows",
    OVER_QUOTA: "the quota of its kind was full",
    NO_QUOTA: "its kind has no quota",
}
"""Every reason in words."""


def diversify(settings: Diversify, pool: Pool, tools: Tools) -> Taken:
    """Keeps rows that are unlike each other; names for each other row the kept one that it is most like.

    Raises:
        UnknownKeyError: no step before has computed the score, or a quota's value is nowhere.
        DataError, ConfigError, MissingExtraError, ModelError, EncodingError: see `embed`, `choose` and `quotas`.
    """
    scores = _scores(settings, pool)
    notes: tuple[str, ...] = ()
    if isinstance(settings.method, Quotas):
        chosen = _by_quotas(settings, settings.method, pool, tools, scores)
    else:
        embedded = embed(settings.embedding, pool, tools)
        notes = embedded.notes
        # A rule that shows itself how far it is has phases of its own inside this one, and the innermost is shown.
        with tools.progress.phase(f"diversify: {settings.method.kind}", total=len(pool), unit="rows") as phase:
            chosen = choose(
                embedded.vectors,
                settings.method,
                scores=scores,
                budget=settings.budget,
                seed=tools.seed,
                progress=tools.progress,
            )
            phase.advance(len(pool))
    removed = [
        Removed(
            int(pool.kept[one.row]),
            one.reason,
            MESSAGES[one.reason],
            int(pool.kept[one.nearest]) if one.nearest >= 0 else None,
            one.cosine if one.nearest >= 0 else None,
        )
        for one in chosen.removals()
    ]
    # Semantic duplicates and quotas say which rows stay and not which of those is better, unless a score does.
    is_order = scores is not None or not isinstance(settings.method, SemDeDup | Quotas)
    return Taken(pool.kept[chosen.kept], removed, is_order=is_order, notes=(*notes, *chosen.notes))


def _scores(settings: Diversify, pool: Pool) -> np.ndarray | None:
    """Of the rows in play, [K]."""
    if settings.score is None:
        return None
    if settings.score not in pool.scores:
        raise unknown(
            "score", settings.score, pool.scores, otherwise="put a step `{kind: score, ...}` before `diversify`"
        )
    return pool.scores[settings.score][pool.kept]


def _by_quotas(settings: Diversify, method: Quotas, pool: Pool, tools: Tools, scores: np.ndarray | None) -> Chosen:
    order_K = np.searchsorted(pool.kept, random_order(pool.rows, pool.kept, tools.seed))
    choice = quotas(_values(method, pool), method, scores=scores, budget=settings.budget, order_R=order_K)
    return completed(choice, None, len(pool))


def _values(method: Quotas, pool: Pool) -> list[str]:
    """What each row in play is, as quotas name it."""
    rows, kept = pool.rows, pool.kept.tolist()
    if method.by == "source":
        return [rows.ref(row).source for row in kept]
    if method.by == "language":
        return [detect_language(text) or UNKNOWN for text in rows.texts(kept, "prompt")]
    assert method.column is not None  # `Quotas` refuses `by: column` without one
    return [MISSING if value is None else str(value) for value in rows.column(kept, method.column)]
