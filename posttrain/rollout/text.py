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


SPAN = 16
"""Ids after which a search looks for a later place to decode from: few enough that a step stays cheap, enough that most
places are not in the middle of a character."""
MARGIN = 8
"""Characters kept beyond the longest stop string: a tokenizer may take back a blank as it goes on ("a ." -> "a.")."""
UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class StopSearch:
    """Looks for stop strings in an answer that grows by one id at a time, and decodes only its end.

    search = StopSearch(("\\n\\n",), encoder.tokens.decode)
    search.found([52]), search.found([52, 198, 198]) -> None, "\\n\\n"

    What it finds is what decoding the whole answer after each id would find. The text of the ids from some place on
    need not be the end of the whole text: sentencepiece drops the blank that begins it, a character may be cut in two,
    and where a tokenizer spells characters by bytes, one wrong byte makes a whole run of them unreadable. So the place
    moves only where the shorter text has been seen to be the end of the longer one, and no character is unfinished.
    """

    def __init__(self, strings: Sequence[str], decode: Decode):
        self._strings, self._decode = strings, decode
        self._needed = max(map(len, strings)) + MARGIN
        self._start = 0
        """The first id that is decoded."""

    def found(self, answer: Sequence[int]) -> str | None:
        """The stop string that the answer's last id completed: the earliest in the text, of two the longer."""
        text = self._decode(answer[self._start :])
        # A string that was there before would have ended the answer then: each found here ends in the newest text.
        hits = [(at, -len(string), string) for string in self._strings if (at := text.find(string)) >= 0]
        if hits:
            return min(hits)[2]
        length = len(answer) - self._start
        # An unfinished character may yet change how the run of bytes before it reads.
        if length >= 2 * SPAN and length % SPAN == 0 and not text.endswith(UNFINISHED):
            self._move(answer, text)
        return None

    def _move(self, answer: Sequence[int], text: str) -> None:
        """Decode from about half way on, if what is left is enough for the longest string."""
        middle = (self._start + len(answer)) // 2
        for place in range(middle, middle + 4):  # a character has at most four bytes
            rest = self._decode(answer[place:])
            if len(rest) >= self._needed and text.endswith(rest):
                self._start = place
                return
