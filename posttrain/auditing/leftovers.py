"""What a conversion leaves in texts: the prompt once more, the word "nan", turns as JSON, HTML entities.

Checks of `checks.py`; each looks at prompts and responses, in rows of every kind. The functions that recognise a fault
in one text are shared with `mend.py`, so that what `--fix` changes is what the finding named.
"""

from __future__ import annotations

import ast
import html
import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from posttrain.auditing.corpus import Corpus
from posttrain.auditing.finding import AuditFinding, AuditSeverity, excerpt, percent, rows_text
from posttrain.auditing.marks import NULL_WORDS, SURE_NULL_WORDS
from posttrain.auditing.subject import NOTABLE_SHARE, PERVASIVE_SHARE, Subject, compare_sides

HABIT_SHARE = 0.05
"""Answers may restate their question now and then: from here on it is a habit."""
ERROR_SHARE = 0.5

# ---------------------------------------------------------------- the prompt once more

FEWEST_PROMPT_WORDS, FEWEST_PROMPT_LETTERS = 3, 12
"""Of a prompt that counts as repeated; "Hi" is also the beginning of an answer."""
_ASKER_LABEL = re.compile(
    r"\s*(?:(?:user|human|question|prompt|instruction|q)\s*:|###\s*(?:human|user|instruction)\s*:?)?\s*", re.I
)
_ASKS_FOR_REPETITION = re.compile(
    r"(?:^|\n|[.:!?]\s|\bplease\s|\bfirst,?\s|\bto\s)[^\S\n]*(?:repeat|echo|copy|rewrite|continue|complete|finish)\b"
    r"|\bverbatim\b|\bword for word\b|\brepeat (?:the|this|my|it)\b",
    re.I,
)
"""Prompts after which a repetition is no fault. Blanks alone follow the first group, which has line breaks itself: as
`\\s*` it would run over a long gap from each of its lines."""


def repeated_length(turn: str, response: str) -> int:
    """How many characters at the response's beginning repeat the user's turn; 0 where they do not."""
    question = turn.strip()
    if len(question) < FEWEST_PROMPT_LETTERS or (question.isascii() and len(question.split()) < FEWEST_PROMPT_WORDS):
        return 0
    label = _ASKER_LABEL.match(response)
    # With the label and without: "Question:" may be the asker's mark, or the first word of the prompt itself.
    for start in sorted({label.end() if label is not None else 0, len(response) - len(response.lstrip())}):
        end = start + len(question)
        # Not in the middle of a word: the prompt "Name a cat" is no beginning of the answer "Name a category".
        if response.startswith(question, start) and not response[end : end + 1].isalnum():
            return end
    return 0


def repeats_prompt(turn: str, response: str) -> bool:
    """Whether a response begins with the user's turn, which did not ask for that."""
    return repeated_length(turn, response) > 0 and _ASKS_FOR_REPETITION.search(turn) is None


def repeated_prompt(subject: Subject) -> list[AuditFinding]:
    """Responses that begin with the prompt that they answer."""
    corpus = subject.corpus
    mark_S = np.zeros(len(corpus.responses), dtype=bool)
    row_S = corpus.row_S.tolist()
    for index, response in enumerate(corpus.responses):
        mark_S[index] = repeats_prompt(corpus.last_turn(row_S[index]), response)

    rows = corpus.rows_of(mark_S)
    share = len(rows) / max(1, len(corpus))
    imitated = float(mark_S[corpus.chosen_S].mean()) if corpus.chosen_S.any() else 0.0
    sides = compare_sides(corpus.sides, mark_S)
    uneven = subject.has_enough_pairs and sides.is_one_sided
    if not uneven and max(imitated, share) < NOTABLE_SHARE:
        return []

    severity: AuditSeverity = "warning" if uneven or share >= HABIT_SHARE else "note"
    if imitated >= PERVASIVE_SHARE:
        severity = "error"
    message = f"a response begins with its own prompt in {rows_text(len(rows))} ({percent(share)})"
    if len(corpus.sides):
        message += f", on {percent(sides.chosen)} of chosen and {percent(sides.rejected)} of rejected sides"
    examples = [
        {"row": str(corpus.ref(row_S[index])), "text": excerpt(corpus.responses[index])}
        for index in np.flatnonzero(mark_S)[:3].tolist()
    ]
    remedy = (
        "the prompt trains once more as if the model had to say it; take it off the responses (`--fix` does), and read "
        "files that hold the whole conversation in each side with a format that knows that"
    )
    evidence = {**sides.evidence(), "imitated_share": imitated, "examples": examples}
    return [AuditFinding("repeated_prompt", severity, message, share, corpus.refs(rows), evidence, remedy)]


# ---------------------------------------------------------------- nothing, as a word


