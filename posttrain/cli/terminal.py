"""Where text meets the terminal: every verb prints through here, so that no caller can forget to escape it.

Text of rows, models, programs and file names may hold what a terminal obeys: ESC clears the screen, sets the title or
writes the clipboard (OSC 52), and the marks of writing direction show a line in another order than it has. It is shown
as it is written in Python, `\\x1b`; JSON on stdout stays as it is (`echo_exact`), and so do answers into a pipe.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from typing import IO, Any, cast

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""C0 but tab and newline, DEL, C1, and the marks and overrides of direction."""


def printable(text: str) -> str:
    """ESC becomes the four characters that Python writes for it, in which a terminal sees no command."""
    return _OBEYED.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    number = ord(match[0])
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"


class TerminalConsole(Console):
    """A console whose own styles and bars reach the terminal, and whose texts reach it escaped.

    Here, and not where its lines are written: there nobody can tell an ESC of a style from one of a row, and the cells
    of a table have their widths.
    """

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else printable(text), style, control)


def terminal(*, stderr: bool = False) -> Console:
    """No markup, emoji codes or links out of texts: `[red]` in a file's name is part of the name."""
    return TerminalConsole(stderr=stderr, markup=False, emoji=False)


def echo(text: str, *, err: bool = False) -> None:
    """A line for a person."""
    _write(printable(text), err)


def echo_exact(text: str, *, json: bool = False) -> None:
    """A line for a program on stdout, as it is; at a terminal it is escaped, in JSON's own way where it is `json`."""
    if sys.stdout.isatty():
        text = _OBEYED.sub(lambda match: f"\\u{ord(match[0]):04x}", text) if json else printable(text)
    _write(text, False)


def _write(text: str, err: bool) -> None:
    # Not `typer.echo`: into a pipe it drops what looks like a style, so an answer would lose characters without a word.
    print(text, file=sys.stderr if err else sys.stdout, flush=True)


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
