"""Commands that were typed as another tool has them: what to write here.

    posttrain train mine.yaml          ->  posttrain run mine.yaml
    posttrain run mine.yaml --epochs 3 ->  posttrain run mine.yaml sft.epochs=3

Typer would say "No such command" and leave it at that. Its own errors are caught where a command line is parsed, and
shown in the form of every other refusal.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from posttrain.cli.boundary import show
from posttrain.errors import ConfigError, PosttrainError, did_you_mean, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

# Typer carries a copy of click inside, whose name is its own business; its public error leads to the class.
UsageError: Any = typer.BadParameter.__mro__[1]

RECIPE_VERBS = ("run", "check")
OTHER_VERBS = {
    "run": "train fit finetune fine-tune tune launch start resume execute trainer sft dpo grpo ppo kto orpo simpo rlhf "
    "rl reward rm pretrain distill",
    "generate": "chat talk ask infer inference predict webchat complete",
    "serve": "server api openai endpoint deploy host",
    "eval": "evaluate test benchmark bench lm_eval lm-eval harness",
    "compare": "diff versus vs",
    "merge": "fuse merge-lora merge_lora",
    "convert": "import migrate translate from-axolotl",
    "check": "validate verify dry-run preflight lint doctor preprocess",
    "report": "plot show view open dashboard webui",
    "audit": "inspect clean data stats",
    "select": "curate filter dedup deduplicate decontaminate sample subset",
    "models": "list pull download",
}
"""A verb of posttrain -> what it may be called by one who has another tool's words."""
ARGUMENTS = {
    "run": "RECIPE",
    "check": "RECIPE",
    "generate": "MODEL",
    "serve": "MODEL",
    "eval": "MODEL --retention",
    "compare": "A B --prompts FILE",
    "merge": "ADAPTER OUT",
    "convert": "axolotl.yaml",
    "report": "RUN",
    "audit": "FILE",
    "select": "FILE --out FOLDER --budget 1000",
    "models": "list",
}


class Verb(TyperCommand):
    """A verb whose parsing refuses in posttrain's own form."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        typed = list(args)
        try:
            return super().parse_args(ctx, args)
        except UsageError as error:
            _refuse(of_options(error, _path(ctx), typed))


class Verbs(TyperGroup):
    """All verbs; one that is not known is answered with the one that does it here."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        typed = list(args)
        try:
            return super().parse_args(ctx, args)
        except UsageError as error:
            if not typed:  # no verb at all: typer shows the help
                raise
            _refuse(of_options(error, _path(ctx), typed))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands:
            if _path(ctx):  # `posttrain models show`: other tools' verbs mean nothing below a verb
                _refuse(of_word(args, _path(ctx), list(self.commands)))
            _refuse(of_verb(args[0], args[1:], list(self.commands)))
        return super().resolve_command(ctx, args)


def _path(ctx: Any) -> str:
    """The words between `posttrain` and the options: "models list"; "" of the command itself."""
    return "" if ctx.parent is None else f"{_path(ctx.parent)} {ctx.info_name}".strip()


def _refuse(error: PosttrainError) -> NoReturn:
    show(error)
    raise typer.Exit(2)


def of_verb(typed: str, rest: Sequence[str], verbs: Sequence[str]) -> ConfigError:
    """The error for a verb that is none: of_verb("train", ["mine.yaml"], ...) proposes `posttrain run mine.yaml`."""
    meant = next((verb for verb, names in OTHER_VERBS.items() if typed.lower() in names.split()), None)
    if Path(typed).suffix in (".yaml", ".yml"):
        remedy = f"write `posttrain run {shlex.join([typed, *rest])}`"
    elif meant is None:
        near = nearest(typed, verbs)
        remedy = did_you_mean(f"posttrain {near}" if near else None, "see `posttrain --help`")
    elif rest and not any(word.startswith("-") for word in rest):
        remedy = f"write `posttrain {meant} {shlex.join(rest)}`"
    else:
        remedy = f"write `posttrain {meant} {ARGUMENTS[meant]}`"
    if meant == "run":
        remedy += ", where the recipe's stages say the `method` (docs/recipes.md)"
    return ConfigError(
        f"there is no command `{typed}`", where="posttrain", expected=f"one of {', '.join(verbs)}", remedy=remedy
    )


def of_word(typed: Sequence[str], verb: str, words: Sequence[str]) -> ConfigError:
    """The error for a word that a verb with verbs of its own does not have: of_word(["lst"], "models", ...)."""
    near = nearest(typed[0], words)
    return ConfigError(
        f"there is no command `{verb} {typed[0]}`",
        where=f"posttrain {verb}",
        expected=f"one of {', '.join(words)}",
        remedy=did_you_mean(f"posttrain {verb} {near}" if near else None, f"see `posttrain {verb} --help`"),
    )


def of_options(error: Any, verb: str, typed: Sequence[str]) -> ConfigError:
    """The error for options and arguments that a verb does not take as they were typed."""
    command = f"posttrain {verb}".strip()
    problem = str(error.format_message()).rstrip(".").replace("'", "`")
    problem = problem[:1].lower() + problem[1:]
    option = next(
        (word.partition("=")[0] for word in typed if word.startswith("--") and word.split("=")[0] in problem), ""
    )
    remedy = f"see `{command} --help`"
    if "no such option" in problem and option:
        setting = _as_setting(option, typed)
        if verb in RECIPE_VERBS:
            remedy = _override(setting, typed)
        elif not verb:
            remedy = f"write `posttrain run RECIPE {setting}`" if "." in option else remedy
        problem = f"there is no option `{option}`"
    elif "missing argument" in problem and verb in RECIPE_VERBS:
        remedy = f"write `{command} quickstart`, or `{command} mine.yaml`; see `{command} --help`"
    elif "missing" in problem:
        remedy = f"write it; `{command} --help` shows what it takes"
    return ConfigError(problem, where=command, found=shlex.join(typed) or None, remedy=remedy)


def _as_setting(option: str, typed: Sequence[str]) -> str:
    """`--dpo.beta=1` and `--dpo.beta 1` -> "dpo.beta=1"; a flag alone is true."""
    at = next(place for place, word in enumerate(typed) if word.partition("=")[0] == option)
    value = typed[at].partition("=")[2]
    following = typed[at + 1] if at + 1 < len(typed) else ""
    if not value:
        value = following if following and not following.startswith("--") and "=" not in following else "true"
    return f"{option.lstrip('-').replace('-', '_')}={value}"


def _override(setting: str, typed: Sequence[str]) -> str:
    """What to write for an option that is a key of the recipe: `sft.epochs=3`, by the recipe's own stages."""
    from posttrain.config.explain import fields_of
    from posttrain.config.find import find_recipe
    from posttrain.config.overrides import of_a_stage
    from posttrain.config.schema import Recipe
    from posttrain.config.yaml_text import parse

    key = setting.partition("=")[0]
    if "." in key or key in fields_of(Recipe):
        return f"settings have no dashes: write `{setting}`"
    stages: Any = [{"method": "sft"}]
    try:
        path = find_recipe(next(word for word in typed if not word.startswith("-")))
        document: Any = parse(path.read_text(encoding="utf-8"), str(path)).value
        stages = document["stages"]
    except (StopIteration, PosttrainError, OSError, UnicodeDecodeError, KeyError, TypeError):
        pass  # the recipe has mistakes of its own, which the next command will show
    advice = of_a_stage(key, setting, stages) if isinstance(stages, list) else None
    return f"settings have no dashes: {advice}" if advice else "write settings as `STAGE.KEY=VALUE` (docs/recipes.md)"
