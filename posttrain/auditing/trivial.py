"""Pairs that teach nothing, and rows that could not be read; checks of `checks.py`."""

from __future__ import annotations

import re

import numpy as np

from posttrain.auditing.corpus import normalised
from posttrain.auditing.finding import AuditFinding, AuditSeverity, excerpt, percent, rows_text
from posttrain.auditing.subject import Subject
from posttrain.auditing.words import estimated_overlap

MEANINGLESS = 0.5
"""A fault in half of the rows is an error: what training sees is mostly the fault."""
TRAINS_NOTHING = ("identical_responses", "empty_response", "prompts_differ")
"""Reasons to refuse a row that are a fault of the data, not of how it is read."""
NEAR_IDENTICAL = 0.9
"""Overlap of the two sides' 3-word sequences from which on they are called near-identical."""
FEWEST_SIDE_WORDS = 20
"""Of shorter sides that share nearly all words, the one that differs is likely the point."""
_NO_LETTERS = re.compile(r"[\W_]+")


def refused_rows(subject: Subject) -> list[AuditFinding]:
    """Rows that reading refuses, by reason: the ones that are wrong in themselves."""
    # Shares are of all rows of the file: the corpus holds only those that were read.
    total = len(subject.corpus) + sum(len(rows) for rows in subject.refused.values())
    findings = []
    for reason, rows in subject.refused.items():
        share = len(rows) / max(1, total)
        # Where no row is left the data are an error, however many reasons share the blame.
        meaningless = not len(subject.corpus) or (reason in TRAINS_NOTHING and share >= MEANINGLESS)
        findings.append(
            AuditFinding(
                "refused_rows",
                "error" if meaningless else "warning",
                f"{rows_text(len(rows))} cannot be used: {reason.replace('_', ' ')}",
                share,
                rows,
                {"reason": reason},
                "correct the rows, or leave them out with `bad_rows: skip`; `--fix` drops them",
            )
        )
    return findings


def trivial_pairs(subject: Subject) -> list[AuditFinding]:
    """Two sides that say the same: identical, or apart by white space, case and punctuation, or by a word or two."""
    corpus, sides = subject.corpus, subject.corpus.sides
    if not subject.is_paired:  # feedback: the two sides of a drawn pair answer different prompts
        return []
    row_S, key_S = corpus.row_S, corpus.key_S
    same_text = _rows_with_equal(row_S, key_S)
    counts = corpus.responses.word_counts
    equal_words = np.setdiff1d(_rows_with_equal(row_S, corpus.responses.sequence_hashes), same_text)
    same_words = _same_but_for_punctuation(subject, equal_words)

    signatures = corpus.responses.signatures
    near = estimated_overlap(signatures[sides.chosen_P], signatures[sides.rejected_P]) >= NEAR_IDENTICAL
    # MinHash of short texts is coarse, and in them the one differing word is likely the point.
    near &= np.minimum(counts[sides.chosen_P], counts[sides.rejected_P]) >= FEWEST_SIDE_WORDS
    # Each pair under one of the three, the strongest.
    near_rows = np.setdiff1d(sides.row_P[near], np.union1d(same_text, equal_words))

    findings = [
        _trivial(subject, same_text, "the two sides are identical", "identical"),
        _trivial(subject, same_words, "the two sides differ only in white space, case or punctuation", "same_words"),
    ]
    if len(near_rows):
        share = len(near_rows) / len(corpus)
        findings.append(
            AuditFinding(
                "trivial_pairs",
                "warning" if share >= 0.05 else "note",
                f"the two sides share 9 of 10 three-word sequences in {len(near_rows):,} pairs ({percent(share)})",
                share,
                corpus.refs(near_rows),
                {"kind": "near_identical", "examples": _both_sides(subject, near_rows[:3])},
                "look at them: where the difference is not what you mean to teach, drop the rows; DPO tends to push "
                "both sides down where they are alike (Pal et al. 2024, arXiv:2402.13228): dpop or dpo_nll hold them",
            )
        )
    return [finding for finding in findings if finding is not None]


def empty_sides(subject: Subject) -> list[AuditFinding]:
    """Responses without a word: nothing, white space, or punctuation alone."""
    corpus = subject.corpus
    suspects = np.flatnonzero(corpus.responses.word_counts == 0).tolist()
    empty = [index for index in suspects if not corpus.responses[index].strip()]
    only_signs = [index for index in suspects if len(_NO_LETTERS.sub("", corpus.responses[index])) == 0]
    # "?" or "..." may be an answer, so it is counted apart from no text at all.
    only_signs = sorted(set(only_signs) - set(empty))
    findings = []
    for responses, what in ((empty, "no text"), (only_signs, "nothing but punctuation")):
        rows = corpus.rows_of(np.array(responses, dtype=np.int64))
        if len(rows):
            share = len(rows) / len(corpus)
            severity: AuditSeverity = "error" if share >= MEANINGLESS else "warning" if what == "no text" else "note"
            findings.append(
                AuditFinding(
                    "empty_sides",
                    severity,
                    f"a response has {what} in {rows_text(len(rows))} ({percent(share)})",
                    share,
                    corpus.refs(rows),
                    {"what": what, "examples": [repr(corpus.responses[index][:40]) for index in responses[:3]]},
                    "drop the rows, or write the answers",
                )
            )
    return findings


def _rows_with_equal(row_S: np.ndarray, value_S: np.ndarray) -> np.ndarray:
    """Rows in which two responses have the same value."""
    order = np.lexsort((value_S, row_S))
    rows, values = row_S[order], value_S[order]
    return np.unique(rows[1:][(rows[1:] == rows[:-1]) & (values[1:] == values[:-1])])


def _same_but_for_punctuation(subject: Subject, rows: np.ndarray) -> np.ndarray:
    """Those of the rows in which two responses are the same text once case and the punctuation of prose are taken out.

    The words alone cannot tell: "5 + 3" and "5 - 3" have the same.
    """
    corpus = subject.corpus
    same_rows = []
    for row in rows.tolist():
        texts = [normalised(corpus.responses[index]) for index in range(*corpus.first_R[row : row + 2].tolist())]
        if len(set(texts)) < len(texts):
            same_rows.append(row)
    return np.array(same_rows, dtype=np.int64)


def _trivial(subject: Subject, rows: np.ndarray, what: str, kind: str) -> AuditFinding | None:
    if not len(rows):
        return None
    share = len(rows) / len(subject.corpus)
    return AuditFinding(
        "trivial_pairs",
        "error" if share >= MEANINGLESS else "warning",
        f"{what} in {rows_text(len(rows))} ({percent(share)})",
        share,
        subject.corpus.refs(rows),
        {"kind": kind, "examples": _both_sides(subject, rows[:3])},
        "drop the rows: a pair without a difference teaches nothing; `--fix` does it",
    )


def _both_sides(subject: Subject, rows: np.ndarray) -> list[dict[str, str]]:
    corpus, sides = subject.corpus, subject.corpus.sides
    return [
        {
            "row": str(corpus.ref(row)),
            "chosen": excerpt(corpus.responses[sides.chosen_P[row]]),
            "rejected": excerpt(corpus.responses[sides.rejected_P[row]]),
        }
        for row in rows.tolist()
    ]