def null_words(subject: Subject) -> list[AuditFinding]:
    """Prompts, inputs and answers that are the word by which a program says that there is nothing."""
    corpus = subject.corpus
    null_lines = [(row, null_line(text)) for row, text in enumerate(corpus.prompts)]
    # In an instruction of one line and its input, "None" is an empty column; in a longer prompt it may be program text.
    prompts = _unless_rare(
        corpus,
        {row: word for row, word in null_lines if word},
        lambda row: corpus.prompts[row].count("\n") <= 1,
    )

    answers: dict[int, str] = dict.fromkeys(corpus.null_answers, "nan")
    for index, text in enumerate(corpus.responses):
        if text.strip() in NULL_WORDS:
            answers[int(corpus.row_S[index])] = text.strip()

    findings = []
    for rows, what, where in (
        (prompts, "a prompt or its input", "input"),
        (_unless_rare(corpus, answers, lambda row: False), "an answer", "answer"),
    ):
        if rows:
            share = len(rows) / len(corpus)
            worst: AuditSeverity = "error" if where == "answer" and share >= ERROR_SHARE else "warning"
            message = f"{what} is the word of a program for nothing (nan, None, null) in {rows_text(len(rows))}"
            remedy = (
                "leave the field out where the source had nothing: a table library wrote the word (pandas: "
                "`fillna('')` before writing); `--fix` empties such inputs, and drops rows without prompt or answer"
            )
            evidence = {"what": where, "examples": _prompt_examples(subject, rows)}
            findings.append(
                AuditFinding(
                    "null_words",
                    worst if share >= NOTABLE_SHARE else "note",
                    f"{message} ({percent(share)})",
                    share,
                    corpus.refs(rows),
                    evidence,
                    remedy,
                )
            )
    return findings


def null_line(text: str) -> str:
    """The null word that is a prompt's last line or first paragraph, as in "Translate.\\nnan"; "" if there is none."""
    # As the first paragraph only the sure words count: a person may well begin a prompt with "None".
    last = text[-60:].rpartition("\n")[2].strip()
    if last in NULL_WORDS:
        return last
    first = text[:60].partition("\n\n")[0].strip()
    return first if first in SURE_NULL_WORDS else ""


def _unless_rare(corpus: Corpus, words: dict[int, str], sure: Callable[[int], bool]) -> list[int]:
    """Rows whose word is sure to be no person's, and the others if there are many: one "None" is an answer."""
    certain = [row for row, word in words.items() if word in SURE_NULL_WORDS or sure(row)]
    unsure = sorted(set(words) - set(certain))
    return sorted([*certain, *(unsure if len(unsure) >= max(2, HABIT_SHARE * len(corpus)) else [])])


# ---------------------------------------------------------------- turns as text

_MAY_BE_TURNS = re.compile(
    r"\s*(?:\[\s*)?\{\s*['\"](?:role|from|content|value|text|messages|conversations?|speaker)['\"]\s*:"
)
_TURN_KEYS = (("role", "content"), ("from", "value"), ("speaker", "text"), ("role", "value"))
LONGEST_TURNS = 200_000
_ASSISTANT_LINE = re.compile(r"(?:^|\n)[ \t#*<|]{0,6}(?:im_start\|>)?(?:assistant|gpt|bot)\b[ \t]?[:|\n>]", re.I)
_USER_LINE = re.compile(r"(?:^|\n)[ \t#*<|]{0,6}(?:im_start\|>)?(?:human|user)\b[ \t]?[:|\n>]", re.I)


def is_turns(text: str) -> bool:
    """Whether a text is a list of turns, as JSON or as Python prints it."""
    if len(text) > LONGEST_TURNS or _MAY_BE_TURNS.match(text) is None:
        return False
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        # Python's own notation, as `str(turns)` writes it: single quotes and None; literals only, nothing is run.
        try:
            value = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return False
    return _holds_turns(value)


def _holds_turns(value: Any) -> bool:
    if isinstance(value, dict):
        inner = value.get("messages") or value.get("conversations") or value.get("conversation")
        return _holds_turns(inner) if inner else _has_turn_keys(value)
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(turn, dict) and _has_turn_keys(turn) for turn in value)
    )


def _has_turn_keys(value: dict[str, Any]) -> bool:
    return any(set(keys) <= set(value) and isinstance(value[keys[0]], str) for keys in _TURN_KEYS)


def is_dialogue(text: str) -> bool:
    """Whether both sides of a conversation speak in a text, each at the beginning of a line."""
    return _USER_LINE.search(text) is not None and _ASSISTANT_LINE.search(text) is not None


