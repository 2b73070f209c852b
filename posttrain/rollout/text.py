"""From a completion's ids to its text.

completion_text(completion, encoder.tokens.decode) -> "Four."       # cut before the stop string that ended it

Whoever shows or judges an answer makes its text here. The ids stay whole: they are what was sampled and what trains.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from posttrain.rollout.engine import Completion

Decode = Callable[[Sequence[int]], str]
"""Ids to text: `posttrain.data.tokens.Tokens.decode`, of an encoder's `tokens`."""


def completion_text(completion: Completion, decode: Decode) -> str:
    """The text of a completion, without its stop token, and cut before the stop string that ended it.

    Trimmed by the text and not by the ids, since a stop string may begin within a token: ids that spell "Four.\\n\\nQ:"
    with the stop string "\\n\\n" give "Four.".
    """
    text = decode(completion.answer_ids)
    if completion.stopped_by is None:
        return text
    # The first: sampling ended with the token that completed it, so it was not there before.
    at = text.find(completion.stopped_by)
    return text if at < 0 else text[:at]
