"""What a template, a sampler or a scraper left in the responses."""

from __future__ import annotations

import re

import numpy as np

from posttrain.auditing.finding import Finding, Severity, excerpt, percent, rows_text
from posttrain.auditing.marks import ROLE, SPECIAL
from posttrain.auditing.subject import OneSided, Subject, compare_sides

EVERYWHERE = 0.9
"""Special tokens or role markers in this share of what is to be imitated: the model learns to write them, whatever
else the data says. An error; below it a warning, and a note under 1 %."""
SEEN = 0.01


def special_tokens(subject: Subject) -> list[Finding]:
    """Names of special tokens in responses: the encoder turns them into the tokens themselves."""
    remedy = (
        "the template writes these tokens itself: take them out of the text (or set "
        "encoding.special_tokens_in_text: refuse to leave such rows out)"
    )
    return _leaks(
        subject, "special_tokens", "the name of a special token", subject.corpus.marks.special, SPECIAL, remedy
    )


def role_markers(subject: Subject) -> list[Finding]:
    """ "Assistant:" and its kin at the beginning of a line."""
    remedy = (
        "strip the markers; where a response goes on with the user's next turn, cut it there: the model would learn to "
        "talk to itself"
    )
    return _leaks(
        subject, "role_markers", "a role marker at the beginning of a line", subject.corpus.marks.role, ROLE, remedy
    )


def _leaks(
    subject: Subject, check: str, what: str, mark_S: np.ndarray, pattern: re.Pattern[str], remedy: str
) -> list[Finding]:
    corpus = subject.corpus
    rows = corpus.rows_of(mark_S)
    if not len(rows):
        return []
    share = len(rows) / len(corpus)
    imitated = float(mark_S[corpus.chosen_S].mean()) if corpus.chosen_S.any() else 0.0
    sides = compare_sides(corpus.sides, mark_S)
    severity: Severity = "note" if share < SEEN else "warning"
    if imitated >= EVERYWHERE:
        severity = "error"
    found = sorted({match.strip() for match in _matches(subject, mark_S, pattern)})
    evidence = {
        **sides.evidence(),
        "imitated_share": imitated,
        "found": found[:8],
        "examples": _examples(subject, mark_S),
    }
    message = f"{what} stands in the responses of {rows_text(len(rows))} ({percent(share)})"
    if sides.is_one_sided:
        message += f", {_lean(sides)}"
    return [Finding(check, severity, message, share, corpus.refs(rows), evidence, remedy)]


def white_space(subject: Subject) -> list[Finding]:
    """Blanks at the beginning or the end of a response, where one side has them far more often."""
    corpus, found = subject.corpus, []
    for mark_S, where in ((corpus.marks.lead_space, "begins"), (corpus.marks.end_space, "ends")):
        remedy = "strip the responses: the blank is the first thing that tells the sides apart, and the model learns it"
        found += _one_sided(subject, "white_space", mark_S, f"a response {where} with white space", remedy)
        imitated = mark_S[corpus.chosen_S]
        if not len(corpus.sides) and len(imitated) and SEEN <= imitated.mean() < 1 - SEEN:
            rows = corpus.rows_of(mark_S)
            share = len(rows) / len(corpus)
            message = f"{len(rows):,} responses ({percent(share)}) {where[:-1]} with white space, the others do not"
            found.append(Finding("white_space", "note", message, share, corpus.refs(rows), {}, "strip the responses"))
    return found


def unbalanced_marks(subject: Subject) -> list[Finding]:
    """Think tags that do not pair up, and code fences without an end."""
    found = []
    for mark_S, what in (
        (subject.corpus.marks.think, "a think tag without its partner"),
        (subject.corpus.marks.fence, "a code fence without its end"),
    ):
        remedy = "complete or drop these responses: they were cut, or a filter has torn them"
        found += _either(subject, "unbalanced_marks", mark_S, what, remedy)
    return found


