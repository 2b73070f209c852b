"""posttrain samples: what an online stage sampled, the best, the worst and some at random, by step."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from posttrain.cli.terminal import echo, echo_exact, terminal


def samples(
    run: Annotated[Path, typer.Argument(metavar="RUN[/STAGE]", help="A run folder, or one of its stages.")],
    step: Annotated[int | None, typer.Option("--step", metavar="N", help="Of this step.")] = None,
    steps: Annotated[
        str | None, typer.Option("--steps", metavar="LIST", help="Of these: 1,10,20-22 (default: a few, spread).")
    ] = None,
    best: Annotated[int | None, typer.Option("--best", metavar="K", min=0, help="The K best of each step.")] = None,
    worst: Annotated[int | None, typer.Option("--worst", metavar="K", min=0, help="The K worst.")] = None,
    random: Annotated[int | None, typer.Option("--random", metavar="K", min=0, help="K drawn at random.")] = None,
    stage: Annotated[
        str | None, typer.Option("--stage", metavar="NAME", help="Stage of the run (default: the last that sampled).")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", metavar="TEXT", help="Only where prompt or row contains this.")
    ] = None,
    part: Annotated[str | None, typer.Option("--part", metavar="NAME", help="Rank by this part of the reward.")] = None,
    held_out: Annotated[bool, typer.Option("--held-out", help="Answers to held-out tasks instead.")] = False,
    seed: Annotated[int, typer.Option("--seed", help="Of the random ones, and among equals.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="One JSON object per sample on stdout, texts whole.")] = False,
) -> None:
    """Show what a run sampled: prompt, gold answer, completion, reward and its parts, advantage, log-probs.

    Without --best, --worst and --random: one of each. With any of them: only those.
    """
    from posttrain.cli.sample_text import json_lines, parse_steps, text_lines
    from posttrain.errors import ConfigError
    from posttrain.runs.samples import samples as pick

    if step is not None and steps is not None:
        raise ConfigError("both --step and --steps are given", remedy="write one of them")
    asked = (best, worst, random)
    counts = [1, 1, 1] if asked == (None, None, None) else [count or 0 for count in asked]
    picked = pick(
        run,
        stage=stage,
        steps=[step] if step is not None else parse_steps(steps),
        best=counts[0],
        worst=counts[1],
        random=counts[2],
        prompt=prompt,
        part=part,
        held_out=held_out,
        seed=seed,
    )
    if json:
        for line in json_lines(picked):
            echo_exact(line, json=True)
    else:
        screen = terminal()
        for shown in text_lines(picked, part):
            screen.print(shown, highlight=False, soft_wrap=True)
    for note in picked.notes:
        echo(f"{picked.path.name}: {note}", err=True)
    if picked.others:
        echo(f"other stages that sampled: {', '.join(picked.others)} (--stage NAME)", err=True)
