"""Word hashes, n-grams and MinHash signatures of many texts at once, in numpy; `texts.py` calls it block by block.

A word is a run of ASCII letters and digits (without case) or of bytes above 127; each character of Chinese, Japanese
and Korean is a word of its own, since those texts have no spaces to part at. Punctuation and white space part words
and count for nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

PERMUTATIONS = 64
BANDS = 16
"""16 bands of 4 rows: two texts whose n-gram sets overlap by 0.8 share a band with probability 0.9998, by 0.3 with
0.12; every shared band is then compared in full."""
SHINGLE = 3
"""Words of an n-gram for near-duplicates."""
_LINKS_AT_ONCE = 1 << 17

_RANDOM = np.random.default_rng(20080808)  # fixed: the same texts have the same signatures in every process
_BYTE_VALUES = _RANDOM.integers(1, 1 << 63, 256, dtype=np.uint64)
_POSITION_POWERS = np.cumprod(np.full(64, 0x9E3779B97F4A7C15, dtype=np.uint64), dtype=np.uint64)
_FACTORS = _RANDOM.integers(1, 1 << 31, PERMUTATIONS, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
_OFFSETS = _RANDOM.integers(0, 1 << 32, PERMUTATIONS, dtype=np.uint64).astype(np.uint32)
_STEP = np.uint64(0xD6E8FEB86659FD93)

_KIND = np.zeros(256, dtype=np.uint8)
_KIND[128:] = np.arange(128, 256)
for _low, _high in ((48, 58), (97, 123)):
    _KIND[_low:_high] = np.arange(_low, _high)
_KIND[65:91] = np.arange(97, 123)


@dataclass(frozen=True, slots=True)
class HashedWords:
    """The words of a block of texts, one after the other.

    HashedWords(hash_W=[...], text_W=[0, 0, 0, 1], num_texts=2): three words in the first text, one in the second.
    """

    hash_W: np.ndarray
    """uint64."""
    text_W: np.ndarray
    """int64, rising: the text that each word is in."""
    num_texts: int

    @property
    def counts(self) -> np.ndarray:
        return np.bincount(self.text_W, minlength=self.num_texts)

    def ngrams(self, size: int, *, whole: bool = False) -> np.ndarray:
        """A hash of the `size` words from each word on, [W]; shorter ones at a text's end.

        Args:
            whole: 0 in place of the shorter ones.
        """
        combined = self.hash_W.copy()
        for ahead in range(1, size):
            combined *= _STEP
            index = np.flatnonzero(~_reaches_beyond(self.text_W, ahead + 1))
            combined[index] += self.hash_W[index + ahead]
        combined = _mix_bits(combined)
        # 0 marks "no n-gram"; an n-gram whose hash is 0 by chance is lost, one in 2**64.
        if whole:
            combined[_reaches_beyond(self.text_W, size)] = 0
        return combined

    def sequence_hash(self) -> np.ndarray:
        """A hash of each text's words in their order, [num_texts]; 0 for a text without words."""
        place = np.arange(len(self.text_W)) - self.first[self.text_W]
        # The place is mixed into a factor: a plain sum of hashes would be the same for the words in any order.
        powers = _mix_bits(place.astype(np.uint64) + np.uint64(1))
        values = self.hash_W * (powers | np.uint64(1))
        running = np.concatenate([np.zeros(1, np.uint64), np.cumsum(values, dtype=np.uint64)])
        ends = np.cumsum(self.counts)
        return running[ends] - running[ends - self.counts]  # differences of running sums wrap back where sums wrapped

    @property
    def first(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(self.counts)[:-1]])

    def signatures(self) -> np.ndarray:
        """MinHash of each text's n-grams, uint32 [num_texts, PERMUTATIONS]; all ones for a text without words.

        The share of equal entries of two signatures estimates the Jaccard overlap of their n-gram sets (Broder 1997).
        """
        signatures = np.full((self.num_texts, PERMUTATIONS), 0xFFFFFFFF, dtype=np.uint32)
        counts = self.counts
        full = np.flatnonzero(counts)
        if not len(full):
            return signatures
        grams = (self.ngrams(SHINGLE) >> np.uint64(32)).astype(np.uint32)
        starts = self.first[full]
        # "h * a + b" modulo 2**32 with odd a is a permutation of the 32-bit hashes; its minimum over a set is MinHash.
        # One permutation at a time: all of them at once would need 64 times the memory of the n-grams.
        for permutation in range(PERMUTATIONS):
            values = grams * _FACTORS[permutation] + _OFFSETS[permutation]
            signatures[full, permutation] = np.minimum.reduceat(values, starts)
        return signatures


def _reaches_beyond(text_W: np.ndarray, size: int) -> np.ndarray:
    """Whether the n-gram that begins at a word leaves its text."""
    beyond = np.ones(len(text_W), dtype=bool)
    last = len(text_W) - size + 1
    if last > 0:
        beyond[:last] = text_W[size - 1 :] != text_W[:last]
    return beyond


