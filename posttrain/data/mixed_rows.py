"""Encoded rows of several sources as one sequence, each tree under the name of its source.

rows = MixedRows({"maths": maths, "chat": chat})     # EncodedDatasets; nothing is copied
rows[0].part, len(rows), rows.offsets                # "maths", 1400, (0, 1000)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from hashlib import sha256
from itertools import accumulate, zip_longest
from typing import Any, overload

import numpy as np

from posttrain.data.dataset import EncodedDataset
from posttrain.types import TokenTree


class MixedRows(Sequence[TokenTree]):
    """The rows of the first source, then those of the second, and so on. A source may have none."""

    def __init__(self, parts: Mapping[str, EncodedDataset]):
        self.parts = dict(parts)
        ends = list(accumulate(len(rows) for rows in self.parts.values()))
        self._ends = np.asarray(ends, np.int64)
        self.offsets = (0, *ends[:-1])
        """Where each source begins."""

    def __len__(self) -> int:
        return int(self._ends[-1])

    @overload
    def __getitem__(self, index: int) -> TokenTree: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[TokenTree]: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        size = len(self)
        if not -size <= index < size:
            raise IndexError(f"tree {index} of {size}")
        place = int(index) % size
        part = int(np.searchsorted(self._ends, place, side="right"))
        name = list(self.parts)[part]
        # The name travels with the tree: two sources may read the same file, so its row does not say which it is.
        return replace(self.parts[name][place - self.offsets[part]], part=name)

    def __iter__(self) -> Iterator[TokenTree]:
        return (self[index] for index in range(len(self)))

    @property
    def keys(self) -> list[str]:
        """The content key of each tree."""
        return [key for rows in self.parts.values() for key in rows.keys]

    @cached_property
    def num_tokens(self) -> np.ndarray:
        """Tokens of each tree, int64."""
        return np.concatenate([rows.num_tokens for rows in self.parts.values()])

    @property
    def fingerprint(self) -> str:
        """A hash of the content of every source, by name."""
        return sha256("\n".join(f"{name} {rows.fingerprint}" for name, rows in self.parts.items()).encode()).hexdigest()

    def spread(self, most: int) -> list[int]:
        """Places of up to `most` trees, the first of each source, then the second of each: a look at all of them."""
        sizes = [len(rows) for rows in self.parts.values()]
        ranges = [range(start, start + min(size, most)) for start, size in zip(self.offsets, sizes, strict=True)]
        found: list[int] = []
        for turn in zip_longest(*ranges):
            found += [place for place in turn if place is not None]
        return found[:most]


def spread(rows: Sequence[TokenTree], most: int) -> list[int]:
    """Places of the first trees, of every source where there are several."""
    return rows.spread(most) if isinstance(rows, MixedRows) else list(range(min(most, len(rows))))
