"""Rows to train on and rows to measure on, told apart by content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

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
