"""Options that were given and change nothing: each is said, or refused where something would be lost.

A user who writes `--top-p 0.9 --temperature 0` believes that it does something. An option is either used, or named
together with what it waits for; none is dropped without a word. Whether one was given is told from its value: one that
is written out as its default changes nothing anyway.
"""

from __future__ import annotations

from posttrain.cli.terminal import echo
from posttrain.errors import ConfigError


def note_unused(why: str, **given: bool) -> None:
    """Says on stderr which of these were given; the command goes on, since its result is what it would have been.

    note_unused("at temperature 0 the likeliest token is taken", top_p=top_p != 1.0, seed=seed != 0)
    """
    if options := _names(given):
        echo(f"note: {', '.join(options)} {'has' if len(options) == 1 else 'have'} no effect: {why}", err=True)


def refuse_unused(why: str, remedy: str, **given: bool) -> None:
    """
    Raises:
        ConfigError: one of these was given, and what it asks for would not happen.
    """
    if options := _names(given):
        raise ConfigError(f"{', '.join(options)} would be ignored: {why}", remedy=remedy)


def _names(given: dict[str, bool]) -> list[str]:
    return [f"--{name.replace('_', '-')}" for name, is_given in given.items() if is_given]