def truncation(subject: Subject) -> list[Finding]:
    """Responses that stop in the middle of a sentence."""
    remedy = (
        "leave the rows out or let the answers be written to their end; a side that is cut is told by its last word, "
        "and a chosen side that is cut teaches the model to stop anywhere"
    )
    return _either(subject, "truncation", subject.corpus.marks.cut, "an end in the middle of a sentence", remedy)


def refusals(subject: Subject) -> list[Finding]:
    """Responses that begin with a refusal, and the side they are on."""
    remedy = (
        "mean it: chosen refusals teach refusing, rejected ones teach compliance; check that the prompts deserve it, "
        "and watch the refusal rate of the trained model on harmless prompts"
    )
    corpus, mark_S = subject.corpus, subject.corpus.marks.refusal
    found = _one_sided(subject, "refusals", mark_S, "a response begins with a refusal", remedy)
    imitated = mark_S[corpus.chosen_S]
    if not found and len(imitated) and imitated.mean() >= 0.1:
        rows = corpus.rows_of(mark_S & corpus.chosen_S)
        share = float(imitated.mean())
        message = f"{percent(share)} of the answers to imitate begin with a refusal"
        found = [
            Finding(
                "refusals", "note", message, share, corpus.refs(rows), {"examples": _examples(subject, mark_S)}, remedy
            )
        ]
    return found


# ---------------------------------------------------------------- how a mark becomes a finding


def _one_sided(subject: Subject, check: str, mark_S: np.ndarray, what: str, remedy: str) -> list[Finding]:
    """A finding where one side has the mark beyond chance."""
    corpus = subject.corpus
    sides = compare_sides(corpus.sides, mark_S)
    if not subject.has_enough_pairs or not sides.is_one_sided:
        return []
    rows = corpus.rows_of(mark_S)
    severity: Severity = "warning" if abs(sides.chosen - sides.rejected) >= 0.05 else "note"
    evidence = {**sides.evidence(), "examples": _examples(subject, mark_S)}
    message = f"{what} {_lean(sides)}"
    return [Finding(check, severity, message, len(rows) / len(corpus), corpus.refs(rows), evidence, remedy)]


def _either(subject: Subject, check: str, mark_S: np.ndarray, what: str, remedy: str) -> list[Finding]:
    """A finding where one side has the mark beyond chance, or where what is to be imitated has it."""
    corpus = subject.corpus
    rows = corpus.rows_of(mark_S)
    if not len(rows):
        return []
    sides = compare_sides(corpus.sides, mark_S)
    imitated = float(mark_S[corpus.chosen_S].mean())
    uneven = subject.has_enough_pairs and sides.is_one_sided
    share = len(rows) / len(corpus)
    if not uneven and max(imitated, share) < SEEN:
        return []
    severity: Severity = "warning" if uneven or imitated >= 0.05 else "note"
    message = f"{what} in {rows_text(len(rows))} ({percent(share)})" + (f", {_lean(sides)}" if uneven else "")
    evidence = {**sides.evidence(), "imitated_share": imitated, "examples": _examples(subject, mark_S, from_end=True)}
    return [Finding(check, severity, message, share, corpus.refs(rows), evidence, remedy)]


def _lean(sides: OneSided) -> str:
    return f"on {percent(sides.chosen)} of chosen and {percent(sides.rejected)} of rejected sides"


def _examples(subject: Subject, mark_S: np.ndarray, *, from_end: bool = False) -> list[dict[str, str]]:
    corpus = subject.corpus
    shown = []
    for index in np.flatnonzero(mark_S)[:3].tolist():
        text = corpus.responses[index]
        row = int(corpus.row_S[index])
        side = "chosen" if corpus.chosen_S[index] else "other"
        shown.append({"row": str(corpus.ref(row)), "side": side, "text": excerpt(text[-160:] if from_end else text)})
    return shown


def _matches(subject: Subject, mark_S: np.ndarray, pattern: re.Pattern[str]) -> list[str]:
    texts = (subject.corpus.responses[index] for index in np.flatnonzero(mark_S)[:50].tolist())
    found = [pattern.search(text) for text in texts]
    return [match.group() for match in found if match]
