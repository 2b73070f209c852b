"""What a terminal obeys, out of texts that are only to be read.

Text of rows, models, programs and file names may hold what a terminal obeys: ESC clears the screen, sets the title or
writes the clipboard (OSC 52), and the marks of writing direction show a line in another order than it has. It is shown
as it is written in Python, `\\x1b`. Standard library only.
"""

from __future__ import annotations

import re
from typing import IO, Any, cast

OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""C0 but tab and newline, DEL, C1, and the marks and overrides of direction."""


def printable(text: str) -> str:
    """ESC becomes the four characters that Python writes for it, in which a terminal sees no command."""
    return OBEYED.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    number = ord(match[0])
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"


class EscapingStream:
    """The stream of a log, whose lines are escaped: EscapingStream(sys.stderr)."""

    def __init__(self, stream: IO[str]):
        self.stream = stream

    def write(self, text: str) -> int:
        return self.stream.write(printable(text))

    def flush(self) -> None:
        self.stream.flush()


def escaping(stream: IO[str]) -> IO[str]:
    return cast("IO[str]", cast("Any", EscapingStream(stream)))
