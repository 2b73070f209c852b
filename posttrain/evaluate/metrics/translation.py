"""BLEU and chrF by sacrebleu, which splits the words and counts the n-grams: what papers report under its signature.

    metric = Bleu(tokenize="13a")
    metric.parts("the cat sat", ("the cat sat down",))    # {"bleu": (3, 4, 3, 2, 1, 0, 3, 2, 1, 0)}
    metric.score("the cat sat", ("the cat sat down",))    # sentence BLEU: 71.65

The figure of a corpus is `diagnostics.corpus_figures.bleu` of the summed parts, which is sacrebleu's `corpus_score` to
the last digit; that it is computed there lets the bootstrap and the paired tests draw rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from posttrain.diagnostics.corpus_figures import chrf
from posttrain.errors import MissingExtraError
from posttrain.evaluate.metrics.metric import Parts


def require_metrics(package: str, metric: str) -> None:
    """Raises MissingExtraError where the package of a metric is not installed."""
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise MissingExtraError(
            f"{metric} needs the package {package.replace('_', '-')}",
            expected="the extra `metrics`",
            remedy="run `pip install 'posttrain[metrics]'`",
        )


def _row(scorer: Any, answer: str, references: Sequence[str]) -> tuple[float, ...]:
    # The statistics that sacrebleu's own significance tests add up; one row has as many streams as references.
    (row,) = scorer._extract_corpus_statistics([answer], [[reference] for reference in references])
    return tuple(float(count) for count in row)


class Bleu:
    """Bleu(tokenize="13a", lowercase=False)"""

    def __init__(self, tokenize: str = "13a", lowercase: bool = False):
        require_metrics("sacrebleu", "BLEU")
        from sacrebleu.metrics import BLEU

        self._corpus = BLEU(tokenize=tokenize, lowercase=lowercase)
        # Of one sentence: the orders that it is long enough for, as sacrebleu itself does.
        self._sentence = BLEU(tokenize=tokenize, lowercase=lowercase, effective_order=True)

    @property
    def signature(self) -> str:
        """What a paper says of the figure, the number of references left out: it may differ by row."""
        import sacrebleu

        case = "lc" if self._corpus.lowercase else "mixed"
        return f"case:{case}|eff:no|tok:{self._corpus.tokenizer.signature()}|smooth:exp|version:{sacrebleu.__version__}"

    def parts(self, answer: str, references: Sequence[str]) -> Parts:
        return {"bleu": _row(self._corpus, answer, references)}

    def score(self, answer: str, references: Sequence[str]) -> float:
        return float(self._sentence.sentence_score(answer, list(references)).score)


class Chrf:
    """Chrf(word_order=2) is chrF++."""

    def __init__(self, word_order: int = 0):
        require_metrics("sacrebleu", "chrF")
        from sacrebleu.metrics import CHRF

        self._corpus = CHRF(word_order=word_order)

    def parts(self, answer: str, references: Sequence[str]) -> Parts:
        return {"chrf": _row(self._corpus, answer, references)}

    def score(self, answer: str, references: Sequence[str]) -> float:
        return float(chrf(np.array(self.parts(answer, references)["chrf"])))
