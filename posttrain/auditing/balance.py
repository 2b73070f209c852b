"""Unpaired feedback: how many good and bad responses there are, and the weights that make up for it.

A check of `checks.py`; the weights that it recommends are keys of the KTO stage.
"""

from __future__ import annotations

from posttrain.auditing.finding import AuditFinding, AuditSeverity, percent
from posttrain.auditing.subject import Subject

RATIO = (1.0, 4 / 3)
"""Range of (lambda_D n_D) / (lambda_U n_U): Ethayarajh et al. 2024 (KTO), arXiv:2402.01306, first version, section 4.2,
and the documentation of TRL's KTOTrainer. Eq. 9 of the published paper allows up to 3/2."""
LATER_RATIO = 3 / 2


def label_balance(subject: Subject) -> list[AuditFinding]:
    """The ratio of good to bad responses against what KTO recommends, and weights that bring it there."""
    good = int(subject.corpus.good_R.sum())
    bad = len(subject.corpus) - good
    if not good or not bad:
        missing = "bad" if good else "good"
        message = f"no response is called {missing}"
        remedy = "check the labels: with one label, a preference objective has nothing to tell apart"
        return [AuditFinding("label_balance", "warning", message, 1.0, (), {"good": good, "bad": bad}, remedy)]

    ratio = good / bad
    # The wider of the two published ranges decides whether to speak; what is recommended lies in the narrower one.
    if RATIO[0] <= ratio <= LATER_RATIO:
        return []
    desirable, undesirable = recommended_weights(good, bad)
    severity: AuditSeverity = "warning" if ratio > 4 * RATIO[1] or ratio < 0.25 else "note"

    evidence = {
        "good": good,
        "bad": bad,
        "ratio": ratio,
        "recommended_ratio": list(RATIO),
        "source": "Ethayarajh et al. 2024, arXiv:2402.01306, v1 (Eq. 9 of the published version: up to 3/2)",
        "desirable_weight": desirable,
        "undesirable_weight": undesirable,
    }
    message = f"{good:,} good and {bad:,} bad responses ({percent(good / (good + bad))} good)"
    remedy = (
        f"train with desirable_weight {desirable:.3g} and undesirable_weight {undesirable:.3g}, which put the weighted "
        f"ratio at {desirable * good / (undesirable * bad):.2f}, inside [1, 4/3]"
    )
    return [AuditFinding("label_balance", severity, message, good / (good + bad), (), evidence, remedy)]


def recommended_weights(good: int, bad: int) -> tuple[float, float]:
    """(desirable, undesirable) so that desirable * good / (undesirable * bad) lies in [1, 4/3]; the larger one is 1 or
    more, the other 1.

    recommended_weights(100, 400) -> (4.0, 1.0); recommended_weights(400, 100) -> (1.0, 3.0)
    """
    ratio = good / bad
    # The rarer label is weighted up and the other left at 1: shrinking weights would shrink the gradient as a whole.
    if ratio < RATIO[0]:
        return RATIO[0] / ratio, 1.0
    if ratio > RATIO[1]:
        return 1.0, ratio / RATIO[1]
    return 1.0, 1.0
