"""Where text meets the terminal: every verb prints through here, so that no caller can forget to escape it.

Text of rows, models, programs and file names may hold what a terminal obeys: ESC clears the screen, sets the title or
writes the clipboard (OSC 52), and the marks of writing direction show a line in another order than it has. It is shown
as it is written in Python, `\\x1b`; JSON on stdout stays as it is (`echo_exact`), and so do answers into a pipe.
"""

from __future__ import annotations

import sys

from rich.console import Console

from posttrain.runs.escapes import OBEYED, escaping, printable
from posttrain.runs.terminal import terminal_console

__all__ = ["echo", "echo_exact", "escaping", "printable", "terminal"]


def terminal(*, stderr: bool = False) -> Console:
    """No markup, emoji codes or links out of texts: `[red]` in a file's name is part of the name."""
    return terminal_console(stderr=stderr)


def echo(text: str, *, err: bool = False) -> None:
    """A line for a person."""
    _write(printable(text), err)


def echo_exact(text: str, *, json: bool = False) -> None:
    """A line for a program on stdout, as it is; at a terminal it is escaped, in JSON's own way where it is `json`."""
    if sys.stdout.isatty():
        text = OBEYED.sub(lambda match: f"\\u{ord(match[0]):04x}", text) if json else printable(text)
    _write(text, False)


def _write(text: str, err: bool) -> None:
    # Not `typer.echo`: into a pipe it drops what looks like a style, so an answer would lose characters without a word.
    print(text, file=sys.stderr if err else sys.stdout, flush=True)
