"""Whether the longer answer wins, and how far length alone tells the winner.

Checks of `checks.py`. Length is the shortcut that preference training is known to take (Singhal et al. 2023,
arXiv:2310.03716): a reward that is length alone looks accurate on held-out pairs of the same data.
"""

from __future__ import annotations

import numpy as np

from posttrain.auditing.finding import AuditFinding, AuditSeverity, percent
from posttrain.auditing.statistics import Differences, Predicted, cross_validate
from posttrain.auditing.subject import FEWEST_PAIRS, Subject
from posttrain.intervals import wilson

BIASED, NOTED = 0.60, 0.55
"""A share of longer winners is a warning where even its interval's lower end is above the first, a note above the
second; ultrafeedback_binarized has 0.58 (its margins say more), which a reader may want to know."""
PREDICTABLE = 0.65
"""Length alone tells the winner this often: a warning whatever the direction."""


def length_bias(subject: Subject) -> list[AuditFinding]:
    """The share of pairs whose longer side is chosen, the accuracy of "longer wins", and that of lengths in a fit."""
    if not subject.has_enough_pairs:
        return []
    sides = subject.corpus.sides
    lengths = subject.corpus.responses.word_counts
    chosen, rejected = lengths[sides.chosen_P], lengths[sides.rejected_P]
    longer, shorter = int((chosen > rejected).sum()), int((chosen < rejected).sum())
    decided = longer + shorter

    # Ends of the interval and not the share itself decide below: a small file would be called biased by chance.
    low, high = wilson(longer, decided)
    fitted = length_fit(subject)
    severity: AuditSeverity
    if low > BIASED or high < 1 - BIASED or fitted.low > PREDICTABLE:
        severity = "warning"
    elif low > NOTED or high < 1 - NOTED or fitted.low > 0.5 * (BIASED + PREDICTABLE) - 0.01:
        severity = "note"
    else:
        return []

    # The message leads with what is worse: the direction where it is biased, else what a fit makes of the lengths.
    share = longer / max(1, decided)
    if low > NOTED or high < 1 - NOTED:
        kind, share_of_kind = ("longer", share) if share > 0.5 else ("shorter", 1 - share)
        message = (
            f"the {kind} side is chosen in {percent(share_of_kind)} of the {decided:,} pairs that differ in length"
        )
    else:
        message = f"lengths alone tell the chosen side in {percent(fitted.accuracy)} of held-out pairs"

    evidence = {
        "longer_chosen_share": share,
        "interval": [low, high],
        "longer_wins_accuracy": (longer + 0.5 * (len(sides) - decided)) / len(sides),
        "length_fit_accuracy": fitted.accuracy,
        "length_fit_interval": [fitted.low, fitted.high],
        "median_words_chosen": float(np.median(chosen)),
        "median_words_rejected": float(np.median(rejected)),
        "pairs": len(sides),
    }
    remedy = (
        "balance the lengths (`--fix` drops pairs in which the winner is of the usual kind until both are level), or "
        "train with a length-normalised objective (simpo), and watch the alarm for length hacking"
    )
    return [AuditFinding("length_bias", severity, message, share, (), evidence, remedy)]


def category_length(subject: Subject) -> list[AuditFinding]:
    """Kinds of rows in which length tells the winner, which the whole may hide: in one the longer side wins, in another
    the shorter. A kind with fewer than `FEWEST_PAIRS` pairs of different length says nothing."""
    if subject.category_R is None:
        return []
    sides = subject.corpus.sides
    lengths = subject.corpus.responses.word_counts
    # Pairs of equal length are for neither side, and not counted.
    lead_P = np.sign(lengths[sides.chosen_P] - lengths[sides.rejected_P])
    kind_P = np.array([subject.category_R[row] for row in sides.row_P])

    findings = []
    for kind in sorted(set(kind_P.tolist()) - {""}):
        rows = np.flatnonzero((kind_P == kind) & (lead_P != 0))
        longer = int((lead_P[rows] > 0).sum())
        low, high = wilson(longer, len(rows))
        if len(rows) < FEWEST_PAIRS or (low <= BIASED and high >= 1 - BIASED):
            continue
        side, wins = ("longer", longer) if 2 * longer > len(rows) else ("shorter", len(rows) - longer)
        evidence = {"category": kind, "pairs": len(rows), "longer_chosen_share": longer / len(rows)}
        findings.append(
            AuditFinding(
                "category_length",
                "warning",
                f"of kind {kind!r} the {side} side is chosen in {percent(wins / len(rows))} of {len(rows):,} rows",
                len(rows) / len(subject.corpus),
                (),
                evidence | {"interval": [low, high]},
                "look at rows of this kind; balance their lengths, or leave the kind out",
            )
        )
    return findings


def length_fit(subject: Subject) -> Predicted:
    """Logistic regression on lengths alone: their logarithm, themselves, and which tenth of all lengths they are in.

    The tenths find what a slope cannot, as "answers of one line lose, and so do those of a page".
    """
    sides = subject.sample
    lengths = subject.corpus.responses.word_counts
    # Tenths of the lengths of all responses, not of the sample's: the same edges for both sides of every pair.
    edges = np.quantile(lengths, np.linspace(0.1, 0.9, 9))

    def features(responses: np.ndarray) -> np.ndarray:
        words = lengths[responses].astype(float)
        tenth = np.searchsorted(edges, words, side="right")
        scaled = np.stack([np.log1p(words), words / (1 + lengths.mean())], axis=1)
        return np.concatenate([scaled, np.eye(10)[tenth]], axis=1)

    names = ["log length", "length", *(f"tenth {number}" for number in range(1, 11))]
    differences = Differences.dense(features(sides.chosen_P) - features(sides.rejected_P), names)
    return cross_validate(differences, subject.corpus.prompt_key_R[sides.row_P])
