"""Where the steps of a response end, in tokens: the encoder of process rewards (`reward_encode.py`) trains there.

A labelled step is found by its own text and not by the mark between steps: a step may hold the mark itself, and a mark
that the template writes elsewhere is no step.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

from posttrain.errors import EncodingError

Decode = Callable[[Sequence[int]], str]


def step_ends(decode: Decode, ids: Sequence[int], steps: Sequence[str], mark: str, *, cut: bool = False) -> list[int]:
    """For each step the index in `ids` of the token that ends it: the one that holds the last character of the mark
    after it (of the step itself, where no mark follows); the last token of all ends the last step.

    step_ends(decode, ids of "3*4 = 12\\n2+12 = 15<|im_end|>", ["3*4 = 12", "2+12 = 15"], "\\n") -> [index of "\\n",
    index of "<|im_end|>"]

    Args:
        ids: the response's, from its first token on.
        cut: the response was cut, so that steps may be missing at its end: fewer indices are returned.

    Raises:
        EncodingError: a step is not there, or two steps end with the same token.
    """
    text = decode(ids)
    lengths = _PrefixLengths(decode, ids)
    ends: list[int] = []
    at = 0
    for number, step in enumerate(steps, 1):
        start = text.find(step, at)
        # Only white space may stand between two steps: else the search has run over a part that was changed, and has
        # found the step's words further down.
        if start < 0 or (number > 1 and text[at:start].strip()):
            if cut:
                break
            raise EncodingError(
                f"step {number} of the response is not in its tokens as the row has it",
                found=repr(text[at : at + 80]),
                expected=repr(step[:80]),
                remedy="the tokenizer or the template changes the text: write the step as they do, or remove the row",
            )

        at = start + len(step)
        if text.startswith(mark, at):
            at += len(mark)

        # The first token whose text reaches the step's end; the last step ends with the stop token after it.
        end = len(ids) - 1 if number == len(steps) else bisect_left(lengths, at, hi=len(ids)) - 1
        if ends and end <= ends[-1]:
            raise EncodingError(
                f"the steps {number - 1} and {number} of the response end with the same token",
                found=repr(decode([ids[end]])),
                expected="a token of its own at the end of every step",
                remedy="join the two steps, or use a `mark` that the tokenizer keeps apart from what follows",
            )
        ends.append(end)
    return ends


class _PrefixLengths(Sequence[int]):
    """Characters of the first k tokens, decoded when asked for; what is half of a character does not count yet."""

    def __init__(self, decode: Decode, ids: Sequence[int]):
        self._decode, self._ids = decode, ids

    def __len__(self) -> int:
        return len(self._ids) + 1

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        # A prefix may cut a character of several bytes, which decodes to U+FFFD until its last byte is there.
        return len(self._decode(self._ids[:index]).rstrip("\ufffd"))
