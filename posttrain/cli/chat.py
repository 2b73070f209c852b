"""A conversation in the terminal."""

from __future__ import annotations

import sys

from posttrain.cli.speaker import Speaker
from posttrain.cli.terminal import printable, terminal
from posttrain.training.interrupts import Stopped
from posttrain.types import Message

HELP = "an empty line or /exit ends, /reset begins anew"


def chat(speaker: Speaker, seed: int) -> None:
    """Read a line, stream the answer, remember both; Ctrl-C stops an answer, or the conversation at the prompt."""
    console = terminal()
    console.print(HELP, style="dim", highlight=False)
    conversation: list[Message] = []
    while True:
        try:
            line = console.input("[bold cyan]you[/bold cyan]  ").strip()
        except Stopped:  # a signal from outside ends the command, not an answer
            raise
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        if line in ("", "/exit", "/quit"):
            return
        if line == "/reset":
            conversation.clear()
            console.print("the conversation is empty", style="dim")
            continue
        conversation.append(Message("user", line))
        console.print("model", style="bold green", end="  ")
        conversation.append(Message("assistant", _answer(speaker, conversation, seed + len(conversation))))


def _answer(speaker: Speaker, conversation: list[Message], seed: int) -> str:
    pieces = []
    try:
        for piece in speaker.stream(conversation, seed):
            pieces.append(piece)
            sys.stdout.write(printable(piece))
            sys.stdout.flush()
    except Stopped:
        raise
    except KeyboardInterrupt:
        sys.stdout.write(" (stopped)")
    sys.stdout.write("\n")
    return "".join(pieces)
