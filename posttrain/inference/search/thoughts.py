"""What the model is asked about its own thoughts, and how its replies are read.

    filled("Question: {question}", question="2 + 2?")      # "Question: 2 + 2?"
    listed("1. add\\n2. multiply")                         # ["add", "multiply"]
    word_value("... so: sure"); mark_value("8"); vote_of("The best is 2.", 3)     # 20.0, 8.0, 1

A reply that says none of what was asked for counts as nothing: no value, no vote.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

WORD_VALUES = {"sure": 20.0, "likely": 1.0, "maybe": 1.0, "impossible": 0.001}
"""Yao et al. 2023, arXiv:2305.10601, in the code of its Game of 24; "maybe" is asked for and "likely" read too."""

_PLACE = re.compile(r"\{([a-z_]+)\}")
_ITEM = re.compile(r"^\s*(?:\(?\d+\s*[.):]|[-*•])\s*(.+?)\s*$")
_WORD = re.compile(rf"\b({'|'.join(WORD_VALUES)})\b", re.IGNORECASE)
_MARK = re.compile(r"(?<![\d.])(10|[1-9])(?![\d.]*\d)")
_NUMBER = re.compile(r"(?<![\d.])(\d+)(?![\d.]*\d)")


def filled(prompt: str, **places: str) -> str:
    """The prompt with what stands in braces replaced.

    In one pass: a question that itself says {thoughts} stays as it is.
    """
    return _PLACE.sub(lambda found: places.get(found[1], found[0]), prompt)


def numbered(texts: Sequence[str]) -> str:
    return "\n\n".join(f"{number}.\n{text.strip()}" for number, text in enumerate(texts, 1))


def listed(reply: str) -> list[str]:
    """The items of a list; of a reply without any, its lines. Equal ones once."""
    lines = reply.splitlines()
    items = [found[1] for line in lines if (found := _ITEM.match(line))] or [line.strip() for line in lines]
    return list(dict.fromkeys(item for item in items if item))


def word_value(reply: str) -> float | None:
    """The value of the last of the words that the reply says: it may reason before it judges."""
    found = _WORD.findall(reply)
    return WORD_VALUES[found[-1].lower()] if found else None


def mark_value(reply: str) -> float | None:
    """The first mark from 1 to 10."""
    found = _MARK.search(reply)
    return float(found[1]) if found else None


def vote_of(reply: str, choices: int) -> int | None:
    """Index of the choice that the reply names last."""
    numbers = [int(number) for number in _NUMBER.findall(reply)]
    named = [number for number in numbers if 1 <= number <= choices]
    return named[-1] - 1 if named else None
