"""Many texts on disk, by number: a data set larger than memory can be audited.

`corpus.py` has one store for prompts and one for responses; of their words (`words.py`) only small arrays are kept.
"""

from __future__ import annotations

import mmap
import tempfile
import weakref
from array import array
from collections.abc import Callable, Iterator

import numpy as np

from posttrain.auditing.words import PERMUTATIONS, HashedWords, words_of_bytes

_BLOCK_BYTES = 300_000
"""Texts are hashed in blocks of this size, whose arrays fit the processor's cache: 5 times as fast as 2 MB."""
_WRITE_BUFFER = 1 << 20


class TextStore:
    """Texts in an unnamed temporary file that goes with the object.

    store = TextStore()
    store.add("Hello.")     # 0
    store[0]                # "Hello."
    store.word_counts       # array([1])
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(buffering=_WRITE_BUFFER)  # noqa: SIM115  it lives as long as the store
        weakref.finalize(self, self._file.close)
        self._ends = array("q", [0])  # where each text ends; 8 bytes a text are all that memory holds of it
        self._map: mmap.mmap | None = None
        self._mapped_bytes = 0
        self._hashed: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    def add(self, text: str) -> int:
        # "surrogatepass": a text with half a surrogate pair is a finding, and must come back as it was.
        data = text.encode("utf-8", "surrogatepass")
        self._file.write(data)
        self._ends.append(self._ends[-1] + len(data))
        return len(self._ends) - 2

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        return self._read(self._ends[index], self._ends[index + 1]).decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        for first, last in self._blocks():
            data = self._read(self._ends[first], self._ends[last])
            base = self._ends[first]
            for index in range(first, last):
                part = data[self._ends[index] - base : self._ends[index + 1] - base]
                yield part.decode("utf-8", "surrogatepass")

    def words(self) -> Iterator[tuple[int, HashedWords]]:
        """The words of all texts, in blocks: (number of the block's first text, its words)."""
        ends = np.array(self._ends)
        for first, last in self._blocks():
            data = np.frombuffer(self._read(self._ends[first], self._ends[last]), dtype=np.uint8)
            yield first, words_of_bytes(data, np.diff(ends[first : last + 1]))

    @property
    def word_counts(self) -> np.ndarray:
        """int32, one a text."""
        self.hash_words()
        assert self._hashed is not None
        return self._hashed[0]

    @property
    def sequence_hashes(self) -> np.ndarray:
        """uint64: equal for texts with the same words in the same order, whatever their case and punctuation."""
        self.hash_words()
        assert self._hashed is not None
        return self._hashed[1]

    @property
    def signatures(self) -> np.ndarray:
        """MinHash, uint32 [texts, PERMUTATIONS]."""
        self.hash_words()
        assert self._hashed is not None
        return self._hashed[2]

    def hash_words(self, advance: Callable[[int], None] | None = None) -> None:
        """Computes all three now, in one pass: parting the texts into words costs more than what is then done with
        them. Each asks for it by itself; called apart, `advance` is told of the texts that are done."""
        if self._hashed is not None and len(self._hashed[0]) == len(self):
            return
        counts, hashes = np.empty(len(self), np.int32), np.empty(len(self), np.uint64)
        signatures = np.empty((len(self), PERMUTATIONS), dtype=np.uint32)
        for first, words in self.words():
            block = slice(first, first + words.num_texts)
            counts[block], hashes[block], signatures[block] = words.counts, words.sequence_hash(), words.signatures()
            if advance is not None:
                advance(words.num_texts)
        self._hashed = counts, hashes, signatures

    def _blocks(self) -> Iterator[tuple[int, int]]:
        first = 0
        while first < len(self):
            last = first + 1
            while last < len(self) and self._ends[last + 1] - self._ends[first] <= _BLOCK_BYTES:
                last += 1
            yield first, last
            first = last

    def _read(self, start: int, end: int) -> bytes:
        """From a map of the file, which costs nothing to jump about in; made anew after texts were added."""
        if end > self._mapped_bytes:
            self._file.flush()  # else the map would end before the last texts
            self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
            self._mapped_bytes = len(self._map)
        return self._map[start:end] if self._map is not None else b""
