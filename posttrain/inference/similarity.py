r"""How alike a question and texts are: BM25 by shared words, or the cosine of embeddings.

    BM25(["the cat sat", "a dog ran"]).scores("cat")        # [0.69.., 0.0]

    score(q, d) = sum over the words t of q of  idf(t) * f(t, d) (k1 + 1) / (f(t, d) + k1 (1 - b + b |d| / mean |d|))
    idf(t)      = ln(1 + (N - n(t) + 0.5) / (n(t) + 0.5))

Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework", equation 3.15. Deviations:
1. `1 +` within the logarithm, as Lucene has it: the paper's idf is negative for words that more than half of the texts
   have, so that a text would lose by holding a word of the question.
2. A word that the question repeats counts each time, which is the paper's formula with k3 without bound.

Words are runs of letters and digits with case folded; of Chinese, Japanese kana and Korean every character is a word,
since they have no blanks between words. There is no stemming and no list of words left out.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, Protocol

from posttrain.config.strategies.demonstrations import AnySimilarity, BM25Similarity
from posttrain.models.sentence import load_sentence_model

_CHARACTERS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_CHARACTERS}]|[^\W_{_CHARACTERS}]+")


def words(text: str) -> list[str]:
    """words("The 2nd snake_case!") == ["the", "2nd", "snake", "case"]"""
    return _WORD.findall(text.casefold())


class Similarity(Protocol):
    """Texts that questions are compared with."""

    def scores(self, question: str) -> list[float]:
        """For each text how like the question it is, higher is more."""
        ...

    def between(self, at: int) -> list[float]:
        """For each text how like text `at` it is, on a scale on which a text is 1 to itself."""
        ...

    def related(self, score: float) -> bool:
        """Whether a score says that there is anything in common."""
        ...


class BM25:
    """An index of texts by their words."""

    def __init__(self, texts: Sequence[str], k1: float = 1.5, b: float = 0.75):
        self._texts = tuple(texts)
        self._k1 = k1
        lengths = [len(words(text)) for text in self._texts]
        mean = sum(lengths) / len(lengths) if any(lengths) else 1.0
        self._norms = [k1 * (1 - b + b * length / mean) for length in lengths]
        self._postings: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for at, text in enumerate(self._texts):
            for word, count in Counter(words(text)).items():
                self._postings[word].append((at, count))

    def scores(self, question: str) -> list[float]:
        scores = [0.0] * len(self._texts)
        for word, repeats in Counter(words(question)).items():
            found = self._postings.get(word, ())
            idf = math.log(1 + (len(scores) - len(found) + 0.5) / (len(found) + 0.5))
            for at, count in found:
                scores[at] += repeats * idf * count * (self._k1 + 1) / (count + self._norms[at])
        return scores

    def between(self, at: int) -> list[float]:
        scores = self.scores(self._texts[at])
        own = scores[at]
        return [min(1.0, score / own) if own > 0 else 0.0 for score in scores]

    def related(self, score: float) -> bool:
        return score > 0


class Embedded:
    """Texts as vectors of length 1, by a sentence-transformers model of a folder.

    Raises:
        MissingExtraError: sentence-transformers is not installed.
        ConfigError: there is no such folder, or no such model in it.
    """

    def __init__(self, texts: Sequence[str], folder: str, device: str = "cpu"):
        self._model = load_sentence_model(folder, device=device, otherwise="write `similarity: bm25`")
        self._vectors = self._encoded(list(texts))

    def _encoded(self, texts: list[str]) -> Any:
        return self._model.encode(texts, normalize_embeddings=True, show_progress_bar=False, convert_to_numpy=True)

    def scores(self, question: str) -> list[float]:
        return [float(value) for value in self._vectors @ self._encoded([question])[0]]

    def between(self, at: int) -> list[float]:
        return [float(value) for value in self._vectors @ self._vectors[at]]

    def related(self, score: float) -> bool:
        # Every text has a cosine with every other; which of them is too small to mean anything depends on the model.
        return True


def similarity_of(
    settings: AnySimilarity, texts: Sequence[str], *, folder: str = "", device: str = "cpu"
) -> Similarity:
    """The index that the settings ask for; `folder` is where a model of embeddings was found."""
    if isinstance(settings, BM25Similarity):
        return BM25(texts, settings.k1, settings.b)
    return Embedded(texts, folder, device)


def likest(scores: Sequence[float]) -> list[int]:
    """Indices by score, highest first, of equal ones the earliest: an order that depends on nothing else."""
    return sorted(range(len(scores)), key=lambda at: (-scores[at], at))


def diverse(index: Similarity, question: str, count: int, allowed: Sequence[int], diversity: float) -> list[int]:
    """Like the question, and unlike each other: maximal marginal relevance (Carbonell and Goldstein 1998).

        argmax over i not chosen of  (1 - diversity) sim(q, i) - diversity max over j chosen of sim(i, j)

    BM25 scores have no upper end, so that a question's are divided by the largest of them.
    """
    scores = index.scores(question)
    largest = max((scores[at] for at in allowed), default=0.0)
    relevance = {at: scores[at] / largest if largest > 0 else 0.0 for at in allowed}
    nearest_chosen = dict.fromkeys(allowed, 0.0)
    chosen: list[int] = []
    while len(chosen) < min(count, len(allowed)):
        left = [at for at in allowed if at not in chosen]
        best = max(left, key=lambda at: ((1 - diversity) * relevance[at] - diversity * nearest_chosen[at], -at))
        chosen.append(best)
        to_best = index.between(best)
        nearest_chosen = {at: max(nearest_chosen[at], to_best[at]) for at in allowed}
    return chosen
