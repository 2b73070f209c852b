"""Token trees from plain lists, with the key that names their content."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from posttrain.types import Branch, RowRef, TokenTree


def make_tree(
    prompt: Sequence[int],
    branches: Sequence[tuple[Sequence[int], Sequence[bool]]],
    row: RowRef,
    *,
    margin: float | None = None,
) -> TokenTree:
    """A tree with its content key: make_tree([1, 70], [([52, 2], [True, True])], RowRef("pairs.jsonl", 1))."""
    prompt_ids = np.asarray(prompt, dtype=np.int32)
    built = tuple(Branch(np.asarray(ids, np.int32), np.asarray(mask, np.bool_)) for ids, mask in branches)
    return TokenTree(prompt_ids, built, tree_key(prompt_ids, built, margin), row, margin)


def tree_key(prompt_ids: np.ndarray, branches: Sequence[Branch], margin: float | None) -> str:
    """32 hex digits over ids, masks and margin, the same on every machine."""
    digest = hashlib.blake2b(digest_size=16)
    lengths = [len(prompt_ids), *(len(branch.ids) for branch in branches)]
    digest.update(np.asarray(lengths, "<i8").tobytes())
    digest.update(prompt_ids.astype("<i4", copy=False).tobytes())
    for branch in branches:
        digest.update(branch.ids.astype("<i4", copy=False).tobytes())
        digest.update(branch.loss_mask.tobytes())
    if margin is not None:
        digest.update(np.asarray([margin], "<f8").tobytes())
    return digest.hexdigest()
