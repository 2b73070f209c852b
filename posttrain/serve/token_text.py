"""A token as a text and as bytes, for log-probs: TokenText(" Paris", b" Paris"), TokenText("bytes:\\\\xe2", b"\\xe2").

Half a character has no text. It is written as OpenAI wrote it, so that two such tokens are two; its bytes are given.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")
"""A byte in the vocabulary of a SentencePiece tokenizer."""
_BLANK = "\N{LOWER ONE EIGHTH BLOCK}"
"""What SentencePiece writes for a blank."""


class TokenText(NamedTuple):
    text: str
    bytes: tuple[int, ...]


class TokenTexts:
    """The texts of a tokenizer's ids, by its vocabulary: decoding one id alone would lose the blank before a word."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._added = {int(number): text for text, number in tokenizer.get_added_vocab().items()}
        decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
        # Its own words for what it is: decoders are nested, and have no other name.
        self._is_byte_level = decoder is not None and b'"ByteLevel"' in decoder.__getstate__()
        self._bytes = {letter: byte for byte, letter in _byte_letters().items()}
        self._known: dict[int, TokenText] = {}

    def of(self, number: int) -> TokenText:
        """The text of one id; of an id beyond the vocabulary, as rows of padding in some models, "<id 50300>"."""
        if number not in self._known:
            data = self._data(number)
            try:
                text = data.decode()
            except UnicodeDecodeError:
                text = "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
            self._known[number] = TokenText(text, tuple(data))
        return self._known[number]

    def _data(self, number: int) -> bytes:
        if number in self._added:
            return self._added[number].encode()
        piece = self._tokenizer.convert_ids_to_tokens(number)
        if piece is None:
            return f"<id {number}>".encode()
        if self._is_byte_level and all(letter in self._bytes for letter in piece):
            return bytes(self._bytes[letter] for letter in piece)
        if (match := _FALLBACK.fullmatch(piece)) is not None:
            return bytes([int(match[1], 16)])
        return str(piece.replace(_BLANK, " ")).encode()


def _byte_letters() -> dict[int, str]:
    """The letter that stands for each byte in a byte-level vocabulary (GPT-2): printable bytes are themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + index) for index, byte in enumerate(others)}
