"""How likely a model finds given texts: tokens in overlapping windows, each scored once.

    scored = text_windows(ids, prefix=1, window=8, stride=4)
    # [((1,), ids[:7]), (ids[3:7], ids[7:11]), (ids[7:11], ids[11:15]), ...]

The first window begins with the tokenizer's beginning token (its end token, where it has none), so that the first token
of the text is predicted too. Every further window scores `stride` tokens, with what is left of it as context: a token
is never predicted from less than `window - stride` tokens, where a window that begins afresh predicts its first token
from one. The whole of a text counts, however long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.data.encode import Encoder
from posttrain.errors import ConfigError, EmptyDatasetError, RowError
from posttrain.evaluate.suites.perplexity import FixedAnswer
from posttrain.rollout.engine import FinishReason
from posttrain.types import Demonstration, Example, RowRef

LONGEST_WINDOW = 2_048
"""Of a model with room for more: attention is dear, and figures of two models are compared by the same windows."""
TextWindow = tuple[tuple[int, ...], tuple[int, ...]]
"""(context, the tokens that are scored after it)"""


@dataclass(frozen=True, slots=True)
class GivenText:
    """GivenText("The lion sleeps.", RowRef("manuals.jsonl", 1))"""

    text: str
    row: RowRef

    @property
    def n_bytes(self) -> int:
        return len(self.text.encode())

    @property
    def n_words(self) -> int:
        """Runs of other characters than blanks."""
        return len(self.text.split())


def texts_of(examples: Sequence[Example]) -> list[GivenText]:
    """Rows of bare text.

    Raises:
        RowError: another kind of row; a text of blanks alone.
        EmptyDatasetError: there is none.
    """
    found = []
    for example in examples:
        text = example.messages[0].content if isinstance(example, Demonstration) and example.is_text else None
        if text is None or not text.strip():
            raise RowError(
                "the row is no text to score" if text is None else "the row's text is empty",
                reason="bad_label",
                where=example.row,
                found=type(example).__name__ if text is None else repr(text),
                expected="a row of bare text",
                example='{"text": "The lion sleeps."}',
                remedy="write the text under `text`; a suite of kind `perplexity` measures answers to prompts",
            )
        found.append(GivenText(text, example.row))
    if not found:
        raise EmptyDatasetError("there is no text to score", remedy="name a file with at least one row")
    return found


def text_windows(ids: Sequence[int], prefix: int, window: int, stride: int) -> list[TextWindow]:
    """The text's tokens in windows of at most `window` tokens, context and scored ones together; each scored once.

    Args:
        prefix: stands before the first token.
        stride: of every window after the first; 1 to `window - 1`.
    """
    whole = tuple(ids)
    windows: list[TextWindow] = [((prefix,), whole[: window - 1])]
    at = window - 1
    while at < len(whole):
        end = min(at + stride, len(whole))
        windows.append((whole[max(0, end - window) : at], whole[at:end]))
        at = end
    return windows


def window_of(model: Any, window: int | None, stride: int | None) -> tuple[int, int]:
    """The window and stride for a model; what is None as the module says.

    Raises:
        ConfigError: the model has no room for the window; the stride leaves no context.
    """
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if window is not None and positions is not None and window > positions:
        raise ConfigError(
            "the window is longer than what the model can read",
            where="window",
            found=f"window: {window:,}, the model has {positions:,} positions",
            remedy=f"write `window: {positions}`, or leave it out",
        )
    longest = window or min(LONGEST_WINDOW, positions or LONGEST_WINDOW)
    step = stride or max(1, longest // 2)
    if step >= longest:
        raise ConfigError(
            "a window would score all of its tokens, the first of them without context",
            where="stride",
            found=f"stride: {step:,}, window: {longest:,}",
            remedy=f"write `stride: {max(1, longest // 2)}`",
        )
    return longest, step


def fixed_windows(text: GivenText, encoder: Encoder, window: int, stride: int) -> list[FixedAnswer]:
    """A text's windows as what a model scores.

    Raises:
        RowError: the tokenizer has neither a beginning nor an end token, or writes the text as none.
    """
    prefix = encoder.bos_id if encoder.bos_id is not None else encoder.tokenizer.eos_token_id
    ids = encoder.tokens.ids(text.text)
    if prefix is None or not ids:
        raise RowError(
            "the tokenizer has no token from which a text could begin" if ids else "the tokenizer writes no token",
            reason="bad_label",
            where=text.row,
            found=repr(text.text[:60]),
            expected="a beginning or end token" if ids else "a text of one token or more",
            remedy="use a tokenizer with a `bos_token` or `eos_token`" if ids else "remove the row",
        )
    return [
        FixedAnswer(context, scored, str(FinishReason.STOP_TOKEN))
        for context, scored in text_windows(ids, int(prefix), window, stride)
    ]
