"""Proof that no held-out prompt occurs in training text: exactly, in normal form, or as a sum in other words.

Normal form is lower case, without punctuation, words separated by one space; `17 + 25` keeps its sign and `plus`,
`minus` become signs, so that `What is 17 plus 25?` and `what is 17 + 25` are the same prompt.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

from tools.embedded.arithmetic import Problem, is_held_out

_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?|\d+|[+-](?= ?\d)")
_SUM = re.compile(r"(?<![\d+-] )\b(\d+) ([+-]) (\d+)(?: ([+-]) (\d+))?(?! [+-] \d)")


def normal_words(text: str) -> list[str]:
    """normal_words("What is 17 plus 25?") == ["what", "is", "17", "+", "25"]."""
    text = text.lower().replace(" plus ", " + ").replace(" minus ", " - ")
    return _WORD.findall(text)


def find_leaks(held_out: Iterable[str], texts: Iterable[str]) -> list[str]:
    """The held-out prompts whose words occur in a row in one of the texts, and held-out sums in any wording."""
    # By their first word, so that each place of eight million words is compared with a few prompts and not with all.
    by_first: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    for prompt in held_out:
        words = tuple(normal_words(prompt))
        by_first[words[0]].append(words)
    leaked = set()
    for text in texts:
        words_of_text = normal_words(text)
        for position, word in enumerate(words_of_text):
            for candidate in by_first.get(word, ()):
                if tuple(words_of_text[position : position + len(candidate)]) == candidate:
                    leaked.add(" ".join(candidate))
        # A held-out sum is a leak in any sentence, not only in the words of its held-out prompt.
        leaked.update(held_out_sums(text))
    return sorted(leaked)


def held_out_sums(text: str) -> list[str]:
    """Held-out sums that a text spells out with signs or with plus and minus."""
    text = text.replace(" plus ", " + ").replace(" minus ", " - ")
    sums = []
    for a, first, b, second, c in _SUM.findall(text):
        numbers, signs = ((int(a), int(b), int(c)), (first, second)) if second else ((int(a), int(b)), (first,))
        if is_held_out(Problem(numbers, signs)):
            sums.append(f"{a} {first} {b}" + (f" {second} {c}" if second else ""))
    return sums
