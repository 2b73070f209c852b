"""posttrain completion: what the tab key completes, as a script for bash, zsh or fish.

The script holds every verb, option and choice, written from the command line itself, so that a tab starts no Python.
"""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperGroup
from typer.models import OptionInfo

from posttrain.cli.terminal import echo_exact

Shell = Annotated[Literal["bash", "zsh", "fish"], typer.Argument(metavar="SHELL", help="bash, zsh or fish.")]
RECIPES = ("run", "check", "plan", "solve", "launch slurm", "launch ray")
"""Verbs whose first argument is a recipe: the names of those that come with posttrain complete too."""
MODELS = ("generate", "compare", "serve", "merge", "models pull")
"""Verbs that take a model's name."""


@dataclass(frozen=True, slots=True)
class Option:
    """Option("--device", ("auto", "cpu"), "auto, cpu, cuda, ...")"""

    name: str
    choices: tuple[str, ...]
    help: str


@dataclass(frozen=True, slots=True)
class Command:
    """Command("models pull", (), (Option("--force", (), "..."),)): words after `posttrain`, and what may follow."""

    words: str
    verbs: tuple[str, ...]
    options: tuple[Option, ...]
    help: str


HELP = Option("--help", (), "Show what there is.")


def completion(ctx: typer.Context, shell: Shell) -> None:
    """Print the script that completes `posttrain` in your shell: `eval "$(posttrain completion bash)"`."""
    root = ctx.find_root().command
    assert isinstance(root, TyperGroup)
    commands = list(all_commands(root))
    script = {"bash": bash, "zsh": zsh, "fish": fish}[shell](commands, names_of_recipes(), names_of_models())
    echo_exact(script.rstrip("\n"))


def all_commands(root: TyperGroup, words: str = "") -> Iterator[Command]:
    """Every verb below a command. Options are read from the functions: typer's own records of them differ from version
    to version."""
    text = (root.help or "").split("\n")[0]
    version = () if words else (Option("--version", (), "Show the version."),)
    yield Command(words, tuple(root.commands), (*version, HELP), text)
    for name, command in root.commands.items():
        path = f"{words} {name}".strip()
        if isinstance(command, TyperGroup):
            yield from all_commands(command, path)
        elif command.callback is not None:
            yield _command(path, inspect.unwrap(command.callback))


def _command(words: str, verb: Callable[..., Any]) -> Command:
    options = []
    for name, annotation in get_type_hints(verb, include_extras=True).items():
        if get_origin(annotation) is not Annotated:
            continue
        kind, said = get_args(annotation)[:2]
        if not isinstance(said, OptionInfo):
            continue
        # typer keeps the first name of an annotated option where the default would stand.
        names = [str(word) for word in (said.default, *(said.param_decls or ())) if str(word).startswith("-")]
        for word in names or [f"--{name.replace('_', '-')}"]:
            options.append(Option(word.partition("/")[0], _choices(kind), (said.help or "").split("\n")[0]))
    return Command(words, (), (*options, HELP), (inspect.getdoc(verb) or "").split("\n")[0])


def _choices(kind: Any) -> tuple[str, ...]:
    """`Literal["a", "b"] | None` -> ("a", "b")"""
    for one in (kind, *get_args(kind)):
        if get_origin(one) is Literal:
            return tuple(map(str, get_args(one)))
    return ()


def names_of_recipes() -> list[str]:
    """Recipes that come with the package, by name."""
    from posttrain.config.find import RECIPE_FOLDERS

    return sorted({path.stem for folder in RECIPE_FOLDERS for path in folder.glob("*.yaml")})


def names_of_models() -> list[str]:
    from posttrain.config.paths import CATALOGUE_NAMES

    return list(CATALOGUE_NAMES)


def _extra(words: str, recipes: list[str], models: list[str]) -> list[str]:
    """Names, beside files, that the verb's arguments may be."""
    return recipes if words in RECIPES else models if words in MODELS else []


def bash(commands: list[Command], recipes: list[str], models: list[str]) -> str:
    """A function for bash's `complete`; files complete where nothing else does (`-o default`)."""
    cases, choices = [], []
    for command in commands:
        words = [*command.verbs, *_extra(command.words, recipes, models), *(option.name for option in command.options)]
        cases.append(f'    {shlex.quote(command.words)}) words="{" ".join(words)}" ;;')
        choices += [
            f'    {shlex.quote(f"{command.words} {option.name}")}) words="{" ".join(option.choices)}" ;;'
            for option in command.options
            if option.choices
        ]
    groups = "|".join(shlex.quote(command.words) for command in commands if command.verbs and command.words)
    lines = [
        '# Completion of posttrain in bash: eval "$(posttrain completion bash)"',
        "_posttrain() {",
        '  local current="${COMP_WORDS[COMP_CWORD]}" verb="" words=""',
        '  if (( COMP_CWORD > 1 )); then verb="${COMP_WORDS[1]}"; fi',
        '  case "$verb" in',
        f'    {groups}) if (( COMP_CWORD > 2 )); then verb="$verb ${{COMP_WORDS[2]}}"; fi ;;',
        "  esac",
        '  case "$verb ${COMP_WORDS[COMP_CWORD-1]}" in',
        *choices,
        "    *)",
        '  case "$verb" in',
        *cases,
        "  esac ;;",
        "  esac",
        '  COMPREPLY=($(compgen -W "$words" -- "$current"))',
        "}",
        "complete -o default -o bashdefault -F _posttrain posttrain",
    ]
    return "\n".join(lines) + "\n"


def zsh(commands: list[Command], recipes: list[str], models: list[str]) -> str:
    """The same function in zsh, by its own emulation of bash's `complete`."""
    head = '# Completion of posttrain in zsh: eval "$(posttrain completion zsh)"\nautoload -Uz compinit bashcompinit\n'
    load = "(( $+functions[compdef] )) || compinit\nbashcompinit\n"
    return head + load + bash(commands, recipes, models).split("\n", 1)[1]


def fish(commands: list[Command], recipes: list[str], models: list[str]) -> str:
    """Lines of `complete`; each says under which words it holds."""
    lines = ["# Completion of posttrain in fish: posttrain completion fish | source"]
    for command in commands:
        words = command.words.split()
        seen = [f"__fish_seen_subcommand_from {word}" for word in words]
        if command.verbs:
            seen.append(f"not __fish_seen_subcommand_from {' '.join(command.verbs)}")
        where = f"-n {shlex.quote('; and '.join(seen))} " if seen else ""
        below = {other.words: other.help for other in commands}
        for verb in command.verbs:
            text = below[f"{command.words} {verb}".strip()]
            lines.append(f"complete -c posttrain -f {where}-a {verb} -d {shlex.quote(text)}")
        for name in _extra(command.words, recipes, models):
            lines.append(f"complete -c posttrain {where}-a {name}")
        for option in command.options:
            values = f" -x -a {shlex.quote(' '.join(option.choices))}" if option.choices else ""
            kind = f"-l {option.name[2:]}" if option.name.startswith("--") else f"-s {option.name[1:]}"
            lines.append(f"complete -c posttrain {where}{kind}{values} -d {shlex.quote(option.help)}")
    return "\n".join(lines) + "\n"
