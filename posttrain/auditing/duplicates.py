"""Rows that say what other rows say: exactly, nearly, and across splits.

Checks of `checks.py`, on the hashes and MinHash signatures of `texts.py`. Training on copies weights them; measuring on
copies of trained rows measures memory.
"""

from __future__ import annotations

import numpy as np

from posttrain.auditing.corpus import Corpus
from posttrain.auditing.finding import AuditFinding, AuditSeverity, excerpt, percent, rows_text
from posttrain.auditing.subject import Subject
from posttrain.auditing.words import groups, similar_pairs

NEAR_DUPLICATE = 0.8
"""Estimated overlap of two rows' 3-word sequences from which on they are near-duplicates."""
FEWEST_ROW_WORDS = 12
"""Shorter rows are compared exactly only: two sums with other numbers are not the same row."""
WARNING_SHARE = 0.01


def duplicates(subject: Subject) -> list[AuditFinding]:
    """Rows that repeat an earlier row: prompt, responses and their order, to the letter."""
    rows = repeated(row_keys(subject.corpus, ordered=True))
    remedy = "drop them (`--fix` keeps the first of each): a row that stands twice counts twice"
    return _repeats(subject, "duplicates", rows, "repeat an earlier row exactly", WARNING_SHARE, remedy)


def near_duplicates(subject: Subject) -> list[AuditFinding]:
    """Rows that repeat an earlier row but for some words (MinHash, Broder 1997)."""
    corpus = subject.corpus
    same = groups(similar_pairs(row_signatures(corpus), NEAR_DUPLICATE), len(corpus))
    rows = np.flatnonzero(same != np.arange(len(corpus)))
    exact = repeated(row_keys(corpus, ordered=False))
    # Exact copies have their own check; a row is named once, under the stronger of the two.
    rows = np.setdiff1d(rows, exact)
    remedy = (
        "keep one of each group: their held-out copies make the measured accuracy too good; `--fix` keeps the first"
    )
    partners = [(int(row), int(same[row])) for row in rows[:3]]
    return _repeats(
        subject, "near_duplicates", rows, "repeat an earlier row but for a few words", 0.05, remedy, partners
    )


def _repeats(
    subject: Subject,
    check: str,
    rows: np.ndarray,
    what: str,
    few: float,
    remedy: str,
    partners: list[tuple[int, int]] | None = None,
) -> list[AuditFinding]:
    if not len(rows):
        return []
    corpus = subject.corpus
    share = len(rows) / len(corpus)
    severity: AuditSeverity = "warning" if share >= few else "note"
    examples = [
        {"row": str(corpus.ref(row)), "repeats": str(corpus.ref(first)), "prompt": excerpt(corpus.prompts[row])}
        for row, first in partners or []
    ]
    message = f"{rows_text(len(rows))} ({percent(share)}) {what}"
    return [AuditFinding(check, severity, message, share, corpus.refs(rows), {"examples": examples}, remedy)]


def split_overlap(subject: Subject) -> list[AuditFinding]:
    """Prompts and rows that are trained on and measured on."""
    if subject.held_out is None:
        return []
    corpus, held_out = subject.corpus, subject.held_out
    shared = np.isin(corpus.prompt_key_R, held_out.prompt_key_R)
    links = similar_pairs(row_signatures(corpus), NEAR_DUPLICATE, row_signatures(held_out))
    near = np.setdiff1d(np.unique(links[:, 0]), np.flatnonzero(shared))
    measured = np.isin(held_out.prompt_key_R, corpus.prompt_key_R)

    findings = []
    for rows, share_of_held, what in (
        (np.flatnonzero(shared), float(measured.mean()), "have a prompt that is held out too"),
        (
            near,
            len(np.unique(links[np.isin(links[:, 0], near), 1])) / max(1, len(held_out)),
            "are near-duplicates of held-out rows",
        ),
    ):
        if len(rows):
            share = len(rows) / len(corpus)
            examples = [
                {"row": str(corpus.ref(row)), "prompt": excerpt(corpus.prompts[row])} for row in rows[:3].tolist()
            ]
            findings.append(
                AuditFinding(
                    "split_overlap",
                    "warning",
                    f"{rows_text(len(rows))} ({percent(share)}) {what} ({percent(share_of_held)} of the held-out rows)",
                    share,
                    corpus.refs(rows),
                    {"held_out_share": share_of_held, "examples": examples},
                    "drop them from training: what is measured on held-out rows is memory otherwise",
                )
            )
    return findings


# ---------------------------------------------------------------- keys and signatures of rows


def row_keys(corpus: Corpus, *, ordered: bool) -> np.ndarray:
    """A hash of each row's prompt and responses, uint64 [R]; `ordered` tells who won.

    Responses are summed after mixing them with their place in the order, so that a file's own order does not matter.
    """
    # splitmix64's mixing (Steele et al. 2014): without it, sums could collide for swapped responses, and the same
    # two answers with the opposite verdict would pass for a duplicate.
    place = corpus.place_S.astype(np.uint64) if ordered else np.zeros(len(corpus.place_S), dtype=np.uint64)
    mixed = (corpus.key_S ^ (place * np.uint64(0x9E3779B97F4A7C15))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0x94D049BB133111EB)
    # A row's sum is the difference of two running sums; uint64 wraps around, and the difference wraps back.
    running = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed, dtype=np.uint64)])
    sums = running[corpus.first_R[1:]] - running[corpus.first_R[:-1]]
    good = corpus.good_R.astype(np.uint64) if ordered else np.uint64(1)
    return (corpus.prompt_key_R * np.uint64(0xD6E8FEB86659FD93)) ^ (sums + good)


def repeated(keys: np.ndarray) -> np.ndarray:
    """Indices of keys that an earlier entry has, too: repeated([7, 5, 7]) -> [2]."""
    _, first = np.unique(keys, return_index=True)
    repeats = np.ones(len(keys), dtype=bool)
    repeats[first] = False
    return np.flatnonzero(repeats)


def row_signatures(corpus: Corpus) -> np.ndarray:
    """MinHash of the union of a row's texts: the entry-wise minimum of theirs. Short rows have none (all ones)."""
    signatures = corpus.prompts.signatures.copy()
    words = corpus.prompts.word_counts.astype(np.int64)
    if len(corpus.responses):
        filled = np.diff(corpus.first_R) > 0
        starts = corpus.first_R[:-1][filled]
        least = np.minimum.reduceat(corpus.responses.signatures, starts, axis=0)
        signatures[filled] = np.minimum(signatures[filled], least)
        words[filled] += np.add.reduceat(corpus.responses.word_counts.astype(np.int64), starts)
    # All ones is the signature of no n-grams, which `similar_pairs` never matches.
    signatures[words < FEWEST_ROW_WORDS] = 0xFFFFFFFF
    return signatures
