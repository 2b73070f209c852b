"""What the pattern checks look for in a response, found in one pass over the texts.

`corpus.py` counts these marks once; `artefacts.py` and `language.py` turn them into findings. Most texts have none of
the marks, so each pattern stands behind a test by `in`, which is much cheaper.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np

SPECIAL_PATTERN = re.compile(
    r"<\|[\w .:-]{1,40}\|>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<(?:bos|eos|pad|unk)>|\[(?:PAD|CLS|SEP)\]"
    r"|<\uff5c[^>\n]{1,40}\uff5c>|<\|(?:im_start|im_end)\b"
)
"""Names of special tokens of the common chat templates (ChatML, Llama 2 and 3, Gemma, Mistral, Phi, DeepSeek)."""
ROLE_PATTERN = re.compile(
    r"(?:^|\n)[ \t#*]{0,6}(?:Human|User|Assistant|System|Instruction|Response|AI|Bot)[ \t]?:|"
    r"(?:^|\n)### ?(?:Human|User|Assistant|System|Instruction|Response|Input)\b",
    re.IGNORECASE,
)
"""A speaker's name at the beginning of a line, as templates without special tokens write it."""
CUT_PATTERN = re.compile(
    r"(?:\[\s*(?:truncated|cut off|continued|to be continued)\s*\]|\[\.\.\.\]|<truncated>)\s*$", re.IGNORECASE
)
_CANNOT = r"(?:can(?:'|\u2019)?t|cannot|can not)"
_WILL_NOT = r"(?:won(?:'|\u2019)?t|will not)"
_DO_NOT = r"(?:don(?:'|\u2019)?t|do not)"
_AM = r"(?:i(?:'|\u2019)?m|i am)"
_DEED = r"(?:help|assist|fulfil+|comply|provide|answer|do that|engage|support|create|write|generate|discuss|continue)\b"
REFUSAL_PATTERN = re.compile(
    rf"\b{_AM} (?:very |so |really |truly )?(?:sorry|afraid|unable)\b.{{0,60}}"
    rf"\b(?:{_CANNOT}|unable|not able|{_WILL_NOT}|{_DO_NOT}|not comfortable)\b"
    rf"|\b(?:i (?:{_CANNOT}|{_WILL_NOT})|{_AM} (?:not able to|unable to)) (?:\w+ )?{_DEED}"
    rf"|\b(?:sorry|apologi[sz]e),? but i (?:{_CANNOT}|am unable|{_WILL_NOT})\b"
    rf"|\bas an? (?:ai|artificial intelligence)(?: language)?(?: model| assistant)?,? "
    rf"i (?:{_CANNOT}|am not able|{_DO_NOT})\b"
    r"|\u62b1\u6b49.{0,12}(?:\u65e0\u6cd5|\u4e0d\u80fd)"
    r"|\u4f5c\u4e3a(?:\u4e00\u4e2a)?(?:AI|\u4eba\u5de5\u667a\u80fd).{0,12}(?:\u65e0\u6cd5|\u4e0d\u80fd)",
    re.IGNORECASE | re.DOTALL,
)
"""The common forms in English, and two in Chinese."""
REFUSAL_REACH = 240
"""A refusal is looked for in this many characters from the beginning: further down, "I cannot" is talk."""
_MAY_REFUSE = re.compile(
    rf"sorry|unable|not able|{_CANNOT}|{_WILL_NOT}|as an? a|\u65e0\u6cd5|\u4e0d\u80fd", re.IGNORECASE
)
MOJIBAKE_PATTERN = re.compile(
    "\u00c3[\u0080-\u00bf\u0192\u201a\u00a9\u0178\u0153\u017e]|\u00e2\u20ac[\u0098-\u009f\u2122\u0153\u201c\u201d\u00a6\u00a2\u02dc]|\u00e2\u0080[\u0080-\u00bf]"
    "|\u00c2[\u00a0-\u00bf]|\u00ef\u00bf\u00bd|\u00ef\u00bb\u00bf|\u00f0\u0178|(?:\u00d0[\u0080-\u00bf\u00b0-\u00bf]){2}"
)
"""UTF-8 that was read as Latin-1 or Windows-1252: an accent, a typographic quote, an emoji in two or three signs."""
STRAY_PATTERN = re.compile("[\u0001-\u0008\u000b\u000e-\u001f\u007f-\u009f\u200b\u2060\ufeff]")
"""Control characters and invisible ones without meaning in running text; joiners of scripts and emoji are not here."""
_SENTENCE_ENDS = set(".!?\"')]}*`>:;|~\u2026\u3002\uff01\uff1f\u201d\u2019\u300d\uff09\u2014-_/\\$%=+#&^")
_LIST_LINE = re.compile(r"\s*(?:[-*\u2022+]|\d+[.)])\s|\s*\|")
_LONG = 240
"""Characters from which on the lack of an end says something: short answers often have none."""

NULL_WORDS = frozenset(
    ("nan", "NaN", "NAN", "None", "null", "NULL", "Null", "undefined", "<NA>", "NaT", "<null>", "#N/A")
)
"""How programs write a value that is missing."""
SURE_NULL_WORDS = frozenset(("nan", "NaN", "NAN", "<NA>", "NaT", "<null>", "#N/A"))
"""Those that no person answers with; "None" and "null" may be the answer."""

