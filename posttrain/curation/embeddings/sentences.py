"""Vectors by a sentence-transformers model of a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np

from posttrain.config.embeddings import SentenceEmbedding
from posttrain.curation.diversity.vectors import unit_length

_BATCHES_AT_ONCE = 16
"""The package sorts what it is given by length: several batches at once waste less on padding."""


def sentence_vectors(
    texts: Iterable[str], settings: SentenceEmbedding, model: Any, progress: Callable[[int], None] | None = None
) -> Iterator[np.ndarray]:
    """Blocks of vectors of length 1, float32 [n, D]."""
    remaining = iter(texts)
    while block := list(islice(remaining, settings.batch_size * _BATCHES_AT_ONCE)):
        vectors = model.encode(
            block,
            batch_size=settings.batch_size,
            normalize_embeddings=True,
            show_progress_bar=False,
            convert_to_numpy=True,
        )
        yield unit_length(np.asarray(vectors, dtype=np.float32))
        if progress is not None:
            progress(len(block))
