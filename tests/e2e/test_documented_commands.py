"""Every command that README, docs and the recipes' headers show is one that the command line takes.

None is carried out here (the pipeline's tests and the quickstart's train): each is parsed by the real parser in a fresh
folder, and of `run` and `check` the recipe is read with its overrides, as those verbs read it, so that a verb, an
option, a recipe, a stage, a key or a path that is not there fails. Files of the user are stand-ins.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from posttrain.cli.app import app
from posttrain.config import find_recipe, load_recipe
from posttrain.config.paths import CATALOGUE_NAMES

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RECIPES = [*sorted((ROOT / "recipes").glob("*.yaml")), *sorted((ROOT / "posttrain" / "recipes").glob("*.yaml"))]
STAND_IN = """schema: 1
model: embedded
stages:
- {method: sft, data: package://preferences.jsonl}
- {method: dpo, data: package://preferences.jsonl}
"""
ROWS = '{"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}\n'
USERS_RECIPES = ("recipe.yaml", "mine.yaml", "identity.yaml", "axolotl.recipe.yaml", "RECIPE")
"""Recipes of a reader's own; `posttrain new` writes the third, `posttrain convert` the fourth."""


def shown() -> Iterator[tuple[str, str]]:
    """("README.md", "posttrain run mine.yaml dpo.beta=0.2"): of code blocks, of words in backticks and of headers."""
    for page in PAGES:
        fenced = False
        for line in page.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
            fenced ^= line.lstrip().startswith("```")
            if (fenced or line.startswith("    ")) and (match := re.match(r"\s*(?:\$ )?(posttrain .*)", line)):
                yield page.name, match[1]
            elif not fenced:
                yield from ((page.name, command) for command in re.findall(r"`(posttrain [^`]+)`", line))
    for recipe in RECIPES:
        header = recipe.read_text(encoding="utf-8").replace("\\\n#", " ")
        yield from ((recipe.name, command) for command in re.findall(r"^#  +(posttrain .*)$", header, re.MULTILINE))


def words_of(command: str) -> list[str]:
    """Without what stands beside it: an explanation behind blanks or `#`, a pipe or file, a synopsis' brackets."""
    command = re.sub(r"\[(?:--|/|STAGE)[^\]]*\]", "", re.split(r"\s{3,}", command)[0])
    words = shlex.split(re.split(r" [|>] ", command)[0].replace("...", ""), comments=True)[1:]
    return ["audit" if word == "VERB" else word for word in words]


COMMANDS = sorted({(page, " ".join(map(shlex.quote, words_of(command)))) for page, command in shown()})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout of a user: the recipes, and a file of his own wherever a command or a recipe names one."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    for name in USERS_RECIPES:
        (folder / name).write_text(STAND_IN)
    for _, command in COMMANDS:
        for word in shlex.split(command):
            path = word.partition("=")[2] or word
            if path.endswith(".jsonl") and "://" not in path:
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_text(ROWS)
    # What a recipe asks its reader to put beside it; those of the checkout itself stay as they are.
    for recipe in (folder / "recipes").glob("*.yaml"):
        for name in re.findall(r"[\w/-]+\.jsonl", recipe.read_text(encoding="utf-8")):
            if "/" not in name and not (folder / "recipes" / name).exists():
                (folder / "recipes" / name).write_text(ROWS)
    return folder


def test_enough_is_found() -> None:
    assert len(COMMANDS) > 70 and {page for page, _ in COMMANDS} >= {"README.md", "cli.md", "sft_sharegpt.yaml"}


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=[f"{page}: {command}" for page, command in COMMANDS])
def test_a_command_is_one_that_works(page: str, command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    words = shlex.split(command)
    group: Any = typer.main.get_command(app)
    if words[0].startswith("--"):
        assert any(words[0] in option.opts for option in group.params) or words[0] == "--help"
        return
    verb = group.commands[words[0]]
    if words[1:] == [] or (words[0] == "new" and len(words) == 2):  # a verb alone is named, in a sentence
        return
    if words[0] == "models":
        verb, words = verb.commands[words[1]], words[1:]
    if all(word.startswith("--") for word in words[1:]):  # an option is named, in a sentence
        known = {option for parameter in verb.params for option in parameter.opts} | {"--help"}
        assert {*words[1:]} <= known
        return
    context = verb.make_context(words[0], words[1:])
    if words[0] in ("run", "check"):
        recipe = load_recipe(find_recipe(context.params["recipe"]), context.params["overrides"] or [])
        assert recipe.model in CATALOGUE_NAMES or Path(recipe.model).exists() or "/" in recipe.model
