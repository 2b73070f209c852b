"""posttrain completion: what the tab key completes, as a script for bash, zsh or fish.

The script holds every verb, option and choice, written from the command line itself, so that a tab starts no Python.
Names of stages it reads from the recipe or the run folder on the line, by the shell's own means.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperGroup
from typer.models import ArgumentInfo, OptionInfo

from posttrain.cli.completion_scripts import Command, Names, Option, bash, fish, zsh
from posttrain.cli.terminal import echo_exact

Shell = Annotated[Literal["bash", "zsh", "fish"], typer.Argument(metavar="SHELL", help="bash, zsh or fish.")]
HELP = Option("--help", (), "Show what there is.", is_flag=True)
RECIPE, MODELS = "recipe", ("model", "models", "first", "second")
"""Parameters of verbs that take a recipe, or a model's name; they complete the names that come with posttrain too."""


def completion(ctx: typer.Context, shell: Shell) -> None:
    """Print the script that completes `posttrain` in your shell: `eval "$(posttrain completion bash)"`."""
    root = ctx.find_root().command
    assert isinstance(root, TyperGroup)
    script = {"bash": bash, "zsh": zsh, "fish": fish}[shell](list(all_commands(root)))
    echo_exact(script.rstrip("\n"))


def all_commands(root: TyperGroup, words: str = "") -> Iterator[Command]:
    """Every verb below a command. Options are read from the functions: typer's own records of them differ from version
    to version."""
    text = (root.help or "").split("\n")[0]
    version = () if words else (Option("--version", (), "Show the version.", is_flag=True),)
    yield Command(words, tuple(root.commands), (*version, HELP), text)
    for name, command in root.commands.items():
        path = f"{words} {name}".strip()
        if isinstance(command, TyperGroup):
            yield from all_commands(command, path)
        elif command.callback is not None:
            yield _command(path, inspect.unwrap(command.callback))


def _command(words: str, verb: Callable[..., Any]) -> Command:
    options, names, takes = [], list[str](), Names.FILES
    for name, annotation in get_type_hints(verb, include_extras=True).items():
        if get_origin(annotation) is not Annotated:
            continue
        kind, said = get_args(annotation)[:2]
        if isinstance(said, ArgumentInfo):
            names += _names(words, name, kind)
            takes = Names.STAGES_OF_RECIPE if name == RECIPE else takes
        if not isinstance(said, OptionInfo):
            continue
        # typer keeps the first name of an annotated option where the default would stand.
        given = [str(word) for word in (said.default, *(said.param_decls or ())) if str(word).startswith("-")]
        flag = kind is bool or bool in get_args(kind)
        for word in given or [f"--{name.replace('_', '-')}"]:
            for one in word.split("/"):
                options.append(Option(one, _choices(kind), (said.help or "").split("\n")[0], is_flag=flag))
    text = (inspect.getdoc(verb) or "").split("\n")[0]
    return Command(words, (), (*options, HELP), text, tuple(dict.fromkeys(names)), takes)


def _choices(kind: Any) -> tuple[str, ...]:
    """`Literal["a", "b"] | None` -> ("a", "b")"""
    for one in (kind, *get_args(kind)):
        if get_origin(one) is Literal:
            return tuple(map(str, get_args(one)))
    return ()


def _names(words: str, parameter: str, kind: Any) -> list[str]:
    """What an argument may be beside a file."""
    if parameter == RECIPE:
        return names_of_recipes()
    if parameter in MODELS or words == "models pull":
        return names_of_models()
    return list(_choices(kind))


def names_of_recipes() -> list[str]:
    """Recipes that come with the package, by name."""
    from posttrain.config.find import RECIPE_FOLDERS

    return sorted({path.stem for folder in RECIPE_FOLDERS for path in folder.glob("*.yaml")})


def names_of_models() -> list[str]:
    from posttrain.config.paths import CATALOGUE_NAMES

    return list(CATALOGUE_NAMES)
