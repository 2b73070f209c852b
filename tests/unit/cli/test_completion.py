"""Scripts for the tab key: all verbs and options are in them, and real shells complete with them."""

from __future__ import annotations

import os
import pty
import re
import select
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import typer.main
from typer.core import TyperGroup
from typer.testing import CliRunner

from posttrain.cli.app import VERBS, app
from posttrain.cli.completion import all_commands
from tests.surface.test_signatures import surface

RECIPE = """
model: embedded
evaluate: {suites: [{name: identity, kind: match}]}
stages:
  - name: warm_up   # the first
    method: sft
    rewards:
    - {name: no_stage, kind: math}
  - {method: dpo_nll, rewards: [{name: neither}], data: {stage: warm_up}}
  - method: grpo
    rewards:
      - name: nor_this
log: {name: outside}
"""
ASKED = {
    "posttrain conv": ["convert"],
    "posttrain run quicks": ["quickstart"],
    "posttrain models pu": ["pull"],
    "posttrain merge --resc": ["--rescale"],
    "posttrain merge --rescale ": ["l1", "none", "paper"],
    "posttrain launch slurm --nod": ["--nodes"],
    "posttrain generate embe": ["embedded"],
    "posttrain completion fi": ["fish"],
    # A verb that is a word of another one's line: options are those of the verb that was called.
    "posttrain new chat --da": ["--data"],
    "posttrain compare --model-c": ["--model-code"],
    # Files: beside names, after an option, with a blank.
    "posttrain check mine.": ["mine.yaml"],
    "posttrain new chat --data ro": ["rows of mine.jsonl"],
    "posttrain export runs/mi": ["runs/mine"],
    "posttrain generate embe runs/mi": ["runs/mine"],
    # A name that comes with posttrain hides no file: `quick.yaml` and `quickstart`.
    "posttrain run quick": ["quick.yaml", "quickstart"],
    # Stages: settings of a recipe's, names of a run's.
    "posttrain run mine.yaml wa": ["warm_up."],
    "posttrain run mine.yaml dp": ["dpo_nll."],
    "posttrain sweep mine.yaml gr": ["grpo."],
    "posttrain run mine.yaml no_s": [],
    "posttrain samples runs/mine --stage ": ["dpo", "sft"],
    "posttrain solve mine.yaml --stage wa": ["warm_up"],
}
"""Lines, and what the tab key has to offer."""


def script(shell: str) -> str:
    done = CliRunner().invoke(app, ["completion", shell])
    assert done.exit_code == 0
    return done.output


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.yaml").write_text(RECIPE)
    (tmp_path / "quick.yaml").write_text(RECIPE)
    (tmp_path / "rows of mine.jsonl").write_text("")
    for name in ("run.json", "sft/stage.json", "dpo/stage.json"):
        path = tmp_path / "runs" / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    for shell in ("bash", "zsh", "fish"):
        (tmp_path / f"completion.{shell}").write_text(script(shell))
    return tmp_path


def test_all_verbs_and_options_are_known() -> None:
    root = typer.main.get_command(app)
    assert isinstance(root, TyperGroup)
    known = {command.words: {option.name for option in command.options} for command in all_commands(root)}
    verb = ""
    for line in surface().splitlines():
        if not line.startswith("    "):
            verb = line.removeprefix("posttrain").strip()
            assert verb in known, verb
        elif line.split()[0].startswith("-"):
            assert line.split()[0].rstrip(",") in known[verb], f"{verb}: {line}"
    assert set(VERBS) <= set(known)


class Terminal:
    """A shell on a terminal of its own: what it shows of a line after the tab key."""

    def __init__(self, command: list[str], folder: Path, start: str):
        self.pid, self.screen = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "TERM": "dumb", "COLUMNS": "300"}
            os.execvpe(command[0], command, environment)
        self.ask(f"{start}; echo rea''dy\n", until="ready")

    def ask(self, text: str, until: str, seconds: float = 20.0) -> str:
        """Type a text, and read until something is shown."""
        os.write(self.screen, text.encode())
        shown, deadline = "", time.monotonic() + seconds
        while until not in shown:
            assert time.monotonic() < deadline, f"after {text!r}: {shown!r}"
            if select.select([self.screen], [], [], 0.1)[0]:
                shown += os.read(self.screen, 65536).decode(errors="replace")
        return shown

    def close(self) -> None:
        os.close(self.screen)
        os.waitpid(self.pid, 0)


def in_bash(folder: Path) -> tuple[Callable[[str], list[str]], Callable[[], None]]:
    """The words that readline puts into a line, every candidate at once (M-*)."""
    terminal = Terminal(["bash", "--noprofile", "--norc", "-i"], folder, "PS1=; source completion.bash")
    terminal.ask("words() { printf '<%s>' \"$@\"; }; echo don''e\n", until="done")

    def complete(line: str) -> list[str]:
        # The line as it then stands is the arguments of a function that shows them one by one.
        shown = terminal.ask(f"{line}\x1b*\x01words \x05; echo en''d\n", until="end\r\n")
        return _words(shown)[len(line.split(" ")) - 1 :]

    return complete, terminal.close


def in_zsh(folder: Path) -> tuple[Callable[[str], list[str]], Callable[[], None]]:
    """The same, by the widget that inserts all matches."""
    start = (
        "PS1=; unsetopt zle_bracketed_paste prompt_cr prompt_sp; autoload -Uz compinit; compinit -u; "
        "source completion.zsh; every() { _main_complete; compstate[insert]=all; compstate[list]=; }; "
        "zle -C every complete-word every; bindkey '^T' every"
    )
    terminal = Terminal(["zsh", "-f", "-i"], folder, start)
    terminal.ask("words() { printf '<%s>' \"$@\" }; echo don''e\n", until="done")

    def complete(line: str) -> list[str]:
        shown = terminal.ask(f"{line}\x14\x01words \x05; echo en''d\n", until="end\r\n")
        return _words(shown)[len(line.split(" ")) - 1 :]

    return complete, terminal.close


def _words(shown: str) -> list[str]:
    """<posttrain><run><a b> -> ["posttrain", "run", "a b"], of the last line that has any."""
    return re.findall(r"<([^<>]*)>", shown[shown.rindex("<posttrain>") :])


def in_fish(folder: Path) -> tuple[Callable[[str], list[str]], Callable[[], None]]:
    def complete(line: str) -> list[str]:
        ask = f"source completion.fish; complete -C {shlex.quote(line)}"
        done = subprocess.run(
            ["fish", "--no-config", "-c", ask],
            cwd=folder, env={**os.environ, "HOME": str(folder)}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert not done.stderr, done.stderr
        return [one.split("\t")[0] for one in done.stdout.splitlines()]

    return complete, lambda: None


SHELLS = {"bash": in_bash, "zsh": in_zsh, "fish": in_fish}


@pytest.mark.parametrize("shell", SHELLS)
def test_a_real_shell_offers_what_there_is(shell: str, folder: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} is installed here")
    complete, close = SHELLS[shell](folder)
    try:
        for line, wanted in ASKED.items():
            typed = line.rpartition(" ")[2]
            offered = {word.rstrip("/") for word in complete(line)} - {typed}  # what stays as it was typed
            assert sorted(offered) == wanted, line
    finally:
        close()
