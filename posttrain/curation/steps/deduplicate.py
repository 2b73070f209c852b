"""The step `deduplicate`: of rows that say the same, or nearly the same, one stays.

Candidates are found as in the audit (`auditing/duplicates.py`): equal texts by their hashes, near ones by bands of
their MinHash signatures (Broder 1997). What differs:

1. The audit counts all rows that hang together by a chain of near pairs. Here every row that goes is near to a row that
   stays, not to one at the chain's other end: what is removed has a partner that a person would call its double.
2. Two comparisons with the same answers and opposite verdicts are no duplicates but a contradiction, and both stay.
"""

from __future__ import annotations

import numpy as np

from posttrain.auditing.duplicates import FEWEST_ROW_WORDS, row_keys, row_signatures
from posttrain.auditing.words import PERMUTATIONS, estimated_overlap, groups, similar_pairs
from posttrain.config.select import Deduplicate
from posttrain.curation.rows import Pool, Removed, Rows, Taken, Tools, everything

NOTHING = np.uint32(0xFFFFFFFF)
"""All entries of the signature of a text that is compared to the letter only."""


def deduplicate(settings: Deduplicate, pool: Pool, tools: Tools) -> Taken:
    """Removes every row that says what a kept row says; names that row and how much they share."""
    rows, kept = pool.rows, pool.kept
    rank_K = _ranks(settings, pool)
    key_K, meaning_K = (keys[kept] for keys in _keys(rows, settings.of))
    removed = _equal(kept, key_K, rank_K)
    if settings.near is not None:
        _hash_words(rows, tools)
        gone = {one.row for one in removed}
        left = np.flatnonzero(~np.isin(kept, np.fromiter(gone, np.int64, len(gone))))
        signatures = _signatures(rows, settings.of)[kept[left]]
        removed += _near(kept[left], signatures, rank_K[left], meaning_K[left], settings.near)
    return everything(pool, _to_kept(removed))


def _ranks(settings: Deduplicate, pool: Pool) -> np.ndarray:
    """Of each row in play, the lowest stays: by score, the highest first, and by place in the input where that is
    equal; a row without a score comes last."""
    if settings.keep == "first":
        return np.arange(len(pool))
    score_K = pool.scores[settings.keep][pool.kept]
    order = np.argsort(-np.where(np.isnan(score_K), -np.inf, score_K), kind="stable")
    ranks = np.empty(len(pool), dtype=np.int64)
    ranks[order] = np.arange(len(pool))
    return ranks


def _keys(rows: Rows, of: str) -> tuple[np.ndarray, np.ndarray]:
    """(what is equal for equal rows, what is equal for rows of the same texts whoever wins), uint64 [R] each."""
    corpus = rows.corpus
    if of == "prompt":
        return corpus.prompt_key_R, np.zeros(len(rows), dtype=np.uint64)
    if of == "answer":
        best = rows.best_R
        # Without an answer there is nothing to compare: the row's own place makes its key one of its own.
        own = np.arange(len(rows), dtype=np.uint64)
        keys = np.where(best >= 0, corpus.key_S[np.maximum(best, 0)], own) if len(corpus.responses) else own
        return keys, np.zeros(len(rows), dtype=np.uint64)
    return row_keys(corpus, ordered=True), row_keys(corpus, ordered=False)


def _signatures(rows: Rows, of: str) -> np.ndarray:
    corpus = rows.corpus
    if of == "row":
        return row_signatures(corpus)
    if of == "prompt":
        signatures, words = corpus.prompts.signatures.copy(), corpus.prompts.word_counts
    else:
        signatures = np.full((len(rows), PERMUTATIONS), NOTHING)
        words = np.zeros(len(rows), dtype=np.int64)
        answered = np.flatnonzero(rows.best_R >= 0)
        best = rows.best_R[answered]
        signatures[answered], words[answered] = corpus.responses.signatures[best], corpus.responses.word_counts[best]
    signatures[words < FEWEST_ROW_WORDS] = NOTHING
    return signatures


def _hash_words(rows: Rows, tools: Tools) -> None:
    stores = (rows.corpus.prompts, rows.corpus.responses)
    with tools.progress.phase("deduplicate", total=sum(map(len, stores)), unit="texts") as phase:
        for store in stores:
            store.hash_words(phase.advance)


def _equal(kept: np.ndarray, key_K: np.ndarray, rank_K: np.ndarray) -> list[Removed]:
    order = np.lexsort((rank_K, key_K))
    begins = np.concatenate([[True], key_K[order][1:] != key_K[order][:-1]])
    stays = order[np.flatnonzero(begins)][np.cumsum(begins) - 1]
    return [
        Removed(int(kept[gone]), "duplicate", "says to the letter what the kept row says", int(kept[other]), 1.0)
        for gone, other in zip(order[~begins].tolist(), stays[~begins].tolist(), strict=True)
    ]


def _near(
    kept: np.ndarray, signatures: np.ndarray, rank_K: np.ndarray, meaning_K: np.ndarray, threshold: float
) -> list[Removed]:
    links = similar_pairs(signatures, threshold)
    group_K = groups(links, len(kept))
    linked = np.unique(links)
    # Only rows with a link: of 200,000 rows most stand alone, and a Python loop over them would be most of the time.
    order = linked[np.lexsort((rank_K[linked], group_K[linked]))]
    removed: list[Removed] = []
    stays: list[int] = []
    for position, index in enumerate(order.tolist()):
        if position and group_K[order[position - 1]] != group_K[index]:
            stays = []
        partners = np.array(stays, dtype=np.int64)
        overlap = estimated_overlap(signatures[partners], signatures[index]) if stays else np.empty(0)
        # The same texts with another verdict: equal in all words, and the opposite of a duplicate.
        overlap[(meaning_K[partners] == meaning_K[index]) & (meaning_K[index] != 0)] = 0
        best = int(overlap.argmax()) if stays else 0
        if stays and overlap[best] >= threshold:
            share = float(overlap[best])
            message = f"says nearly what the kept row says: {share:.0%} of their three-word sequences"
            removed.append(Removed(int(kept[index]), "near_duplicate", message, int(kept[stays[best]]), share))
        else:
            stays.append(index)
    return removed


def _to_kept(removed: list[Removed]) -> list[Removed]:
    """In the order of the rows, each with a row that stays: an equal row's partner may itself be a near duplicate."""
    partner = {one.row: one for one in removed}

    def kept_partner(one: Removed) -> Removed:
        other = partner.get(one.nearest) if one.nearest is not None else None
        if other is None:
            return one
        # One step is enough: what a near duplicate is near to stays.
        return Removed(one.row, one.reason, one.message, other.nearest, other.similarity)

    return [kept_partner(partner[row]) for row in sorted(partner)]
