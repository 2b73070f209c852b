"""How an answer looks: its length, and its headers, bold words and list items outside of code.

    style_of("# Sum\\n- **4**")       # {"length": 13, "headers": 1, "bold": 1, "lists": 1}

A game's style is the difference of both answers relative to what they have together, (A - B) / (A + B), as LMArena's
style control has it (Li, Angelopoulos & Chiang 2024); the counts are those of Arena-Hard.

Deviations:
1. A length is characters, as in AlpacaEval, not tokens of one company's tokenizer.
2. Features are divided by their root mean square and not centred. Centred ones make the rating of a policy depend on
   which side it stood on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from posttrain.evaluate.ratings.games import GameTable

FEATURES = ("length", "headers", "bold", "lists")
"""What can be controlled for."""

_CODE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_COUNTED = {
    "headers": (re.compile(r"^#{1,6}\s", re.MULTILINE),),
    "bold": (re.compile(r"\*\*[^*\n]+\*\*"), re.compile(r"__[^_\n]+__")),
    # One line is one item: blanks at its start must not reach over an empty line.
    "lists": (re.compile(r"^[ \t]*\d+\.\s", re.MULTILINE), re.compile(r"^[ \t]*[-*+]\s", re.MULTILINE)),
}


def style_of(text: str) -> dict[str, int]:
    """The features of one answer; code counts to its length alone."""
    prose = _CODE.sub("", text)
    counts = {name: sum(len(form.findall(prose)) for form in forms) for name, forms in _COUNTED.items()}
    return {"length": len(text), **counts}


def lengths_of(table: GameTable) -> np.ndarray:
    """[G, 2]: characters of both answers. The table has responses."""
    return np.array([[len(game.response_a or ""), len(game.response_b or "")] for game in table.games], dtype=float)


def style_differences(table: GameTable, features: Sequence[str]) -> np.ndarray:
    """[G, S]: (A - B) / (A + B) of each feature, 0 where neither answer has any. The table has responses."""
    known: dict[str, dict[str, int]] = {}
    texts = {text for game in table.games for text in (game.response_a or "", game.response_b or "")}
    for text in texts:  # an answer may meet many others
        known[text] = style_of(text)
    a_GS, b_GS = (
        np.array([[known[text][name] for name in features] for text in side], dtype=float)
        for side in (
            [game.response_a or "" for game in table.games],
            [game.response_b or "" for game in table.games],
        )
    )
    together_GS = a_GS + b_GS
    return np.divide(a_GS - b_GS, together_GS, out=np.zeros_like(a_GS), where=together_GS > 0)