SCRIPTS = {
    "Cyrillic": "\u0400-\u052f",
    "Greek": "\u0370-\u03ff",
    "Arabic": "\u0600-\u06ff\u0750-\u077f",
    "Hebrew": "\u0590-\u05ff",
    "Devanagari": "\u0900-\u097f",
    "Thai": "\u0e00-\u0e7f",
    "Japanese": "\u3040-\u30ff",
    "Korean": "\uac00-\ud7af\u1100-\u11ff",
    "Chinese": "\u3400-\u4dbf\u4e00-\u9fff",
}
_SCRIPT_PATTERNS = {name: re.compile(f"[{ranges}]") for name, ranges in SCRIPTS.items()}
_LATIN = re.compile("[A-Za-z\u00c0-\u024f]")
SCRIPT_NAMES = ("none", "Latin", *SCRIPTS)


@dataclass(frozen=True, slots=True)
class Marks:
    """One entry for each response, [S].

    Marks(special=[False, True, ...], role=..., lead_space=..., end_space=..., think=..., fence=..., cut=...,
          refusal=..., mojibake=..., replaced=..., stray=..., script=[1, 1, ...])
    """

    special: np.ndarray
    """The name of a special token."""
    role: np.ndarray
    """A role marker at the beginning of a line."""
    lead_space: np.ndarray
    end_space: np.ndarray
    think: np.ndarray
    """Think tags that do not pair up."""
    fence: np.ndarray
    """An odd number of code fences."""
    cut: np.ndarray
    """Ends in the middle of a sentence, or says that it is cut."""
    refusal: np.ndarray
    mojibake: np.ndarray
    replaced: np.ndarray
    """U+FFFD, which stands for bytes that nobody could read."""
    stray: np.ndarray
    """Control or invisible characters."""
    script: np.ndarray
    """Index into SCRIPT_NAMES: the script of most letters."""


def marks_of(texts: Iterable[str]) -> Marks:
    # A list per mark and one array at the end: an array that grows text by text would be copied each time.
    columns: list[list[int]] = [[] for _ in fields(Marks)]
    for text in texts:
        for column, value in zip(columns, _marks_in(text), strict=True):
            column.append(value)
    *flags, scripts = columns  # the script is a number, and the last field
    names = [field.name for field in fields(Marks)]
    arrays = {name: np.array(flag, dtype=bool) for name, flag in zip(names, flags, strict=False)}
    return Marks(**arrays, script=np.array(scripts, dtype=np.int8))


def _marks_in(text: str) -> tuple[int, ...]:
    is_ascii = text.isascii()
    beginning = text[:REFUSAL_REACH]
    return (
        ("<" in text or "[" in text) and SPECIAL_PATTERN.search(text) is not None,
        _may_name_a_role(text) and ROLE_PATTERN.search(text) is not None,
        text[:1].isspace(),
        text[-1:].isspace(),
        "think>" in text and _think_is_unbalanced(text),
        text.count("```") % 2 == 1,
        ends_mid_sentence(text),
        _MAY_REFUSE.search(beginning) is not None and REFUSAL_PATTERN.search(beginning) is not None,
        not is_ascii and MOJIBAKE_PATTERN.search(text) is not None,
        not is_ascii and "\ufffd" in text,
        not text.isprintable() and STRAY_PATTERN.search(text) is not None,
        script_of(text),
    )


_ROLE_NAMES = (
    "human",
    "user",
    "assistant",
    "system",
    "instruction",
    "response",
    "ai:",
    "ai :",
    "bot:",
    "bot :",
    "input",
)


def _may_name_a_role(text: str) -> bool:
    """A quick look, since the pattern has to try every line."""
    if ":" not in text and "###" not in text:
        return False
    low = text.lower()
    return any(name in low for name in _ROLE_NAMES)


def _think_is_unbalanced(text: str) -> bool:
    return any(text.count(f"<{tag}>") != text.count(f"</{tag}>") for tag in ("think", "thinking", "reasoning"))


def ends_mid_sentence(text: str) -> bool:
    """Whether a text stops in the middle: it says so, or it is long and its last line of prose ends in a word."""
    end = text.rstrip()
    # A closing bracket ends code, tables and tags as well: there only the words of a cut count.
    if end.endswith("]") or end.endswith(">"):
        return CUT_PATTERN.search(end) is not None
    if len(end) < _LONG or end[-1] in _SENTENCE_ENDS or not (end[-1].isalnum() or end[-1] in ",("):
        return False
    line = end[end.rfind("\n") + 1 :]
    # A list's item, a heading, a signature or a line of verse needs no full stop; a sentence of some length does.
    return end.count("```") % 2 == 0 and len(line) >= 60 and _LIST_LINE.match(line) is None


def script_of(text: str) -> int:
    """Index into SCRIPT_NAMES of the script that most letters are of; kana make a text Japanese."""
    if text.isascii():
        return 1 if _LATIN.search(text) else 0
    counts = {name: len(pattern.findall(text)) for name, pattern in _SCRIPT_PATTERNS.items()}
    # Japanese is written in kana and Chinese characters; a Chinese text with a Japanese name has very few kana.
    if counts["Japanese"] > 0.1 * counts["Chinese"] and counts["Japanese"]:
        counts["Japanese"] += counts.pop("Chinese")
    name, most = max(counts.items(), key=lambda entry: entry[1])
    # A character of these scripts says more than a letter: names and code in Latin do not make a text Latin.
    weight = 3 if name in ("Chinese", "Japanese", "Korean") else 1
    latin = len(_LATIN.findall(text))
    if not most and not latin:
        return 0
    return SCRIPT_NAMES.index(name) if weight * most > latin else 1
