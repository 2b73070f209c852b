"""The random twin of a selection: as many rows, or as many tokens, drawn at random. What a selection is worth is what
it does better than its twin.

A twin is drawn from the rows that decontamination has left, and from no fewer:

- not from contaminated rows, or the twin would have seen the test and the selection would look bad beside it;
- not only from what the later steps have left, or half of the selection's work would be done for the twin, too:
  whoever does not select has the duplicates and the broken answers in their rows.

It may share rows with the selection, as any random subset would; how many is counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from posttrain.curation.rows import Pool, Tools, random_order
from posttrain.curation.selection import TOKEN_TWIN, TWIN, Selection, Twin
from posttrain.curation.tokens import token_counts


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """TokenCounts(selected=51_202, drawn_R=array([40, 0, 12, ...]))"""

    selected: int
    """Of the selection, all rows together."""
    drawn_R: np.ndarray
    """int64 [R] of the rows that a twin may have; 0 for the others."""


def tokens_of(selection: Selection, clean: Pool, tools: Tools) -> TokenCounts:
    """Raises ConfigError where no model is named whose tokens they are."""
    counts = np.zeros(len(selection.rows), dtype=np.int64)
    counts[clean.kept] = token_counts(selection.rows, clean.kept, tools)
    return TokenCounts(int(counts[selection.pool.kept].sum()), counts)


def twin_of(selection: Selection, clean: Pool, seed: int, tokens: TokenCounts | None = None) -> Twin:
    """Rows of `clean` at random, in input order: as many as the selection, or as many as have at most its tokens."""
    order = random_order(selection.rows, clean.kept, seed)
    count = len(selection.pool)
    if tokens is not None:
        sums = np.cumsum(tokens.drawn_R[order])
        # At least one: a twin without rows cannot be trained, and its row says by its tokens that it is too large.
        count = max(1, int(np.searchsorted(sums, tokens.selected, side="right")))
    drawn = np.sort(order[:count])
    return Twin(
        TWIN if tokens is None else TOKEN_TWIN,
        drawn,
        drawn_from=len(clean),
        tokens=None if tokens is None else int(tokens.drawn_R[drawn].sum()),
        selected_tokens=None if tokens is None else tokens.selected,
    )
