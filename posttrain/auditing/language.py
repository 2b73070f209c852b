"""Languages, scripts and broken characters.

Checks of `checks.py`. The language is a guess by script and stop words: no model and no download, but sure only of
texts with several common words, and silent about the others.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np

from posttrain.auditing.finding import AuditFinding, AuditSeverity, excerpt, percent, rows_text
from posttrain.auditing.marks import SCRIPT_NAMES, script_of
from posttrain.auditing.subject import Subject, compare_sides

STOP_WORDS = {
    "English": "the and is of to in that it for you with are this on as be have not can your what how",
    "German": "der die und das ist nicht ein eine zu mit sich auf für von dem den wie auch wird sind ich",
    "French": "le la les et est des une un pour que dans qui pas vous avec sur ce au du je nous sont",
    "Spanish": "el los las y es de que en un una por con para su se del lo como más pero sus está",
    "Portuguese": "o os as e é de que em um uma por com para não se do da como mais mas seu ao",
    "Italian": "il lo gli e è di che in un una per con non si del della come più ma sono anche",
    "Dutch": "de het een en van is dat niet op te zijn met voor er aan ook maar wat je bij",
    "Polish": "i w nie na się że z to jest do jak o co po ale za od przez czy są dla",
    "Turkish": "bir ve bu da de için ile çok ne daha gibi olarak var ama en kadar olan değil",
    "Vietnamese": "và là của có một cho không được với các trong những này để khi người đã",
}
_LANGUAGES: dict[str, list[str]] = {word: [] for words in STOP_WORDS.values() for word in words.split()}
for _name, _words in STOP_WORDS.items():
    for _word in _words.split():
        _LANGUAGES[_word].append(_name)
_LETTER_RUN = re.compile(r"[^\W\d_]+")
_READ_CHARACTERS = 600
_FEWEST_STOP_WORDS = 4
"""Stop words that a text must have, and twice those of the next language, before a language is called by name."""
MIXED_LANGUAGES = 0.02
BROKEN_TEXTS = 0.01


def encoding(subject: Subject) -> list[AuditFinding]:
    """Characters that show that the text was read in the wrong encoding, lost, or meant for machines."""
    corpus = subject.corpus
    findings = []
    for mark_S, what, remedy in (
        (
            corpus.marks.mojibake,
            "mojibake (UTF-8 that was read as Latin-1)",
            "read the source as UTF-8 again, or repair the text (ftfy does)",
        ),
        (
            corpus.marks.replaced,
            "the replacement character U+FFFD",
            "go back to the source: the bytes were lost when it was decoded",
        ),
        (
            corpus.marks.stray,
            "control or invisible characters",
            "strip them: each is a token that the model learns to write",
        ),
    ):
        rows = corpus.rows_of(mark_S)
        if not len(rows):
            continue

        share = len(rows) / len(corpus)
        severity: AuditSeverity = "warning" if share >= BROKEN_TEXTS else "note"
        message = f"{what} in the responses of {rows_text(len(rows))} ({percent(share)})"
        examples = [
            {"row": str(corpus.ref(int(corpus.row_S[index]))), "text": excerpt(corpus.responses[index])}
            for index in np.flatnonzero(mark_S)[:3].tolist()
        ]
        evidence = {**compare_sides(corpus.sides, mark_S).evidence(), "examples": examples}
        findings.append(AuditFinding("encoding", severity, message, share, corpus.refs(rows), evidence, remedy))
    return findings


def languages(subject: Subject) -> list[AuditFinding]:
    """Answers in another language than their prompt, and a language that one side has far more often."""
    corpus = subject.corpus
    prompts = [detect_language(text) for text in corpus.prompts]
    answers = [detect_language(text) for text in corpus.responses]
    counted = Counter(name for name in answers if name)
    # Only where both languages are known: a text that is too short to tell must not count as another language.
    other_S = np.array(
        [
            bool(answer and prompt and answer != prompt)
            for answer, prompt in zip(answers, (prompts[row] for row in corpus.row_S.tolist()), strict=True)
        ],
        dtype=bool,
    )

    evidence: dict[str, Any] = {"languages": dict(counted.most_common(8))}
    findings = []

    sides = compare_sides(corpus.sides, other_S)
    imitated = float(other_S[corpus.chosen_S].mean()) if len(answers) else 0.0
    # Between the sides first: a translation task answers in another language on both, and nothing is wrong with it.
    uneven = subject.has_enough_pairs and sides.is_one_sided
    if uneven or imitated >= MIXED_LANGUAGES:
        rows = corpus.rows_of(other_S)
        share = len(rows) / len(corpus)
        severity: AuditSeverity = "warning" if uneven and abs(sides.chosen - sides.rejected) >= 0.05 else "note"
        message = f"{rows_text(len(rows))} ({percent(share)}) are answered in another language than they are asked in"
        if uneven:
            message += f": {percent(sides.chosen)} of chosen and {percent(sides.rejected)} of rejected sides"
        evidence |= sides.evidence() | {"examples": _language_examples(subject, other_S, prompts, answers)}
        remedy = (
            "check that translation is asked for; else the language of the answer tells the winner, or gets mixed up"
        )
        findings.append(AuditFinding("languages", severity, message, share, corpus.refs(rows), evidence, remedy))
    return findings


def detect_language(text: str) -> str:
    """The language of a text by its script, or, in Latin letters, by its commonest words; "" if neither is sure."""
    head = text[:_READ_CHARACTERS]
    # Other scripts name a language or a family well enough; only Latin letters are shared by many.
    script = SCRIPT_NAMES[script_of(head)]
    if script != "Latin":
        return script if script != "none" else ""
    # A word of several languages ("de", "en") counts for each of them; the lead over the next one settles it.
    counts = Counter(name for word in _LETTER_RUN.findall(head.lower()) for name in _LANGUAGES.get(word, ()))
    (name, most), (_, next_most) = [*counts.most_common(2), ("", 0), ("", 0)][:2]
    return name if most >= _FEWEST_STOP_WORDS and most >= 2 * next_most else ""


def _language_examples(
    subject: Subject, mark_S: np.ndarray, prompts: list[str], answers: list[str]
) -> list[dict[str, str]]:
    corpus = subject.corpus
    shown = []
    for index in np.flatnonzero(mark_S)[:3].tolist():
        row = int(corpus.row_S[index])
        shown.append(
            {
                "row": str(corpus.ref(row)),
                "asked_in": prompts[row],
                "answered_in": answers[index],
                "text": excerpt(corpus.responses[index]),
            }
        )
    return shown
