"""How many tokens rows have: what a budget and the twin of a selection are counted in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from posttrain.curation.rows import Rows, Tools
from posttrain.errors import ConfigError

AT_ONCE = 1024
"""Texts that are worked on together: enough for a tokenizer's own threads."""


def token_counts(rows: Rows, among: Sequence[int] | np.ndarray, tools: Tools) -> np.ndarray:
    """Tokens of all texts of each row of `among`, int64: prompt and every response, without a template's marks.

    Raises:
        ConfigError: no model is named whose tokens they are.
        ModelError: its folder has no tokenizer.
    """
    counts = np.zeros(len(among), dtype=np.int64)
    place = [number for number, row in enumerate(among) for _ in rows.all_texts(int(row))]
    texts = (text for row in among for text in rows.all_texts(int(row)))
    np.add.at(counts, place, np.fromiter(text_tokens(texts, len(place), tools), dtype=np.int64, count=len(place)))
    return counts


def text_tokens(texts: Iterable[str], total: int, tools: Tools) -> Iterator[int]:
    """Tokens of each text, in their order.

    Raises:
        ConfigError, ModelError: as `token_counts`.
    """
    tokenizer = _tokenizer(tools)
    with tools.progress.phase("counting tokens", total=total, unit="texts") as phase:
        for batch in batches(texts):
            # Its warning about texts beyond the model's positions is for whoever feeds them to the model.
            yield from map(len, tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"])
            phase.advance(len(batch))


def _tokenizer(tools: Tools) -> Any:
    if tools.model is None:
        raise ConfigError(
            "tokens are counted, and no model is named whose tokens they are",
            where="tokenizer",
            expected="a model's name or folder",
            remedy="write `tokenizer: smollm2-135m-instruct` beside `steps` (--tokenizer on the command line), or "
            "count rows or words",
        )
    # Here and not above: a selection that counts no tokens loads no tokenizer library.
    from posttrain.models.folders.loading import resolve
    from posttrain.models.folders.tokenizers import load_tokenizer

    return load_tokenizer(resolve(tools.model).folder)


def batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """The texts in lists of AT_ONCE: what is computed for many at once needs no more than those in memory."""
    left = iter(texts)
    while batch := list(islice(left, AT_ONCE)):
        yield batch
