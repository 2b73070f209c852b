"""Where every error of a verb ends: what it says, and the exit code.

2    posttrain refused (or the operating system did), and says what, where and what to do
130  Ctrl-C; says how to go on
143  SIGTERM, from a scheduler, a container, `timeout`; the same
129  SIGHUP, from a terminal that is closed; the same. `nohup` keeps it away
1    anything else: a fault of posttrain. The traceback goes to a file, its place to the terminal
"""

from __future__ import annotations

import functools
import os
import shlex
import sys
import tempfile
import traceback
from collections.abc import Callable

import typer
from rich.text import Text

from posttrain.cli.terminal import terminal
from posttrain.errors import PosttrainError
from posttrain.runs.disk import refusal_of
from posttrain.training.interrupts import Stopped, ending_signals


def guarded(verb: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(verb)
    def run(*arguments: object, **options: object) -> None:
        try:
            with ending_signals():
                verb(*arguments, **options)
        except PosttrainError as error:
            show(error)
            raise typer.Exit(2) from None
        except KeyboardInterrupt as stop:
            _say(f"\n{str(stop) or 'stopped'}")
            _say(f"  to go on: {again(sys.argv)}")
            raise typer.Exit(stop.code if isinstance(stop, Stopped) else 130) from None
        except (typer.Exit, typer.Abort, typer.BadParameter, BrokenPipeError):
            raise
        except Exception as error:
            if (refused := refusal_of(error)) is not None:
                show(refused)
                raise typer.Exit(2) from None
            _say(f"an unexpected {type(error).__name__}: {error}", "bold red")
            _say_notes(error)
            _say(f"  this is a fault of posttrain; the traceback is in {_write_traceback(error)}")
            raise typer.Exit(1) from None

    return run


def show(error: PosttrainError) -> None:
    """The error on stderr: the problem in red, the rest as it is."""
    first, _, details = str(error).partition("\n")
    terminal(stderr=True).print(Text(first, style="bold red"), soft_wrap=True)
    if details:
        _say(details)
    if error.ranks:
        _say(f"  {'ranks:':<9} {', '.join(map(str, error.ranks))}")
    _say_notes(error)


def _say_notes(error: Exception) -> None:
    """Which rank of a job it was, and in which phase; see `parallel.watch`."""
    for note in error.__notes__ if hasattr(error, "__notes__") else ():
        _say(f"  {note}")


def again(arguments: list[str]) -> str:
    """The command that goes on from the last checkpoint: the same one, without the option that starts anew."""
    return shlex.join(["posttrain", *(argument for argument in _without_keys(arguments[1:]) if argument != "--fresh")])


def _without_keys(arguments: list[str]) -> list[str]:
    """The arguments, with KEY for what --api-key gives: stderr ends up in logs, a traceback in reports."""
    shown = [
        "KEY" if before == "--api-key" else argument
        for before, argument in zip(["", *arguments], arguments, strict=False)
    ]
    return ["--api-key=KEY" if argument.startswith("--api-key=") else argument for argument in shown]


def _say(text: str, style: str = "") -> None:
    terminal(stderr=True).print(Text(text, style=style), soft_wrap=True)


def _write_traceback(error: Exception) -> str:
    handle, path = tempfile.mkstemp(prefix="posttrain-traceback-", suffix=".txt")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(f"{shlex.join(_without_keys(sys.argv))}\nPython {sys.version}\n\n")
        file.writelines(traceback.format_exception(error))
    return path
