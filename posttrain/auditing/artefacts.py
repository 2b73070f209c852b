"""What a template, a sampler or a scraper left in the responses: special tokens, role markers, cut ends, refusals.

Checks of `checks.py`. The patterns are counted once, in `marks.py`; here a mark becomes a finding by how often it
stands in what is imitated, and by how unevenly it is spread over the two sides of the pairs.
"""

from __future__ import annotations

import re

import numpy as np

from posttrain.auditing.finding import AuditFinding, AuditSeverity, excerpt, percent, rows_text
from posttrain.auditing.marks import ROLE_PATTERN, SPECIAL_PATTERN
from posttrain.auditing.subject import NOTABLE_SHARE, PERVASIVE_SHARE, OneSided, Subject, compare_sides


def special_tokens(subject: Subject) -> list[AuditFinding]:
    """Names of special tokens in responses: the encoder turns them into the tokens themselves."""
    remedy = (
        "the template writes these tokens itself: take them out of the text (or set "
        "encoding.special_tokens_in_text: refuse to leave such rows out)"
    )
    return _leaks(
        subject, "special_tokens", "the name of a special token", subject.corpus.marks.special, SPECIAL_PATTERN, remedy
    )


def role_markers(subject: Subject) -> list[AuditFinding]:
    """ "Assistant:" and its kin at the beginning of a line."""
    remedy = (
        "strip the markers; where a response goes on with the user's next turn, cut it there: the model would learn to "
        "talk to itself"
    )
    mark_S, what = subject.corpus.marks.role, "a role marker at the beginning of a line"
    return _leaks(subject, "role_markers", what, mark_S, ROLE_PATTERN, remedy)


def _leaks(
    subject: Subject, check: str, what: str, mark_S: np.ndarray, pattern: re.Pattern[str], remedy: str
) -> list[AuditFinding]:
    corpus = subject.corpus
    rows = corpus.rows_of(mark_S)
    if not len(rows):
        return []
    share = len(rows) / len(corpus)
    imitated = float(mark_S[corpus.chosen_S].mean()) if corpus.chosen_S.any() else 0.0
    sides = compare_sides(corpus.sides, mark_S)
    severity: AuditSeverity = "note" if share < NOTABLE_SHARE else "warning"
    # Only what is imitated can make it an error: on a rejected side the tokens are pushed down.
    if imitated >= PERVASIVE_SHARE:
        severity = "error"
    # Fifty texts are enough to name the forms; a large file may have the mark in every row.
    marked = (pattern.search(corpus.responses[index]) for index in np.flatnonzero(mark_S)[:50].tolist())
    forms = sorted({match.group().strip() for match in marked if match is not None})
    evidence = {
        **sides.evidence(),
        "imitated_share": imitated,
        "found": forms[:8],
        "examples": _marked_examples(subject, mark_S),
    }
    message = f"{what} stands in the responses of {rows_text(len(rows))} ({percent(share)})"
    if sides.is_one_sided:
        message += f", {_lean(sides)}"
    return [AuditFinding(check, severity, message, share, corpus.refs(rows), evidence, remedy)]


def white_space(subject: Subject) -> list[AuditFinding]:
    """Blanks at the beginning or the end of a response, where one side has them far more often."""
    corpus = subject.corpus
    findings = []
    for mark_S, where in ((corpus.marks.lead_space, "begins"), (corpus.marks.end_space, "ends")):
        remedy = "strip the responses: the blank is the first thing that tells the sides apart, and the model learns it"
        findings += _one_sided(subject, "white_space", mark_S, f"a response {where} with white space", remedy)
        # Demonstrations have no second side to compare with. A file that has the blank everywhere has a convention of
        # its own; one that has it here and there teaches the model to toss a coin.
        imitated = mark_S[corpus.chosen_S]
        if not len(corpus.sides) and len(imitated) and NOTABLE_SHARE <= imitated.mean() < 1 - NOTABLE_SHARE:
            rows = corpus.rows_of(mark_S)
            share = len(rows) / len(corpus)
            message = f"{len(rows):,} responses ({percent(share)}) {where[:-1]} with white space, the others do not"
            refs = corpus.refs(rows)
            findings.append(AuditFinding("white_space", "note", message, share, refs, {}, "strip the responses"))
    return findings


