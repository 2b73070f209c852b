"""A tree made from nothing, for checks that need one before any data is read."""

from __future__ import annotations

import numpy as np

from posttrain.types import Branch, RowRef, TokenTree


def probe_tree(
    vocab_size: int = 64,
    prompt: int = 7,
    lengths: tuple[int, ...] = (5, 9, 1),
    seed: int = 0,
    parents: tuple[int | None, ...] = (None, None, None),
) -> TokenTree:
    """A prompt with a few branches of random ids below `vocab_size`, every branch token trained."""
    generator = np.random.default_rng(seed)

    def ids(length: int) -> np.ndarray:
        return generator.integers(0, vocab_size, length, dtype=np.int32)

    branches = tuple(
        Branch(ids(length), np.ones(length, dtype=bool), parent=parent)
        for length, parent in zip(lengths, parents, strict=True)
    )
    return TokenTree(ids(prompt), branches, key=f"probe-{seed}", row=RowRef("probe", seed + 1))
