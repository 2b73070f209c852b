"""ROUGE by Google's rouge-score (Lin 2004): F1 of words, pairs of words and longest common subsequences.

    Rouge().parts("the cat sat", ("the cat sat down",))["rouge_1"]     # (2 * 1 * (3/4) / (1 + 3/4),) = (0.857,)

Of several references the one with the best F1 counts, for each of the four by itself. ROUGE-Lsum takes each line of a
text for a sentence.
"""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.evaluate.metrics.metric import Parts
from posttrain.evaluate.metrics.translation import require_metrics

NAMES = {"rouge_l": "rougeL", "rouge_lsum": "rougeLsum", "rouge_1": "rouge1", "rouge_2": "rouge2"}
"""By the names of our figures, those of rouge-score; the first is what a suite is asked for."""


class Rouge:
    """Rouge(stemmer=True)"""

    def __init__(self, stemmer: bool = False):
        require_metrics("rouge_score", "ROUGE")
        from rouge_score.rouge_scorer import RougeScorer

        self._scorer = RougeScorer(list(NAMES.values()), use_stemmer=stemmer)

    def parts(self, answer: str, references: Sequence[str]) -> Parts:
        found = self._scorer.score_multi(list(references), answer)
        return {name: (float(found[theirs].fmeasure),) for name, theirs in NAMES.items()}

    def score(self, answer: str, references: Sequence[str]) -> float:
        return self.parts(answer, references)["rouge_l"][0]