def unbalanced_marks(subject: Subject) -> list[AuditFinding]:
    """Think tags that do not pair up, and code fences without an end."""
    findings = []
    for mark_S, what in (
        (subject.corpus.marks.think, "a think tag without its partner"),
        (subject.corpus.marks.fence, "a code fence without its end"),
    ):
        remedy = "complete or drop these responses: they were cut, or a filter has torn them"
        findings += _one_sided_or_imitated(subject, "unbalanced_marks", mark_S, what, remedy)
    return findings


def truncation(subject: Subject) -> list[AuditFinding]:
    """Responses that stop in the middle of a sentence."""
    remedy = (
        "leave the rows out or let the answers be written to their end; a side that is cut is told by its last word, "
        "and a chosen side that is cut teaches the model to stop anywhere"
    )
    return _one_sided_or_imitated(
        subject, "truncation", subject.corpus.marks.cut, "an end in the middle of a sentence", remedy
    )


def refusals(subject: Subject) -> list[AuditFinding]:
    """Responses that begin with a refusal, and the side they are on."""
    remedy = (
        "mean it: chosen refusals teach refusing, rejected ones teach compliance; check that the prompts deserve it, "
        "and watch the refusal rate of the trained model on harmless prompts"
    )
    corpus, mark_S = subject.corpus, subject.corpus.marks.refusal
    findings = _one_sided(subject, "refusals", mark_S, "a response begins with a refusal", remedy)
    imitated = mark_S[corpus.chosen_S]
    if not findings and len(imitated) and imitated.mean() >= 0.1:
        rows = corpus.rows_of(mark_S & corpus.chosen_S)
        share = float(imitated.mean())
        message = f"{percent(share)} of the answers to imitate begin with a refusal"
        evidence = {"examples": _marked_examples(subject, mark_S)}
        findings = [AuditFinding("refusals", "note", message, share, corpus.refs(rows), evidence, remedy)]
    return findings


# ---------------------------------------------------------------- how a mark becomes a finding


def _one_sided(subject: Subject, check: str, mark_S: np.ndarray, what: str, remedy: str) -> list[AuditFinding]:
    """A finding where one side has the mark beyond chance."""
    corpus = subject.corpus
    sides = compare_sides(corpus.sides, mark_S)
    if not subject.has_enough_pairs or not sides.is_one_sided:
        return []
    rows = corpus.rows_of(mark_S)
    severity: AuditSeverity = "warning" if abs(sides.chosen - sides.rejected) >= 0.05 else "note"
    evidence = {**sides.evidence(), "examples": _marked_examples(subject, mark_S)}
    message = f"{what} {_lean(sides)}"
    return [AuditFinding(check, severity, message, len(rows) / len(corpus), corpus.refs(rows), evidence, remedy)]


def _one_sided_or_imitated(
    subject: Subject, check: str, mark_S: np.ndarray, what: str, remedy: str
) -> list[AuditFinding]:
    """A finding where one side has the mark beyond chance, or where what is to be imitated has it."""
    corpus = subject.corpus
    rows = corpus.rows_of(mark_S)
    if not len(rows):
        return []
    sides = compare_sides(corpus.sides, mark_S)
    imitated = float(mark_S[corpus.chosen_S].mean())
    # An uneven mark counts however rare it is: the reward model or the margin learns it first.
    uneven = subject.has_enough_pairs and sides.is_one_sided
    share = len(rows) / len(corpus)
    if not uneven and max(imitated, share) < NOTABLE_SHARE:
        return []
    severity: AuditSeverity = "warning" if uneven or imitated >= 0.05 else "note"
    message = f"{what} in {rows_text(len(rows))} ({percent(share)})" + (f", {_lean(sides)}" if uneven else "")
    evidence = {
        **sides.evidence(),
        "imitated_share": imitated,
        "examples": _marked_examples(subject, mark_S, from_end=True),
    }
    return [AuditFinding(check, severity, message, share, corpus.refs(rows), evidence, remedy)]


def _lean(sides: OneSided) -> str:
    return f"on {percent(sides.chosen)} of chosen and {percent(sides.rejected)} of rejected sides"


def _marked_examples(subject: Subject, mark_S: np.ndarray, *, from_end: bool = False) -> list[dict[str, str]]:
    corpus = subject.corpus
    shown = []
    for index in np.flatnonzero(mark_S)[:3].tolist():
        text = corpus.responses[index]
        row = int(corpus.row_S[index])
        side = "chosen" if corpus.chosen_S[index] else "other"
        shown.append({"row": str(corpus.ref(row)), "side": side, "text": excerpt(text[-160:] if from_end else text)})
    return shown
