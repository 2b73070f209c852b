"""What `posttrain generate` does: from its options to a strategy or a single draw, and from there to answers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from posttrain.cli.terminal import echo, echo_exact
from posttrain.cli.unused import refuse_unused
from posttrain.errors import ConfigError

if TYPE_CHECKING:
    from posttrain.config.strategies import StrategySettings

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens", "stop")


def strategy_written(
    ctx: typer.Context, kind: str | None, assignments: list[str], reward: str | None, show: str | None
) -> StrategySettings | None:
    """The strategy of the options; None for a single draw.

    Raises:
        ConfigError: options that one of the two has no use for; values that there are not.
    """
    from posttrain.cli.strategies import require_models_known, strategy_given

    if kind is None:
        given = {"set": bool(assignments), "reward": bool(reward), "show": bool(show)}
        refuse_unused("a single draw has none of that", "write `--strategy KIND` too", **given)
        return None
    refuse_unused("a strategy says itself how much it draws", "write `--set n=16`", samples=ctx.params["samples"] > 1)
    # Only what was written: the defaults of a single draw are not those of a strategy.
    sampling = {name: ctx.params[name] for name in SAMPLING if _is_written(ctx, name)}
    if sys.stdin.isatty() and ctx.params["prompts"] is None:
        raise ConfigError(
            "a strategy answers a file or one prompt from a pipe, and here is a terminal",
            remedy=f'write `--prompts FILE`, or `echo "PROMPT" | posttrain generate MODEL --strategy {kind}`',
        )
    made = strategy_given(kind, assignments, reward, sampling)
    require_models_known(made)
    return made


def _is_written(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def refuse_contradictions(prompts: str | None, out: Path | None, samples: int, temperature: float) -> None:
    """What can be told from the options alone, before anything is loaded."""
    if prompts is None:
        refuse_unused("answers go to a file where prompts come from one", "write `--prompts FILE` too", out=bool(out))
    if prompts is None and sys.stdin.isatty():
        refuse_unused("a conversation has one answer at a time", "write `--prompts FILE` too", samples=samples > 1)
    if samples > 1 and temperature == 0:
        raise ConfigError(
            "temperature 0 draws the same answer each time", remedy="write `--temperature 0.7`, or `--samples 1`"
        )


def answer(
    model: str,
    prompts: str | None,
    out: Path | None,
    samples: int,
    chosen: StrategySettings | None,
    show: str | None,
    *,
    seed: int,
    device: str,
    **spoken: Any,
) -> None:
    """Answer a file, one prompt from a pipe, or a person in the terminal.

    Args:
        spoken: what else a `Speaker` takes: how the model is spoken to, and how tokens are drawn.
    """
    from posttrain.cli.batch import answer_file
    from posttrain.cli.chat import chat
    from posttrain.cli.speaker import Speaker, read_pipe, read_prompts
    from posttrain.cli.strategies import solve_prompts
    from posttrain.config.strategies import PREFIX_TOKENS
    from posttrain.models import resolve
    from posttrain.models.reward.folders import require_policy
    from posttrain.types import Message, RowRef, Task

    def say(line: str) -> None:
        echo(line, err=True)

    require_policy(resolve(model, say=say))
    rows = read_prompts(prompts) if prompts is not None else []
    piped = None if prompts is not None or sys.stdin.isatty() else read_pipe()
    kept = PREFIX_TOKENS if chosen is not None else 0
    speaker = Speaker(model, device=device, say=say, prefix_tokens=kept, seed=seed, **spoken)
    if chosen is not None:
        rows += [] if piped is None else [Task((Message("user", piped),), None, RowRef("standard input", 1))]
        solve_prompts(speaker, chosen, rows, seed=seed, out=out, show=show, device=device)
    elif prompts is not None:
        answer_file(speaker, rows, out, samples)
    elif piped is not None:
        for said in next(speaker.answers([(Message("user", piped),)], samples)):
            echo_exact(said.text)
    else:
        chat(speaker, seed)
