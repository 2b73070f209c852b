"""Scripts for the tab key: all verbs and options are in them, and bash completes with them."""

from __future__ import annotations

import shutil
import subprocess

import pytest
import typer.main
from typer.core import TyperGroup
from typer.testing import CliRunner

from posttrain.cli.app import VERBS, app
from posttrain.cli.completion import all_commands
from tests.surface.test_signatures import surface


def script(shell: str) -> str:
    done = CliRunner().invoke(app, ["completion", shell])
    assert done.exit_code == 0
    return done.output


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


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_completes_verbs_options_choices_and_names() -> None:
    asked = {
        "posttrain conv": "convert",
        "posttrain run quicks": "quickstart",
        "posttrain models pu": "pull",
        "posttrain merge --resc": "--rescale",
        "posttrain merge --rescale ": "paper l1 none",
        "posttrain launch slurm --nod": "--nodes",
        "posttrain generate embe": "embedded",
    }
    calls = "".join(
        "COMP_WORDS=(" + " ".join(f'"{word}"' for word in line.split(" ")) + f"); COMP_CWORD={line.count(' ')}; "
        '_posttrain; echo "${COMPREPLY[*]}"\n'
        for line in asked
    )
    done = subprocess.run(["bash"], input=script("bash") + calls, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == list(asked.values()), done.stderr


def test_zsh_and_fish_have_the_same_words() -> None:
    assert "bashcompinit" in script("zsh") and "complete -o default" in script("zsh")
    lines = script("fish").splitlines()
    assert any("-a convert" in line for line in lines) and any(
        "-l rescale -x -a 'paper l1 none'" in line for line in lines
    )
