"""Rows to train on and rows to measure on, separated by content; for stages whose recipe names no held-out file."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from posttrain.types import TokenTree


def row_contents(trees: Iterable[TokenTree]) -> list[str]:
    """For each tree the content of its whole row, so that the turns of one conversation stay on one side."""
    keys_of_row: dict[object, list[str]] = {}
    rows = []
    for tree in trees:
        keys_of_row.setdefault(tree.row, []).append(tree.key)
        rows.append(tree.row)
    return [" ".join(keys_of_row[row]) for row in rows]


def split_by_content(keys: Sequence[str], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices of the rows (to train on, held out); about `share` of the rows, rounded down, is held out.

    A row's side depends on its content and the seed alone, so equal rows are on one side, and reordering or extending
    the file moves few rows.
    """
    return split_sources([keys], share, seed)[0]


def split_sources(sources: Sequence[Sequence[str]], share: float, seed: int) -> list[tuple[list[int], list[int]]]:
    """`split_by_content` for each of several sources: indices of its rows (to train on, held out).

    About `share` of every source, rounded down, is held out. A row that stands in several is on one side in all of
    them, so a content that would be too much for one of its sources is not held out in any.
    """
    # Equal rows go together: a copy on the other side would make the held-out loss a measure of memory.
    groups: dict[str, list[tuple[int, int]]] = {}
    for source, keys in enumerate(sources):
        for index, key in enumerate(keys):
            groups.setdefault(key, []).append((source, index))
    room = [int(len(keys) * share) for keys in sources]
    held_out: list[set[int]] = [set() for _ in sources]
    for key in sorted(groups, key=lambda key: hashlib.sha256(f"{seed} {key}".encode()).digest()):
        needed = Counter(source for source, _ in groups[key])
        # A large group is skipped, and a smaller one further on may fit.
        if any(count > room[source] for source, count in needed.items()):
            continue
        for source, index in groups[key]:
            held_out[source].add(index)
            room[source] -= 1
    return [
        ([index for index in range(len(keys)) if index not in out], sorted(out))
        for keys, out in zip(sources, held_out, strict=True)
    ]


def split_by_digest(digests: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """`split_by_content` for contents that are hashes, [rows, 32] bytes: the same sides for their hex digests.

    Its groups are arrays and not a dict of strings, which takes a tenth of the memory.
    """
    rows, limit = len(digests), int(len(digests) * share)
    held_out = np.zeros(rows, dtype=bool)
    if limit:
        _, first, group, sizes = np.unique(digests, axis=0, return_index=True, return_inverse=True, return_counts=True)
        keys = np.empty((len(first), 4), dtype=">u8")
        for number, row in enumerate(first.tolist()):
            salted = hashlib.sha256(f"{seed} {digests[row].tobytes().hex()}".encode()).digest()
            # Big-endian words in a lexical sort compare as the bytes of the digest do in `split_by_content`.
            keys[number] = np.frombuffer(salted, dtype=">u8")
        is_held_out, count = np.zeros(len(first), dtype=bool), 0
        for number in np.lexsort(keys.T[::-1]).tolist():
            if count + sizes[number] <= limit:
                is_held_out[number], count = True, count + int(sizes[number])
        held_out = is_held_out[group.reshape(-1)]
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)
