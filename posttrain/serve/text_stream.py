"""Ids that come one by one, as text that is final: what was given is never taken back.

    stream = TextStream(decode, stop=("\\n\\n",))
    for number in ids: send(stream.push(number))
    send(stream.finish(stopped_by="\\n\\n"))

Held back are the bytes of half a character, and what may be the beginning of a stop string. An answer that is not
streamed is made by the same object, so the pieces of a stream are its text, always.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]

WINDOW = 24
"""Ids that are decoded again for each new one. All of them would make a long answer's cost grow with its square."""
CONTEXT = 6
"""Ids that are decoded before a window and not shown: SentencePiece drops the blank before a text's first word."""
UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What the bytes of half a character decode to."""


class TextStream:
    """The text of one completion.

    Args:
        decode: ids to text; special tokens as they are to be shown.
        stop: the strings that may end it.
        keep_stop: whether the string that ends it stays in the text (vLLM's `include_stop_str_in_output`).
    """

    def __init__(self, decode: Decode, stop: Sequence[str] = (), *, keep_stop: bool = False):
        self._decode, self._stop, self._keep_stop = decode, tuple(stop), keep_stop
        self._window: list[int] = []
        """The ids whose text may still change, behind `_hidden` ids of context."""
        self._hidden = 0
        self._given_of_window = 0
        """Characters of the window's text that were given."""

    def push(self, number: int) -> str:
        """The text that has become final with this id; "" where it all may still change."""
        self._window.append(number)
        text = self._window_text()
        fresh = text[self._given_of_window :]
        settled = fresh.rstrip(UNFINISHED)
        given = settled[: len(settled) - self._held(settled)]
        self._given_of_window += len(given)
        if len(self._window) - self._hidden > WINDOW:
            self._move_window(text)
        return given

    def finish(self, stopped_by: str | None = None) -> str:
        """The rest, cut before the stop string that ended the completion (or after it, with `keep_stop`)."""
        rest = self._window_text()[self._given_of_window :]
        # Found in the rest alone: whatever could begin a stop string was held back, so it begins there.
        if stopped_by is not None and (at := rest.find(stopped_by)) >= 0:
            rest = rest[: at + (len(stopped_by) if self._keep_stop else 0)]
        self._window.clear()
        self._hidden = self._given_of_window = 0
        return rest

    def _window_text(self) -> str:
        text = self._decode(self._window)
        return text[len(self._decode(self._window[: self._hidden])) :] if self._hidden else text

    def _held(self, text: str) -> int:
        """How many characters at the end are a stop string and what follows it, or may begin one."""
        starts = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        if starts:  # a token may hold all of it; the engine says which of them has ended the completion
            return len(text) - min(starts)
        longest = max((len(stop) for stop in self._stop), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            tail = text[-length:]
            if any(stop.startswith(tail) for stop in self._stop):
                return length
        return 0

    def _move_window(self, text: str) -> None:
        """Forgets ids whose text was given, where the others then decode to the same as before."""
        for kept in range(WINDOW // 2, len(self._window) - self._hidden):
            first = len(self._window) - kept
            head = self._decode(self._window[:first])
            hidden = self._decode(self._window[: self._hidden]) if self._hidden else ""
            before = len(head) - len(hidden)
            start = max(0, first - CONTEXT)
            moved = self._decode(self._window[start:])[len(self._decode(self._window[start:first])) :]
            # Only text that was given is forgotten, and only where the boundary falls between two characters.
            if before <= self._given_of_window and not head.endswith(UNFINISHED) and moved == text[before:]:
                self._window = self._window[start:]
                self._hidden = first - start
                self._given_of_window -= before
                return
