"""The score `length`: words, characters or tokens of a row's prompt, answer, or both."""

from __future__ import annotations

import numpy as np

from posttrain.auditing.words import words_of
from posttrain.config.scores import LengthScore
from posttrain.curation.rows import Pool, Tools
from posttrain.curation.tokens import batches, text_tokens


def length_score(settings: LengthScore, pool: Pool, tools: Tools) -> np.ndarray:
    """Raises ConfigError where tokens are wanted and no model is named whose they are."""
    score_R = np.full(len(pool.rows), np.nan)
    texts = pool.rows.texts(pool.kept, settings.of)
    if settings.unit == "tokens":
        score_R[pool.kept] = np.fromiter(text_tokens(texts, len(pool), tools), dtype=np.float64, count=len(pool))
        return score_R
    with tools.progress.phase(f"score {settings.label}", total=len(pool), unit="rows") as phase:
        if settings.unit == "characters":
            score_R[pool.kept] = np.fromiter(map(len, phase.track(texts)), dtype=np.float64, count=len(pool))
        else:
            counts = [words_of(block).counts for block in batches(phase.track(texts))]
            score_R[pool.kept] = np.concatenate(counts)
    return score_R
