"""Text through ids and back: what a tokenizer cannot write. Part of encoding each row, summed up for the data set.

A tokenizer without bytes to fall back on drops a character that it does not know, or writes <unk> for it: "the answer
is 42." trains as "the answer is ". Every row's prompts and answers are decoded again and compared.

Most differences lose nothing: SentencePiece moves a leading blank, WordPiece puts blanks around punctuation. Some
change the text on purpose (lower case, NFKC, folded white space): that is counted as altered, and never an error. What
is lost is counted in characters, after both texts are brought to one form, so that neither is taken for the other.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from posttrain.data.tokens import Tokens
from posttrain.errors import EncodingError

LOST_ROWS = 0.01
"""The share of rows with lost characters from which on it is an error: a stray emoji is not a fault of the tokenizer, a
row in a hundred with holes in it is more than noise."""

_PROBE = "posttrain Probe 12, x"
_BLANK = "\u2581"
"""SentencePiece's mark for a blank: such a tokenizer gives a blank back for it."""
_DROPPED_CATEGORIES = frozenset({"Mn", "Cc", "Cf"})
"""Combining marks, control characters and invisible format characters, which normalisers take out."""


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """What became of a text: RoundTrip(characters=18, lost=3, altered=False)."""

    characters: int = 0
    """Characters of the text; white space and control characters are not counted."""
    lost: int = 0
    altered: bool = False
    """Nothing is lost, but the text is another: its case, its accents, its line breaks."""

    def __add__(self, other: RoundTrip) -> RoundTrip:
        return RoundTrip(self.characters + other.characters, self.lost + other.lost, self.altered or other.altered)


class RoundTrips:
    """RoundTrips(tokens).of("the answer is 42.", ids) -> RoundTrip(characters=14, lost=3)"""

    def __init__(self, tokens: Tokens):
        self._tokens = tokens
        # The backend itself: `transformers` looks at every id before it decodes, which takes as long as encoding does.
        self._backend = getattr(tokens.tokenizer, "backend_tokenizer", None)  # absent in tokenizers written in Python
        self._unknown_id: int | None = tokens.tokenizer.unk_token_id
        self._unknown: str | None = tokens.tokenizer.unk_token

    def of(self, text: str, ids: list[int]) -> RoundTrip:
        """Compare a text with what its ids decode to. Equal texts, nearly all there are, cost one decoding."""
        unknown = 0
        if self._unknown_id is not None and self._unknown_id != self._tokens.eos_id and self._unknown_id in ids:
            unknown = ids.count(self._unknown_id) - text.count(self._unknown or "\0")
        characters = len("".join(text.split()))
        if unknown <= 0 and self._backend is not None and self._backend.decode(ids, skip_special_tokens=False) == text:
            return RoundTrip(characters)
        decoded = self._tokens.decode(ids)
        if unknown <= 0 and (decoded == text or _blanks_moved(text, decoded)):
            return RoundTrip(characters)
        if unknown > 0:
            decoded = self._tokens.decode([number for number in ids if number != self._unknown_id])
        lost = self._lost(text, decoded)
        if unknown > 0:
            lost = max(lost, unknown)  # each stands for a character at least, also where the decoder tells nothing
        return RoundTrip(characters, min(lost, characters), lost == 0 and self._decodes)

    def _lost(self, text: str, decoded: str) -> int:
        if self._decodes:
            return (Counter(_normalised(text)) - Counter(_normalised(decoded))).total()
        if not self._tokens.tokenizer.is_fast:
            return 0
        # A decoder that gives no text back says nothing about what was lost; the places of the pieces do.
        encoded = self._tokens.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        covered: set[int] = set()
        for number, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            if number != self._unknown_id:
                covered.update(range(start, end))
        return sum(1 for at, letter in enumerate(text) if at not in covered and _normalised(letter))

    @cached_property
    def _decodes(self) -> bool:
        """Whether the tokenizer's decoder gives a plain text back at all."""
        ids = [number for number in self._tokens.whole(_PROBE) if number != self._unknown_id]
        return not (Counter(_normalised(self._tokens.decode(ids))) - Counter(_normalised(_PROBE)))


def _blanks_moved(text: str, decoded: str) -> bool:
    """Whether the texts differ in blanks alone, and no run of them was folded into one, which would spoil code."""
    return text.replace(" ", "") == decoded.replace(" ", "") and text.count("  ") <= decoded.count("  ")


def _normalised(text: str) -> str:
    """Case, accents, compatibility forms, white space and control characters taken out of a text."""
    if text.isascii():
        return "".join(text.lower().split())
    plain = unicodedata.normalize("NFKD", text.replace(_BLANK, " ")).casefold()
    return "".join(
        letter for letter in plain if not letter.isspace() and unicodedata.category(letter) not in _DROPPED_CATEGORIES
    )


class LossyTokenizerError(EncodingError):
    """The tokenizer cannot write the rows' text."""


def require_written(
    rows: int, lost_rows: int, characters: int, lost: int, *, lossy: str, examples: Sequence[str] = ()
) -> None:
    """Refuse rows of which too many cannot be written.

    Raises:
        LossyTokenizerError: more than LOST_ROWS of them lose characters, and `lossy` is not "allow".
    """
    if lossy == "allow" or not lost_rows or lost_rows <= LOST_ROWS * rows:
        return
    raise LossyTokenizerError(
        f"the tokenizer cannot write the text of {lost_rows:,} of {rows:,} rows: they would train with holes in them, "
        "or with <unk> where text stands",
        found=f"{lost:,} of {characters:,} characters ({_lost_share(lost, characters)}) are lost when the ids are "
        f"decoded; first in {', '.join(examples[:3]) or 'the rows read'}",
        expected=f"at most {LOST_ROWS:.0%} of rows with characters that the tokenizer does not know",
        remedy="take a model whose tokenizer knows this text (byte-level or with byte fallback), remove the characters "
        "from the rows, or permit it with `encoding: {lossy: allow}`, which counts such rows",
    )


def _lost_share(part: int, whole: int) -> str:
    share = part / whole if whole else 0.0
    return f"{share:.1%}" if share >= 0.001 else f"{share:.2g}"
