"""Exact match and token F1, as SQuAD's evaluation script has them (Rajpurkar et al. 2016, arXiv:1606.05250, 6.1).

    normalised("The Cat's  mat!")                        # "cats mat"
    token_f1("the cat sat", "cat")                       # 2 * 1 * (1/2) / (1 + 1/2) = 0.667
    SquadF1().parts("In Paris.", ("Paris", "in Paris"))  # {"f1": (1.0,), "exact_match": (1.0,)}

Of several references the best counts, for each of the two metrics by itself. Articles are English ones.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

from posttrain.evaluate.metrics.metric import Parts

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """Lower case, without ASCII punctuation, without articles, with single spaces: in this order."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, reference: str) -> float:
    """exact_match("The cat.", "cat") is 1."""
    return float(normalised(answer) == normalised(reference))


def token_f1(answer: str, reference: str) -> float:
    """Harmonic mean of precision and recall of the words, each as often as it occurs."""
    said, wanted = normalised(answer).split(), normalised(reference).split()
    if not said or not wanted:
        # Without a word on one side only the right silence is right: a question that the text does not answer.
        return float(said == wanted)
    common = sum((Counter(said) & Counter(wanted)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(said), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


class SquadF1:
    """F1 and exact match against the best of the references."""

    def parts(self, answer: str, references: Sequence[str]) -> Parts:
        return {
            "f1": (max(token_f1(answer, reference) for reference in references),),
            "exact_match": (max(exact_match(answer, reference) for reference in references),),
        }

    def score(self, answer: str, references: Sequence[str]) -> float:
        return self.parts(answer, references)["f1"][0]
