"""`text_perplexity`: how surprised a model is by texts as they stand; see `posttrain.evaluate.texts` for the windows.

text_perplexity         exp(nats / tokens): compare it between models of one tokenizer only
bits_per_byte           nats / bytes in bits: compares models of any tokenizer
word_perplexity         exp(nats / words)
text_perplexity_change  its ratio to the start's on the same tokens, minus 1

The start's windows and their nats are kept in `baseline/<suite>.jsonl`, as those of a suite `perplexity` are, and every
later model scores exactly these ids.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from posttrain.config.text_suites import TextPerplexitySuite
from posttrain.data import read
from posttrain.data.sources.files import combined_fingerprint, open_sources
from posttrain.data.write import write_jsonl
from posttrain.diagnostics.corpus_figures import corpus_score
from posttrain.evaluate.asking import Figures, SuiteRun
from posttrain.evaluate.figures import perplexity_change
from posttrain.evaluate.suites.perplexity import FixedAnswer, FixedAnswerScorer, keep_baseline, read_baseline
from posttrain.evaluate.texts import GivenText, fixed_windows, texts_of, window_of
from posttrain.runs.folder import answers_path
from posttrain.runs.records.evaluation import GIVEN, AnswerLine, Direction, Meaning
from posttrain.sampling import SamplingDistribution
from posttrain.types import Example

METRICS = {
    # Not `STILL`, as a drift from the start's own answers is: of given texts a fall costs nothing.
    "text_perplexity_change": Meaning("perplexity change", "share", Direction.DOWN, primary=True),
    "text_perplexity": Meaning("perplexity by token"),
    "word_perplexity": Meaning("perplexity by word"),
    "bits_per_byte": Meaning("bits per byte"),
}


@dataclass(frozen=True, slots=True)
class TextPerplexity:
    """TextPerplexity("manuals", texts, window=1024, stride=512)"""

    name: str
    texts: Sequence[GivenText]
    window: int | None = None
    stride: int | None = None

    def ask(self, asking: SuiteRun) -> Figures:
        scored = self.scored(asking)
        write_jsonl(answers_path(asking.out, self.name), (line.to_json() for line in scored.lines()))
        return scored.figures()

    def scored(self, asking: SuiteRun) -> ScoredTexts:
        """The texts under this model, and under the start.

        Raises:
            ConfigError: the model has no room for the window.
            ResumeError: the start read other texts, or had another tokenizer.
        """
        window, stride = window_of(asking.asked.model, self.window, self.stride)
        by_text = [fixed_windows(text, asking.asked.encoder, window, stride) for text in self.texts]
        windows = [one for own in by_text for one in own]
        scorer = FixedAnswerScorer(asking.asked.model)
        with asking.progress.phase(f"{self.name}: texts", total=len(windows), unit="windows") as phase:
            nats = scorer.nats(windows)
            phase.advance(len(windows), tokens=sum(len(one.ids) for one in windows))
        key = _key(windows)
        if asking.is_start:
            keep_baseline(asking.baseline, self.name, key, windows, nats)
            before = nats
        else:
            _, before = read_baseline(asking.baseline, self.name, key)
        ends = list(accumulate((len(own) for own in by_text), initial=0))
        tokens = [sum(len(one.ids) for one in own) for own in by_text]
        totals = [[sum(values[start:end]) for start, end in pairwise(ends)] for values in (nats, before)]
        return ScoredTexts(tuple(self.texts), tuple(tokens), tuple(totals[0]), tuple(totals[1]))


@dataclass(frozen=True, slots=True)
class ScoredTexts:
    """What a model makes of each text: ScoredTexts(texts, tokens=(4,), nats=(7.1,), nats_before=(7.0,))."""

    texts: tuple[GivenText, ...]
    tokens: tuple[int, ...]
    nats: tuple[float, ...]
    nats_before: tuple[float, ...]

    def figures(self) -> Figures:
        parts = [self._parts(index) for index in range(len(self.texts))]
        return {
            "text_perplexity_change": perplexity_change(self.nats, self.nats_before, self.tokens),
            **{metric: corpus_score(metric, np.array([own[metric] for own in parts])) for metric in parts[0]},
        }

    def lines(self) -> list[AnswerLine]:
        """A line for each text: its score is its nats per token."""
        return [
            AnswerLine(
                prompt=text.text,
                completion="",
                answer=None,
                score=nats / tokens,
                tokens=tokens,
                finish=GIVEN,
                by_metric=self._parts(index),
            )
            for index, (text, nats, tokens) in enumerate(zip(self.texts, self.nats, self.tokens, strict=True))
        ]

    def _parts(self, index: int) -> dict[str, tuple[float, float]]:
        nats, text = self.nats[index], self.texts[index]
        return {
            "text_perplexity": (nats, self.tokens[index]),
            "word_perplexity": (nats, text.n_words),
            "bits_per_byte": (nats, text.n_bytes),
        }


def _key(windows: Sequence[FixedAnswer]) -> str:
    ids = [[window.prompt_ids, window.ids] for window in windows]
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()


def load(settings: TextPerplexitySuite, _: list[Example], __: SamplingDistribution) -> TextPerplexity:
    """Raises DataError for a file that cannot be read, or a row that is no text."""
    texts = texts_of([*read(settings.texts, limit=settings.limit)])
    return TextPerplexity(settings.name, texts, settings.window, settings.stride)


def content(settings: Any) -> str:
    """The texts themselves."""
    return combined_fingerprint(open_sources(settings.texts))
