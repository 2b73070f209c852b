"""Tokens that a stage adds to its start: `tokens: ["<tool>", {text: "<|call|>", special: true}]`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field, field_validator, model_validator

from posttrain.arguments import wrong_argument
from posttrain.config.values import Settings, refuse


class NewToken(Settings):
    """One token more. A text alone may stand for it: `tokens: ["<tool>", "</tool>"]`."""

    text: str = Field(min_length=1)
    """What becomes one token wherever it stands in a text; no white space in it."""
    special: bool = False
    """Whether it is control and no text: left out where answers are shown, and found by
    `encoding.special_tokens_in_text`."""

    @model_validator(mode="before")
    @classmethod
    def _text_alone(cls, value: Any) -> Any:
        return {"text": value} if isinstance(value, str) else value

    @field_validator("text")
    @classmethod
    def _no_blanks(cls, text: str) -> str:
        # Tokenizers treat the space before a word as a part of it, each in its own way: such a token would be cut out
        # of one sentence and not of the next.
        if any(character.isspace() for character in text):
            raise refuse("a new token has no white space in it", found=repr(text), remedy="write it without")
        return text


def require_distinct(tokens: tuple[NewToken, ...]) -> tuple[NewToken, ...]:
    """For validators: refuses a token that is listed twice."""
    texts = [token.text for token in tokens]
    for place, text in enumerate(texts):
        if text in texts[:place]:
            raise refuse(f"the token `{text}` is listed twice", path=(place,), remedy="list each token once")
    return tokens


def new_tokens(tokens: Any, where: str = "tokens") -> tuple[NewToken, ...]:
    """Tokens as a program gives them: new_tokens(["<tool>", {"text": "<|call|>", "special": True}]).

    Raises:
        ConfigError: it is no list of texts, mappings and records, or a stage would refuse it.
    """
    if isinstance(tokens, str) or not isinstance(tokens, Sequence):
        raise wrong_argument(
            where, tokens, expected="a list of texts, each one token", remedy='write `tokens=["<tool>", "</tool>"]`'
        )
    return _Listed(tokens=tuple(tokens)).tokens


class _Listed(Settings):
    """The tokens of a call, held to what a stage's are held to."""

    tokens: tuple[NewToken, ...] = ()

    _distinct = field_validator("tokens")(require_distinct)
