"""Text to ids and back, so that what training reads is what inference would have built.

Three rules, each of which is broken by some widely used tool:

1. No special token is added behind the template's back. The template's text says which there are; a tokenizer that
   writes BOS by itself would make two.
2. A completion never changes the ids of its context. Where the tokenizer would merge text across the boundary
   ("\\n" and "\\nYes" to one "\\n\\n"), the completion is tokenised apart, as a sampler would have produced it.
3. Ids depend on the text alone. A truncation or padding that somebody has set on the tokenizer is not used.

Long conversations are rendered once per turn, and each rendering repeats the text before it. Tokenizers split
text at their special tokens first, so a text is cut before each of them and every piece is tokenised once and
kept. The cut is proven on probes and then on the first texts of the run; where it changes an id, it is off.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise, product
from typing import Any

from posttrain.errors import ConfigError, EncodingError

_CACHED_IDS = 1_000_000
"""Ids of the pieces that are kept: about 36 MB of Python integers."""
_CHECKED_TEXTS = 64
"""Texts that are also tokenised whole, to prove that cutting changes nothing on this run's own texts."""
_PROBES = ("", "a b", " x", "\nz\n", "Ünïcode 12", "\n\n", "'s")


class Tokens:
    """A tokenizer's text side.

    tokens = Tokens(tokenizer)
    tokens.ids("<|im_start|>user\\nHi<|im_end|>\\n")      # [1, 4093, 198, 26843, 2, 198]
    """

    def __init__(self, tokenizer: Any):
        if not hasattr(tokenizer, "get_added_vocab"):
            raise ConfigError(
                "an encoder needs a tokenizer",
                found=f"{type(tokenizer).__name__}: {tokenizer!r}"[:80],
                expected="the tokenizer of a loaded model",
                example='loaded = pt.load("embedded"); pt.Encoder(loaded.tokenizer, loaded.speech.settings())',
                remedy="load the model, and give its `tokenizer`",
            )
        self.tokenizer = tokenizer
        self.added: dict[str, int] = {text: int(number) for text, number in tokenizer.get_added_vocab().items()}
        self.bos_id: int | None = tokenizer.bos_token_id
        self.eos_id: int | None = tokenizer.eos_token_id
        self.bos_text: str | None = tokenizer.bos_token
        self.eos_text: str | None = tokenizer.eos_token
        self._pieces: dict[str, list[int]] = {}
        self._cached_ids = 0
        self._unchecked = _CHECKED_TEXTS
        self._has_plain_backend = _has_plain_backend(tokenizer)
        self._cuts = self._provable_cuts()

    # ------------------------------------------------------------ text to ids

    def ids(self, text: str) -> list[int]:
        """The ids of a text; special tokens written in it are single ids, and none is added."""
        if self._cuts is None:
            return self.whole(text)
        ids = self._ids_by_pieces(text, self._cuts)
        if self._unchecked:
            self._unchecked -= 1
            expected = self.whole(text)
            if ids != expected:
                self._cuts = None  # for good: a cut that was wrong once may be wrong anywhere
            return expected
        return ids

    def whole(self, text: str) -> list[int]:
        """The same by one call of the tokenizer: the slow way that `ids` must agree with."""
        return self._call([text])[0]

    def continuation(self, context: str, context_ids: Sequence[int], text: str) -> list[int]:
        """The ids of `text` after `context`, which keeps its own ids.

        Raises:
            EncodingError: the tokenizer writes the text differently when it stands after the context, so that no
                ids mean context and text.
        """
        joint = self.ids(context + text)
        length = len(context_ids)
        if joint[:length] == list(context_ids):
            return joint[length:]
        # The tokenizer merges across the boundary. What a sampler would have produced is the text tokenised apart, and
        # it is right if context and text decode to what was meant.
        joint_text = self.decode(joint)
        for separate in self._without_context(text):
            if self.decode([*context_ids, *separate]) == joint_text:
                return separate
        raise EncodingError(
            "the tokenizer cannot write this text after its context without changing the context",
            found=f"context ending in {context[-40:]!r}, text beginning with {text[:40]!r}",
            expected="ids of the context, followed by ids of the text",
            remedy="end the generation prompt of the chat template with a special token or a newline",
        )

    def _without_context(self, text: str) -> Iterable[list[int]]:
        """The text's ids without its context: as a text of its own, and after a special token.

        SentencePiece tokenizers put a space before a text of its own, but not (all of them) after a special token.
        """
        yield self.ids(text)
        if self.eos_text is not None:
            yield self.ids(self.eos_text + text)[1:]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens shown as they are written."""
        text = self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return str(text)

    def added_by_default(self) -> list[int]:
        """The ids that the tokenizer puts before a plain text by itself: [bos] for Llama's, [] for most."""
        with_added = [int(number) for number in self.tokenizer("x")["input_ids"]]
        without_added = self.whole("x")
        start = next((i for i in range(len(with_added)) if with_added[i : i + len(without_added)] == without_added), 0)
        return with_added[:start]

    def single_id(self, text: str) -> int | None:
        """The id of a text that is exactly one token, else None."""
        if text in self.added:
            return self.added[text]
        ids = self.whole(text) if text else []
        return ids[0] if len(ids) == 1 else None

    def first_added(self, text: str) -> tuple[int, str] | None:
        """Where the first added token in a text begins, and which it is."""
        match = self._added_pattern.search(text) if self._added_pattern else None
        return (match.start(), match.group()) if match else None

    def added_at_end(self, text: str) -> list[str]:
        """The added tokens that a text ends with, the last one first; white space between them is passed over."""
        tokens: list[str] = []
        bare = text.rstrip()
        while True:
            token = max((token for token in self.added if token and bare.endswith(token)), key=len, default=None)
            if token is None:
                return tokens
            tokens.append(token)
            bare = bare.removesuffix(token).rstrip()

    def not_inside(self, text: str, at: int) -> int:
        """`at`, or the beginning of the added token around it: where two texts differ, they differ in whole tokens."""
        for match in self._added_pattern.finditer(text) if self._added_pattern else ():
            if match.start() < at < match.end():
                return match.start()
        return at

    def special_pattern(self, more: Sequence[str] = ()) -> re.Pattern[str] | None:
        """A pattern of all texts that become control tokens, and of `more`."""
        table = self._added_table()
        return pattern_of(
            [*self.tokenizer.all_special_tokens, *(token.content for token in table if token.special), *more]
        )

    # ------------------------------------------------------------ the pieces

    def _call(self, texts: list[str]) -> list[list[int]]:
        # verbose=False: a text longer than the model is truncated by policy later, and counted there.
        encoded = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return [[int(number) for number in ids] for ids in encoded]

    def _call_backend(self, texts: list[str]) -> list[list[int]]:
        """`_call` without what transformers puts around the Rust tokenizer, which costs as much as the tokenizer does
        on texts as short as a turn. Only for a tokenizer that asks its backend so itself, and `ids` compares the two
        on the run's first texts.
        """
        backend = self.tokenizer.backend_tokenizer
        if backend.truncation is not None or backend.padding is not None:  # set by somebody since; rule 3
            return self._call(texts)
        backend.encode_special_tokens = self.tokenizer.split_special_tokens
        return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]

    def _ids_by_pieces(self, text: str, cuts: re.Pattern[str]) -> list[int]:
        pieces = _split_before(text, cuts)
        missing = [piece for piece in dict.fromkeys(pieces) if piece not in self._pieces]
        if missing:
            self._tokenise_pieces(missing, keep=pieces)
        known = self._pieces
        ids: list[int] = []
        for piece in pieces:
            ids += known[piece]
        return ids

    def _tokenise_pieces(self, missing: list[str], keep: list[str]) -> None:
        # Old pieces are dropped all at once: the system prompt and common turns are back after one row.
        if self._cached_ids > _CACHED_IDS:
            self._pieces = {piece: self._pieces[piece] for piece in keep if piece in self._pieces}
            self._cached_ids = sum(map(len, self._pieces.values()))
        call = self._call_backend if self._has_plain_backend else self._call
        for piece, ids in zip(missing, call(missing), strict=True):
            self._pieces[piece] = ids
            self._cached_ids += len(ids)

    def _added_table(self) -> list[Any]:
        """The added tokens with their properties; a tokenizer made by hand may not tell them."""
        return list(getattr(self.tokenizer, "added_tokens_decoder", {}).values())

    def _provable_cuts(self) -> re.Pattern[str] | None:
        """A pattern of the tokens before which a text may be cut, or None if no cut is proven harmless."""
        self._added_pattern = pattern_of(self.added)
        table = self._added_table()
        # A token that is matched after normalisation, or that swallows the blanks before it, is left inside its piece.
        cuts = pattern_of(
            [token.content for token in table if not (token.normalized or token.lstrip or token.single_word)]
        )
        # A tokenizer that makes ids of an empty text would add them to every piece.
        if cuts is None or self.whole(""):
            return None
        tokens = [token for token in self.added if cuts.fullmatch(token)][:8]
        for before, token, after in product(_PROBES, tokens, _PROBES):
            if self.whole(before + token + after) != self.whole(before) + self.whole(token + after):
                return None
        return cuts


def _has_plain_backend(tokenizer: Any) -> bool:
    """Whether calling the tokenizer is calling its Rust backend, with nothing of a class's own in between."""
    if not hasattr(tokenizer, "backend_tokenizer"):
        return False
    from transformers import TokenizersBackend  # here, since a tokenizer of another kind needs no transformers

    kind = type(tokenizer)
    return isinstance(tokenizer, TokenizersBackend) and all(
        getattr(kind, name) is getattr(TokenizersBackend, name) for name in ("__call__", "_encode_plus")
    )


def _split_before(text: str, cuts: re.Pattern[str]) -> list[str]:
    """_split_before("a<s>b<s>", <s>) -> ["a", "<s>b", "<s>"]"""
    starts = [match.start() for match in cuts.finditer(text)]
    if not starts or starts[0] != 0:
        starts.insert(0, 0)
    starts.append(len(text))
    return [text[start:end] for start, end in pairwise(starts) if end > start]


def pattern_of(tokens: Iterable[str]) -> re.Pattern[str] | None:
    """The longest token wins where two begin at the same place, as in the tokenizers themselves."""
    ordered = sorted({token for token in tokens if token}, key=lambda token: (-len(token), token))
    return re.compile("|".join(map(re.escape, ordered))) if ordered else None
