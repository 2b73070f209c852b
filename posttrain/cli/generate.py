"""posttrain generate: talk to one model, or let it answer a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from posttrain.cli import options
from posttrain.cli.terminal import echo, echo_exact

if TYPE_CHECKING:
    from posttrain.config.strategies import StrategySettings


def generate(
    ctx: typer.Context,
    model: options.ModelName,
    prompts: Annotated[
        str | None, typer.Option("--prompts", metavar="FILE", help="Answer the prompts of this file.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the answers here as JSONL (default: stdout).")
    ] = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Answers per prompt.")] = 1,
    system: options.System = None,
    template: options.Template = "auto",
    temperature: options.Temperature = 0.7,
    top_k: options.TopK = None,
    top_p: options.TopP = 1.0,
    min_p: options.MinP = 0.0,
    repetition_penalty: options.Penalty = 1.0,
    max_new_tokens: options.Longest = 256,
    stop: options.Stop = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    model_code: options.ModelCode = "refuse",
    strategy: Annotated[
        str | None,
        typer.Option(
            "--strategy", metavar="KIND", help="Spend more on each answer: best_of_n, ... (docs/inference.md)."
        ),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A key of the strategy: n=16; repeatable.")
    ] = None,
    reward: Annotated[
        str | None, typer.Option("--reward", metavar="FOLDER", help="Reward model that the strategy scores by.")
    ] = None,
    show: Annotated[
        Literal["tree"] | None, typer.Option("--show", help="tree: print all that the strategy tried.")
    ] = None,
) -> None:
    """Talk to a model; answer a file with --prompts; answer one prompt from a pipe.

    The model folder's generation_config.json changes no sampling: what is not said here has the default shown here.
    With --strategy, what is not said has the strategy's own default.
    """
    from posttrain.cli.outputs import check_out
    from posttrain.cli.unused import refuse_unused
    from posttrain.models import require_known, resolve

    check_out(out)
    require_known(model)  # before torch is loaded, which the next lines do
    _refuse_contradictions(prompts, out, samples, temperature)
    if strategy is None:
        given = {"set": bool(set_), "reward": bool(reward), "show": bool(show)}
        refuse_unused("a single draw has none of that", "write `--strategy KIND` too", **given)
    chosen = None if strategy is None else _strategy(ctx, strategy, set_ or [], reward)
    from posttrain.cli.batch import answer_file
    from posttrain.cli.chat import chat
    from posttrain.cli.speaker import Speaker, read_pipe, read_prompts
    from posttrain.cli.strategies import solve_prompts
    from posttrain.cli.unused import note_unused, refuse_unused
    from posttrain.config.strategies import PREFIX_TOKENS
    from posttrain.models.reward.folders import require_policy
    from posttrain.types import Message, RowRef, Task

    if temperature == 0 and chosen is None:
        why = "at temperature 0 the likeliest token is taken"
        note_unused(why, top_k=top_k is not None, top_p=top_p != 1, min_p=min_p != 0, seed=seed != 0)
    require_policy(resolve(model, say=lambda line: echo(line, err=True)))
    rows = read_prompts(prompts) if prompts is not None else []
    piped = None if prompts is not None or sys.stdin.isatty() else read_pipe()
    speaker = Speaker(
        model,
        system=system,
        template=template,
        device=device,
        model_code=model_code,
        say=lambda line: echo(line, err=True),
        prefix_tokens=PREFIX_TOKENS if chosen is not None else 0,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        max_new_tokens=max_new_tokens,
        stop=tuple(stop or ()),
        seed=seed,
    )
    if chosen is not None:
        rows += [] if piped is None else [Task((Message("user", piped),), None, RowRef("standard input", 1))]
        solve_prompts(speaker, chosen, rows, seed=seed, out=out, show=show, device=device)
    elif prompts is not None:
        answer_file(speaker, rows, out, samples)
    elif piped is not None:
        for answer in next(speaker.answers([(Message("user", piped),)], samples)):
            echo_exact(answer.text)
    else:
        chat(speaker, seed)


SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens", "stop")


def _strategy(ctx: typer.Context, kind: str, assignments: list[str], reward: str | None) -> StrategySettings:
    from posttrain.cli.strategies import require_models_known, strategy_given
    from posttrain.cli.unused import refuse_unused
    from posttrain.errors import ConfigError

    refuse_unused("a strategy says itself how much it draws", "write `--set n=16`", samples=ctx.params["samples"] > 1)
    # Only what was written: the defaults of a single draw are not those of a strategy.
    given = {name: ctx.params[name] for name in SAMPLING if _is_written(ctx, name)}
    if sys.stdin.isatty() and ctx.params["prompts"] is None:
        raise ConfigError(
            "a strategy answers a file or one prompt from a pipe, and here is a terminal",
            remedy=f'write `--prompts FILE`, or `echo "PROMPT" | posttrain generate MODEL --strategy {kind}`',
        )
    made = strategy_given(kind, assignments, reward, given)
    require_models_known(made)
    return made


def _is_written(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _refuse_contradictions(prompts: str | None, out: Path | None, samples: int, temperature: float) -> None:
    from posttrain.cli.unused import refuse_unused
    from posttrain.errors import ConfigError

    if prompts is None:
        refuse_unused("answers go to a file where prompts come from one", "write `--prompts FILE` too", out=bool(out))
    if prompts is None and sys.stdin.isatty():
        refuse_unused("a conversation has one answer at a time", "write `--prompts FILE` too", samples=samples > 1)
    if samples > 1 and temperature == 0:
        raise ConfigError(
            "temperature 0 draws the same answer each time", remedy="write `--temperature 0.7`, or `--samples 1`"
        )
