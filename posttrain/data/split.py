"""Rows to train on and rows to measure on, told apart by content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from posttrain.types import TokenTree


def row_contents(trees: Iterable[TokenTree]) -> list[str]:
    """For each tree the content of its whole row, so that the turns of one conversation stay on one side."""
    of_row: dict[object, list[str]] = {}
    rows = []
    for tree in trees:
        of_row.setdefault(tree.row, []).append(tree.key)
        rows.append(tree.row)
    return [" ".join(of_row[row]) for row in rows]


def split_by_content(keys: Sequence[str], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices of the rows (to train on, held out); about `share` of the rows, rounded down, is held out.

    A row's side depends on its content and the seed alone, so equal rows are on one side, and reordering or extending
    the file moves few rows.
    """
    groups: dict[str, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    wanted = int(len(keys) * share)
    held: set[int] = set()
    for key in sorted(groups, key=lambda key: hashlib.sha256(f"{seed} {key}".encode()).digest()):
        if len(held) + len(groups[key]) > wanted:
            continue
        held.update(groups[key])
    return [index for index in range(len(keys)) if index not in held], sorted(held)


def split_by_digest(digests: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """`split_by_content` for contents that are hashes, [rows, 32] bytes: the same sides for their hex digests.

    It holds arrays where that holds a dict of strings: a tenth of the memory.
    """
    rows, wanted = len(digests), int(len(digests) * share)
    held = np.zeros(rows, dtype=bool)
    if wanted:
        _, first, group, sizes = np.unique(digests, axis=0, return_index=True, return_inverse=True, return_counts=True)
        keys = np.empty((len(first), 4), dtype=">u8")
        for number, row in enumerate(first.tolist()):
            salted = hashlib.sha256(f"{seed} {digests[row].tobytes().hex()}".encode()).digest()
            keys[number] = np.frombuffer(salted, dtype=">u8")
        out, taken = np.zeros(len(first), dtype=bool), 0
        for number in np.lexsort(keys.T[::-1]).tolist():
            if taken + sizes[number] <= wanted:
                out[number], taken = True, taken + int(sizes[number])
        held = out[group.reshape(-1)]
    return np.flatnonzero(~held), np.flatnonzero(held)
