"""What happens to a row that is longer than `max_length`: a policy with a name and a count, never silence.

Between drafts (`templates/drafts.py`) and trees: `Encoder` fits every draft before it freezes it.

    drop               the row is dropped, and counted
    keep_prompt_end    the beginning of the prompt is cut; BOS and a leading system turn stay where there is room
    cut_response       the responses are cut; a cut response has lost its stop token and gets no other
    per_side_budget    the same, under the name it has for pairs: each side may use what the prompt leaves free
    split              a bare text is cut into pieces, each of which trains; any other row is dropped, and counted

`max_length` counts the tokens of one path, a prompt with one of its branches: what the model sees at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

PairTruncation = Literal["drop", "keep_prompt_end", "cut_response", "per_side_budget"]
Truncation = Literal["drop", "keep_prompt_end", "cut_response", "per_side_budget", "split"]
TRUNCATIONS: tuple[str, ...] = get_args(Truncation)

DROP_REASONS = {
    "too_long": "longer than max_length",
    "prompt_too_long": "the prompt alone leaves no room for a response",
    "response_too_long": "the response leaves no room for the end of its prompt",
    "nothing_to_train": "no token trains",
    "nothing_left_to_train": "no token that trains is left after the cut",
    "identical_responses": "all responses have the same tokens",
    "identical_after_cut": "all responses have the same tokens after the cut",
    "template": "the chat template refuses the row or hides what must train",
    "prompt_mismatch": "the sides of the row do not share their prompt's ids",
    "special_tokens": "a text holds the name of a special token",
}
"""Why a tree is dropped: the labels under which it is counted, with their meaning."""

TRUNCATION_REASONS = {
    "prompt_cut": "the beginning of the prompt was cut",
    "response_cut": "the end of a response was cut, and with it the stop token",
    "text_split": "a bare text was cut into pieces, which train one by one",
}


@dataclass(frozen=True, slots=True)
class Side:
    """One branch before it is frozen: Side(ids=[52, 2], mask=[True, True], stops=(1,))."""

    ids: list[int]
    mask: list[bool]
    stops: tuple[int, ...] = ()
    """The positions of the stop tokens that train."""

    def cut(self, length: int) -> Side:
        """The first `length` tokens, less those after the last one that trains: they would be computed for nothing."""
        trained = [at for at in range(min(length, len(self.ids))) if self.mask[at]]
        end = trained[-1] + 1 if trained else 0
        return Side(self.ids[:end], self.mask[:end], tuple(stop for stop in self.stops if stop < end))


@dataclass(frozen=True, slots=True)
class Draft:
    """A tree before it is frozen: Draft(prompt=[1, 70, 71], sides=(Side(...), Side(...)))."""

    prompt: list[int]
    sides: tuple[Side, ...]

    @property
    def longest(self) -> int:
        return len(self.prompt) + max((len(side.ids) for side in self.sides), default=0)


@dataclass(frozen=True, slots=True)
class Fitted:
    """What became of a draft: Fitted(draft, truncated="response_cut") or Fitted(None, dropped="too_long")."""

    draft: Draft | None
    dropped: str | None = None
    truncated: str | None = None


def fit_length(
    draft: Draft,
    max_length: int | None,
    policy: Truncation,
    *,
    heads: Sequence[Sequence[int]] = ((),),
    shortest_prompt: int = 1,
) -> Fitted:
    """Make every path of a draft at most `max_length` tokens long.

    heads: beginnings of the prompt that `keep_prompt_end` would like to keep, the best first.
    shortest_prompt: how many tokens at the prompt's end must stay, so that the answer still has a question.
    """
    # Before any cut, so that a row without a trained token is counted as that and not as one that was cut too short.
    if not all(any(side.mask) for side in draft.sides):
        return Fitted(None, dropped="nothing_to_train")
    draft = Draft(draft.prompt, tuple(side.cut(len(side.ids)) for side in draft.sides))
    if _all_sides_equal(draft):
        return Fitted(None, dropped="identical_responses")
    if max_length is None or draft.longest <= max_length:
        return Fitted(draft)
    if policy in ("drop", "split"):  # bare texts were split before; of a conversation no piece stands alone
        return Fitted(None, dropped="too_long")
    if policy == "keep_prompt_end":
        return _keep_prompt_end(draft, max_length, heads, shortest_prompt)
    return _cut_sides(draft, max_length)


def split_text(side: Side, max_length: int | None) -> list[Side]:
    """A text as pieces of at most `max_length` tokens; each token that trains does so in one of them.

    A piece begins with the last token of the one before, as context: the first token of a sequence has nothing that
    predicts it, so that without it one token a piece would train in none.
    """
    if max_length is None or len(side.ids) <= max_length:
        return [side]
    pieces = []
    for start in range(0, len(side.ids) - 1, max_length - 1):
        ids, mask = side.ids[start : start + max_length], side.mask[start : start + max_length]
        mask[0] = False
        stops = tuple(stop - start for stop in side.stops if start < stop < start + max_length)
        if any(mask):
            pieces.append(Side(ids, mask, stops))
    return pieces


def _keep_prompt_end(draft: Draft, max_length: int, heads: Sequence[Sequence[int]], shortest_prompt: int) -> Fitted:
    room = max_length - (draft.longest - len(draft.prompt))
    if room < min(shortest_prompt, len(draft.prompt)) or room < 1:
        return Fitted(None, dropped="response_too_long")
    # A head may take half of the room at most: the end of the prompt is what the answer answers.
    head = next((head for head in heads if len(head) <= min(room // 2, room - shortest_prompt)), ())
    # The end of the prompt stays, and with it the question; what is lost is the beginning of the conversation.
    prompt = [*head, *draft.prompt[len(draft.prompt) - (room - len(head)) :]]
    return Fitted(Draft(prompt, draft.sides), truncated="prompt_cut")


def _cut_sides(draft: Draft, max_length: int) -> Fitted:
    room = max_length - len(draft.prompt)
    if room < 1:
        return Fitted(None, dropped="prompt_too_long")
    cut = Draft(draft.prompt, tuple(side.cut(room) for side in draft.sides))
    # A pair of which one side is empty would train the other alone, with a margin to nothing.
    if not all(side.ids for side in cut.sides):
        return Fitted(None, dropped="nothing_left_to_train")
    if _all_sides_equal(cut):
        return Fitted(None, dropped="identical_after_cut")
    return Fitted(cut, truncated="response_cut")


def _all_sides_equal(draft: Draft) -> bool:
    """Equal sides say nothing about which is better: their loss is constant and would only dilute the metrics."""
    first, *others = draft.sides or (Side([], []),)
    return bool(others) and all(side.ids == first.ids for side in others)
