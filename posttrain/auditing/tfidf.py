"""Texts as sparse TF-IDF vectors, fast enough for hundreds of thousands: hashed n-grams, counted block by block.

    matrix = tfidf(texts)                  # csr, float32 [R, 2**18], rows of length 1
    (matrix @ matrix.T)                    # cosines

    weight of an n-gram in a text = (1 + ln count) (1 + ln((1 + R) / (1 + texts that have it)))

Words are those of `words.py`, hashes of n-grams take the place of a vocabulary: two n-grams share one of 2**18 columns
by chance, and a text of 300 different ones has a false one in common with another of its kind now and then, weighted as
one n-gram among 300. Against scikit-learn's `TfidfVectorizer(sublinear_tf=True)` that, and the words, are what differs.

scipy, which comes with scikit-learn (the extra `audit`), has the sparse matrix.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import numpy as np

from posttrain.auditing.words import HashedWords, words_of
from posttrain.errors import MissingExtraError

COLUMN_BITS = 18
_BLOCK_CHARACTERS = 300_000
"""Texts are hashed in blocks of this size, as in `texts.py`: the arrays fit the processor's cache."""
Unit = Literal["words", "characters"]


def tfidf(
    texts: Iterable[str],
    *,
    unit: Unit = "words",
    shortest: int = 1,
    longest: int = 2,
    progress: Callable[[int], None] | None = None,
) -> Any:
    """Vectors of n-grams of `shortest` to `longest` units, scipy's csr_matrix float32 [R, 2**18], of length 1; a text
    without an n-gram has zeros.

    Args:
        progress: called with the number of texts that were just counted.

    Raises:
        MissingExtraError: scipy is not installed.
    """
    require_scikit_learn("TF-IDF")
    from scipy import sparse

    columns, counts, sizes = [], [], []
    for block in _in_blocks(texts):
        hashed = words_of(block) if unit == "words" else characters_of(block)
        column, count, size = _counted(hashed, shortest, longest)
        columns.append(column)
        counts.append(count)
        sizes.append(size)
        if progress is not None:
            progress(len(block))
    first_R = np.concatenate([[0], np.cumsum(np.concatenate([np.empty(0, np.int64), *sizes]))])
    column_E = np.concatenate([np.empty(0, np.int32), *columns])
    columns.clear()  # all that is held twice is one of the two arrays
    value_E = np.concatenate([np.empty(0, np.float32), *counts])
    counts.clear()
    num_texts = len(first_R) - 1
    texts_with = np.bincount(column_E, minlength=1 << COLUMN_BITS)
    rarity = (1 + np.log((1 + num_texts) / (1 + texts_with))).astype(np.float32)
    value_E *= rarity[column_E]
    matrix = sparse.csr_matrix((value_E, column_E, first_R), shape=(num_texts, 1 << COLUMN_BITS))
    value_E = matrix.data
    for start in range(0, num_texts, 1 << 14):  # in blocks: the numbers of all texts are hundreds of megabytes
        ends = first_R[start : start + (1 << 14) + 1]
        values = value_E[ends[0] : ends[-1]]
        running = np.concatenate([[0.0], np.cumsum(values.astype(np.float64) ** 2)])
        lengths = np.sqrt(running[ends[1:] - ends[0]] - running[ends[:-1] - ends[0]])
        values /= np.repeat(np.where(lengths > 0, lengths, 1), np.diff(ends)).astype(np.float32)
    return matrix


def characters_of(texts: Iterable[str]) -> HashedWords:
    """The characters of some texts as if each were a word, without case, white space as one blank."""
    parts = [" ".join(text.casefold().split()).encode("utf-32-le", "surrogatepass") for text in texts]
    lengths = np.array([len(part) // 4 for part in parts], dtype=np.int64)
    points = np.frombuffer(b"".join(parts), dtype="<u4").astype(np.uint64)
    # An odd factor spreads code points over all bits; neighbours such as "a" and "b" would else nearly share a hash.
    return HashedWords((points + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15), _owner(lengths), len(parts))


def require_scikit_learn(what: str) -> None:
    """
    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise MissingExtraError(
            f"{what} needs the package scikit-learn",
            remedy="install it: `pip install 'posttrain[audit]'`, or choose an embedding of another `kind`",
        )


def _owner(lengths: np.ndarray) -> np.ndarray:
    return np.repeat(np.arange(len(lengths)), lengths)


def _in_blocks(texts: Iterable[str]) -> Iterator[list[str]]:
    block: list[str] = []
    size = 0
    for text in texts:
        block.append(text)
        size += len(text)
        if size >= _BLOCK_CHARACTERS:
            yield block
            block, size = [], 0
    if block:
        yield block


def _counted(hashed: HashedWords, shortest: int, longest: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(column, 1 + ln count) of each text's n-grams, in the order of texts and columns, and their number by text."""
    keys = []
    for size in range(shortest, longest + 1):
        gram_W = hashed.ngrams(size, whole=True)
        inside = gram_W != 0
        column = gram_W[inside] >> np.uint64(64 - COLUMN_BITS)
        keys.append((hashed.text_W[inside].astype(np.uint64) << np.uint64(COLUMN_BITS)) | column)
    key, count = np.unique(np.concatenate(keys), return_counts=True)
    text = (key >> np.uint64(COLUMN_BITS)).astype(np.int64)
    column = (key & np.uint64((1 << COLUMN_BITS) - 1)).astype(np.int32)
    return column, 1 + np.log(count).astype(np.float32), np.bincount(text, minlength=hashed.num_texts)