def stored_turns(subject: Subject) -> list[AuditFinding]:
    """Conversations that are stored as one text: a list of turns as JSON, or a transcript with names."""
    corpus = subject.corpus
    findings = []
    row_S: Sequence[int] = corpus.row_S.tolist()
    in_prompts = {row for row, text in enumerate(corpus.prompts) if is_turns(text)}
    in_responses = {row_S[index] for index, text in enumerate(corpus.responses) if is_turns(text)}
    turns = sorted(in_prompts | in_responses)
    if turns:
        share = len(turns) / len(corpus)
        findings.append(
            AuditFinding(
                "stored_turns",
                "error" if share >= ERROR_SHARE else "warning",
                f"a text is a list of turns, stored as JSON, in {rows_text(len(turns))} ({percent(share)})",
                share,
                corpus.refs(turns),
                {"kind": "json", "examples": _prompt_examples(subject, turns)},
                "store the turns as a list, not as text: as it is, brackets and quotation marks train, and roles do "
                "not reach the template; `json.loads` of the column does it",
            )
        )

    spoken = [row for row, text in enumerate(corpus.prompts) if is_dialogue(text)]
    share = len(spoken) / max(1, len(corpus))
    if spoken and share >= HABIT_SHARE:
        findings.append(
            AuditFinding(
                "stored_turns",
                "warning" if share >= ERROR_SHARE else "note",
                f"a prompt is a transcript that names both speakers in {rows_text(len(spoken))} ({percent(share)})",
                share,
                corpus.refs(spoken),
                {"kind": "transcript", "examples": _prompt_examples(subject, spoken)},
                "if these are the conversation itself, split them into turns (`messages`), so that the template writes "
                "the roles; if the prompt is about a conversation, all is well",
            )
        )
    return findings


# ---------------------------------------------------------------- HTML entities

ENTITY = re.compile(
    r"&(?:lt|gt|amp|quot|apos|nbsp|hellip|mdash|ndash|[lr]squo|[lr]dquo|copy|eacute|#\d{2,6}|#[xX][0-9a-fA-F]{2,5});"
)
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)
_MARKUP = re.compile(
    r"</[a-zA-Z]|<(?:br|p|div|a|img|b|i|li|ul|td|tr|span|html|body|h\d|!--|\?xml)\b[^<>]{0,200}>", re.I
)
_ABOUT_MARKUP = re.compile(
    r"\b(?:html?|xml|xhtml|svg|entit(?:y|ies)|escap(?:e|ed|ing)|unescape|markup|href|jsx|rss|webpage)\b", re.I
)


def has_entities(text: str) -> bool:
    """Whether prose holds HTML entities: outside of code, and in a text that neither is markup nor speaks of it."""
    if "&" not in text or ENTITY.search(text) is None:
        return False
    # A lesson about HTML, or code, has entities on purpose: mending those would change what is taught.
    prose = _CODE.sub(" ", text)
    return ENTITY.search(prose) is not None and _MARKUP.search(prose) is None and _ABOUT_MARKUP.search(prose) is None


def unescaped(text: str) -> str:
    """Without HTML entities, code aside; twice, for `&amp;lt;` is an entity that was escaped again."""
    parts, start = [], 0
    for code in _CODE.finditer(text):
        parts += [html.unescape(html.unescape(text[start : code.start()])), code.group()]
        start = code.end()
    return "".join([*parts, html.unescape(html.unescape(text[start:]))])


def html_entities(subject: Subject) -> list[AuditFinding]:
    """Texts from web pages whose entities nobody turned back: &lt; for <, &#39; for an apostrophe."""
    corpus = subject.corpus
    prompts = {row for row, text in enumerate(corpus.prompts) if has_entities(text)}
    about = {
        row for row, text in enumerate(corpus.prompts) if _ABOUT_MARKUP.search(text)
    }  # asked for markup, given some
    mark_S = np.array([has_entities(text) for text in corpus.responses], dtype=bool)
    answers = {row for row in corpus.rows_of(mark_S).tolist() if row not in about} if len(mark_S) else set()
    rows = sorted(prompts | answers)
    if not rows:
        return []
    share = len(rows) / len(corpus)
    sides = compare_sides(corpus.sides, mark_S)
    texts = [corpus.prompts[row] for row in sorted(prompts)[:20]]
    texts += [corpus.responses[index] for index in np.flatnonzero(mark_S)[:20].tolist()]
    names = sorted({match for text in texts for match in ENTITY.findall(text)})
    evidence = {**sides.evidence(), "found": names[:8], "examples": _prompt_examples(subject, rows)}
    remedy = "turn them back (html.unescape): the model learns to write them; `--fix` does it, outside of code"
    severity: AuditSeverity = "warning" if share >= NOTABLE_SHARE else "note"
    message = f"HTML entities stand in the texts of {rows_text(len(rows))} ({percent(share)}), which are no HTML"
    return [AuditFinding("html_entities", severity, message, share, corpus.refs(rows), evidence, remedy)]


# ---------------------------------------------------------------- of several checks


def _prompt_examples(subject: Subject, rows: Iterable[int]) -> list[dict[str, str]]:
    corpus = subject.corpus
    return [{"row": str(corpus.ref(row)), "text": excerpt(corpus.prompts[row])} for row in list(rows)[:3]]
