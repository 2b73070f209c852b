"""Log-probs in the shapes of OpenAI's two routes, and of vLLM's `prompt_logprobs`. All are raw: see `Alternatives`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from posttrain.rollout.engine import Alternatives
from posttrain.serve.token_text import TokenTexts

LEAST = -9999.0
"""What JSON is given for a log-prob of minus infinity, which it cannot write; OpenAI's own stand-in."""


def finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else LEAST


@dataclass
class TokenNames:
    """The names of tokens in log-probs: texts, or "token_id:52" where a client asks for those (vLLM)."""

    texts: TokenTexts
    as_ids: bool = False

    def of(self, number: int) -> str:
        return f"token_id:{number}" if self.as_ids else self.texts.of(number).text


@dataclass
class CompletionLogprobs:
    """The `logprobs` of one choice of `/v1/completions`, token by token, over the pieces of a stream.

    Four lists of one length: tokens, token_logprobs, top_logprobs, text_offset. The first token of a prompt has null
    for its log-prob, since nothing predicts it.
    """

    names: TokenNames
    characters: int = 0
    """Of the text until here: a token's offset is where its first character stands, an echoed prompt counted."""
    _rows: list[tuple[str, float | None, dict[str, float] | None, int]] = field(default_factory=list)

    def add(self, number: int, said: Alternatives | None, *, in_text: bool = True) -> None:
        """One token more; `in_text`: whether the text shows it, as it does not show a special token."""
        name = self.names.of(number)
        data = self.names.texts.of(number).bytes
        # A token that begins within a character belongs to the one that is under way.
        inside = bool(data) and data[0] & 0xC0 == 0x80
        offset = max(0, self.characters - inside)
        self.characters += sum(byte & 0xC0 != 0x80 for byte in data) if in_text else 0
        if said is None:
            self._rows.append((name, None, None, offset))
            return
        top: dict[str, float] = {}
        for other, logprob in [*said.top, (number, said.logprob)]:
            # Two ids may have one text. The larger stays: a client finds the likeliest by the largest number.
            text = self.names.of(other)
            top[text] = max(finite(logprob), top.get(text, -math.inf))
        self._rows.append((name, finite(said.logprob), top, offset))

    def take(self) -> dict[str, Any]:
        """What was added since the last time."""
        rows, self._rows = self._rows, []
        return {
            "tokens": [row[0] for row in rows],
            "token_logprobs": [row[1] for row in rows],
            "top_logprobs": [row[2] for row in rows],
            "text_offset": [row[3] for row in rows],
        }


def chat_logprob(names: TokenNames, number: int, said: Alternatives) -> dict[str, Any]:
    """One entry of `logprobs.content` of a chat completion."""

    def entry(other: int, logprob: float) -> dict[str, Any]:
        return {"token": names.of(other), "logprob": finite(logprob), "bytes": list(names.texts.of(other).bytes)}

    return {**entry(number, said.logprob), "top_logprobs": [entry(other, logprob) for other, logprob in said.top]}


def prompt_logprobs(
    names: TokenNames, ids: Sequence[int], scores: Iterable[Alternatives | None]
) -> list[dict[str, Any] | None]:
    """vLLM's `prompt_logprobs`: for each token an object by id, the token itself first; null for the first token."""
    result: list[dict[str, Any] | None] = []
    for number, said in zip(ids, scores, strict=True):
        if said is None:
            result.append(None)
            continue
        ranks = {other: rank for rank, (other, _) in enumerate(said.top, 1)}
        entries = {number: said.logprob, **{other: logprob for other, logprob in said.top if other != number}}
        result.append(
            {
                str(other): {
                    "logprob": finite(logprob),
                    "rank": ranks.get(other),
                    "decoded_token": names.texts.of(other).text,
                }
                for other, logprob in entries.items()
            }
        )
    return result
