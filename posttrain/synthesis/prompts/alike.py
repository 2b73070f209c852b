"""How alike two prompts are by ROUGE-L, and a growing set that finds out whether a new one is like any of it.

    rouge_l("name a red fruit", "name a big red fruit")     # 2 * 4 / (4 + 5) = 0.889
    earlier = Alike(); earlier.add("name a red fruit")
    earlier.nearest("name a big red fruit", least=0.7)      # (0, 0.889)

F = 2 L / (m + n) with L the longest common subsequence of the two texts' words (Lin 2004, ROUGE-L with beta 1; the rule
of Self-Instruct, Wang et al. 2022, arXiv:2212.10560, section 2.2).

Deviation: words are those of `auditing/words.py`, without case, each Chinese, Japanese or Korean character one word.
The package rouge-score knows ASCII words alone, and would find all prompts in other scripts empty.
"""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence

import numpy as np

from posttrain.auditing.words import words_of


def rouge_l(first: str, second: str) -> float:
    """The F measure, from 0 to 1; 0 where one of the texts has no word."""
    one, other = _words(first), _words(second)
    return 2 * _common(one, other) / (len(one) + len(other)) if one and other else 0.0


class Alike:
    """Texts by number, in the order in which they were added."""

    def __init__(self) -> None:
        self._texts: list[list[int]] = []
        self._lengths = array("q")
        # The k-th occurrence of a word -> the texts that have it so often: how many words two texts share is then a
        # count of numbers. No common subsequence is longer than that, so most texts are never compared word by word.
        self._having: defaultdict[tuple[int, int], array[int]] = defaultdict(lambda: array("q"))

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, text: str) -> int:
        """Its number."""
        number, words = len(self._texts), _words(text)
        for occurrence in _occurrences(words):
            self._having[occurrence].append(number)
        self._texts.append(words)
        self._lengths.append(len(words))
        return number

    def nearest(self, text: str, *, least: float, but: Collection[int] = ()) -> tuple[int, float] | None:
        """(number, ROUGE-L) of the text that is most alike, of equal ones the first; None where none has `least`.

        Args:
            least: above 0.
            but: numbers that do not count: what an evolved prompt grew out of is like it and no copy of it.
        """
        words = _words(text)
        found = [self._having[key] for key in _occurrences(words) if key in self._having]
        if not found:
            return None
        shared = np.bincount(np.concatenate([np.array(texts) for texts in found]), minlength=len(self))
        most = 2 * shared / (np.array(self._lengths) + len(words))
        most[list(but)] = 0
        best: tuple[int, float] | None = None
        for number in np.argsort(-most, kind="stable").tolist():
            if most[number] < (least if best is None else best[1]) or most[number] == 0:
                break
            score = 2 * _common(words, self._texts[number]) / (len(words) + len(self._texts[number]))
            if score >= least and (best is None or (-score, number) < (-best[1], best[0])):
                best = (number, score)
        return best


def new_words(text: str, before: str) -> int:
    """How many words of `text` are not in `before`, each as often as it stands there more."""
    return sum((Counter(_words(text)) - Counter(_words(before))).values())


def _words(text: str) -> list[int]:
    return [int(word) for word in words_of([text]).hash_W]


def _occurrences(words: Sequence[int]) -> list[tuple[int, int]]:
    seen: Counter[int] = Counter()
    keys = []
    for word in words:
        keys.append((word, seen[word]))
        seen[word] += 1
    return keys


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the longest common subsequence, a whole row of the table at once in the bits of one number (Hyyrö
    2004): a bit that is 0 is a place at which the row above grows by one."""
    places: defaultdict[int, int] = defaultdict(int)
    for place, word in enumerate(one):
        places[word] |= 1 << place
    everywhere = (1 << len(one)) - 1
    row = everywhere
    for word in other:
        here = row & places.get(word, 0)
        row = ((row + here) | (row - here)) & everywhere
    return len(one) - row.bit_count()
