"""Rows that say what other rows say: exactly, nearly, and across splits."""

from __future__ import annotations

import numpy as np

from posttrain.auditing.corpus import Corpus
from posttrain.auditing.finding import Finding, Severity, excerpt, percent, rows_text
from posttrain.auditing.subject import Subject
from posttrain.auditing.words import groups, similar

NEAR = 0.8
"""Estimated overlap of two rows' 3-word sequences from which on they are near-duplicates."""
FEWEST_WORDS = 12
"""Shorter rows are compared exactly only: two sums with other numbers are not the same row."""
FEW = 0.01


def duplicates(subject: Subject) -> list[Finding]:
    """Rows that repeat an earlier row: prompt, responses and their order, to the letter."""
    rows = repeated(row_keys(subject.corpus, ordered=True))
    remedy = "drop them (`--fix` keeps the first of each): a row that stands twice counts twice"
    return _repeats(subject, "duplicates", rows, "repeat an earlier row exactly", FEW, remedy)


def near_duplicates(subject: Subject) -> list[Finding]:
    """Rows that repeat an earlier row but for some words (MinHash, Broder 1997)."""
    corpus = subject.corpus
    same = groups(similar(row_signatures(corpus), NEAR), len(corpus))
    rows = np.flatnonzero(same != np.arange(len(corpus)))
    exact = repeated(row_keys(corpus, ordered=False))
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
) -> list[Finding]:
    if not len(rows):
        return []
    corpus = subject.corpus
    share = len(rows) / len(corpus)
    severity: Severity = "warning" if share >= few else "note"
    examples = [
        {"row": str(corpus.ref(row)), "repeats": str(corpus.ref(first)), "prompt": excerpt(corpus.prompts[row])}
        for row, first in partners or []
    ]
    message = f"{rows_text(len(rows))} ({percent(share)}) {what}"
    return [Finding(check, severity, message, share, corpus.refs(rows), {"examples": examples}, remedy)]


def split_overlap(subject: Subject) -> list[Finding]:
    """Prompts and rows that are trained on and measured on."""
    if subject.held_out is None:
        return []
    corpus, held = subject.corpus, subject.held_out
    shared = np.isin(corpus.prompt_key_R, held.prompt_key_R)
    links = similar(row_signatures(corpus), NEAR, row_signatures(held))
    near = np.setdiff1d(np.unique(links[:, 0]), np.flatnonzero(shared))
    measured = np.isin(held.prompt_key_R, corpus.prompt_key_R)
    found = []
    for rows, share_of_held, what in (
        (np.flatnonzero(shared), float(measured.mean()), "have a prompt that is held out too"),
        (
            near,
            len(np.unique(links[np.isin(links[:, 0], near), 1])) / max(1, len(held)),
            "are near-duplicates of held-out rows",
        ),
    ):
        if len(rows):
            share = len(rows) / len(corpus)
            examples = [
                {"row": str(corpus.ref(row)), "prompt": excerpt(corpus.prompts[row])} for row in rows[:3].tolist()
            ]
            found.append(
                Finding(
                    "split_overlap",
                    "warning",
                    f"{rows_text(len(rows))} ({percent(share)}) {what} ({percent(share_of_held)} of the held-out rows)",
                    share,
                    corpus.refs(rows),
                    {"held_out_share": share_of_held, "examples": examples},
                    "drop them from training: what is measured on held-out rows is memory otherwise",
                )
            )
    return found


# ---------------------------------------------------------------- keys and signatures of rows


def row_keys(corpus: Corpus, *, ordered: bool) -> np.ndarray:
    """A hash of each row's prompt and responses, uint64 [R]; `ordered` tells who won.

    Responses are summed after mixing them with their place in the order, so that a file's own order does not matter.
    """
    place = corpus.place_S.astype(np.uint64) if ordered else np.zeros(len(corpus.place_S), dtype=np.uint64)
    mixed = (corpus.key_S ^ (place * np.uint64(0x9E3779B97F4A7C15))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0x94D049BB133111EB)
    running = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed, dtype=np.uint64)])
    sums = running[corpus.first_R[1:]] - running[corpus.first_R[:-1]]
    good = corpus.good_R.astype(np.uint64) if ordered else np.uint64(1)
    return (corpus.prompt_key_R * np.uint64(0xD6E8FEB86659FD93)) ^ (sums + good)


def repeated(keys: np.ndarray) -> np.ndarray:
    """Indices of keys that an earlier entry has, too: repeated([7, 5, 7]) -> [2]."""
    _, first = np.unique(keys, return_index=True)
    again = np.ones(len(keys), dtype=bool)
    again[first] = False
    return np.flatnonzero(again)


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
    signatures[words < FEWEST_WORDS] = 0xFFFFFFFF
    return signatures