def words_of(texts: Iterable[str]) -> HashedWords:
    """The words of some texts, hashed."""
    parts = [text.encode("utf-8", "surrogatepass") for text in texts]
    lengths = np.array([len(part) for part in parts], dtype=np.int64)
    return words_of_bytes(np.frombuffer(b"".join(parts), dtype=np.uint8), lengths)


def words_of_bytes(data: np.ndarray, lengths: np.ndarray) -> HashedWords:
    """The same from UTF-8 laid end to end, with the length of each text in bytes."""
    kinds = _KIND[data]
    if len(data) and int(data.max()) > 127:
        _split_at_punctuation(data, kinds)
    inside = kinds > 0
    begins = inside.copy()
    begins[1:] &= ~inside[:-1]
    edges = np.concatenate([[0], np.cumsum(lengths)])
    opening = edges[:-1][lengths > 0]
    begins[opening] = inside[opening]  # texts lie end to end: a word must not run on from one into the next
    # Lead bytes 0xE3 to 0xED begin the three-byte characters of Chinese, Japanese and Korean: each is a word, and what
    # follows it begins the next one.
    lone = np.flatnonzero((data >= 0xE3) & (data <= 0xED) & inside)
    begins[lone] = True
    after = lone[lone + 3 < len(data)] + 3
    begins[after] = inside[after]
    starts = np.flatnonzero(begins)
    if not len(starts):
        return HashedWords(np.empty(0, np.uint64), np.empty(0, np.int64), len(lengths))
    places = np.flatnonzero(inside)
    word = np.cumsum(begins, dtype=np.int32)[places] - 1
    # Polynomial hash of a word's bytes; from byte 64 on all places share a factor, so that no table grows with a text.
    offsets = np.minimum(places - starts[word], 63)
    values = _BYTE_VALUES[kinds[places]] * _POSITION_POWERS[offsets]
    first = np.flatnonzero(np.diff(word, prepend=-1))
    hashes = _mix_bits(np.add.reduceat(values, first))
    return HashedWords(hashes, np.searchsorted(edges, starts, side="right") - 1, len(lengths))


def _split_at_punctuation(data: np.ndarray, kinds: np.ndarray) -> None:
    """Typographic punctuation (U+2000 to U+206F) and that of Chinese and Japanese (U+3000 to U+303F) parts words."""
    for lead, second in ((0xE2, 0x80), (0xE2, 0x81), (0xE3, 0x80)):
        places = np.flatnonzero((data[:-2] == lead) & (data[1:-1] == second))
        for ahead in range(3):
            kinds[places + ahead] = 0


def _mix_bits(values: np.ndarray) -> np.ndarray:
    """splitmix64's finish: every bit of the result depends on every bit of the value."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


# ---------------------------------------------------------------- near-duplicates


def similar_pairs(signatures: np.ndarray, threshold: float, others: np.ndarray | None = None) -> np.ndarray:
    """Pairs of indices whose signatures agree in at least `threshold` of their entries, int64 [L, 2].

    Within one set each member is linked to the first of its band's bucket, which is enough for groups. With `others`,
    links go from `signatures` to `others`, every member of a bucket to the first other in it.
    """
    everything = signatures if others is None else np.concatenate([others, signatures])
    offset = 0 if others is None else len(others)
    nonempty = np.flatnonzero((everything != 0xFFFFFFFF).any(axis=1))
    rows = PERMUTATIONS // BANDS
    links = []
    for band in range(BANDS):
        band_rows = everything[nonempty, band * rows : (band + 1) * rows].astype(np.uint64)
        key = band_rows[:, 0]
        for column in range(1, rows):
            key = _mix_bits(key * _STEP + band_rows[:, column])
        order = np.argsort(key, kind="stable")
        is_first = np.concatenate([[True], key[order][1:] != key[order][:-1]]) if len(order) else np.empty(0, bool)
        first_of_bucket = order[np.flatnonzero(is_first)][np.cumsum(is_first) - 1] if len(order) else order
        linked = np.stack([nonempty[first_of_bucket], nonempty[order]], axis=1)
        linked = linked[linked[:, 0] != linked[:, 1]]
        if others is not None:
            linked = linked[(linked[:, 0] < offset) & (linked[:, 1] >= offset)]
        links.append(linked)
    links_found = np.unique(np.concatenate(links), axis=0)
    agree = np.concatenate(
        [estimated_overlap(everything[block[:, 0]], everything[block[:, 1]]) for block in _blocks(links_found)]
    )
    links_found = links_found[agree >= threshold]
    if others is not None:
        links_found = np.stack([links_found[:, 1] - offset, links_found[:, 0]], axis=1)
    return links_found


def estimated_overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Estimated Jaccard overlap of rows with rows, [n]."""
    return (first == second).mean(axis=1)


def _blocks(links: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, max(1, len(links)), _LINKS_AT_ONCE):
        yield links[start : start + _LINKS_AT_ONCE]


def groups(links: np.ndarray, count: int) -> np.ndarray:
    """The smallest index that each of `count` items is linked with, directly or not, [count]."""
    parent = np.arange(count)

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    for first, second in links.tolist():
        low, high = sorted((root(first), root(second)))
        parent[high] = low
    return np.array([root(index) for index in range(count)], dtype=np.int64) if len(links) else parent
