"""posttrain generate: talk to one model, or let it answer a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from posttrain.cli.options import Longest, MinP, ModelName, Penalty, Seed, System, Temperature, TopK, TopP


def generate(
    model: ModelName,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", metavar="FILE", help="Answer the prompts of this file.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the answers here as JSONL (default: stdout).")
    ] = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Answers per prompt.")] = 1,
    system: System = None,
    temperature: Temperature = 0.7,
    top_k: TopK = None,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: Penalty = 1.0,
    max_new_tokens: Longest = 256,
    seed: Seed = 0,
) -> None:
    """Talk to a model; answer a file with --prompts; answer one prompt from a pipe.

    The model folder's generation_config.json is never read: what is not said here has the default shown here.
    """
    from posttrain.cli.speaker import Speaker, read_pipe, read_prompts
    from posttrain.types import Message

    asked = [one.prompt for one in read_prompts(prompts)] if prompts is not None else None
    piped = None if prompts is not None or sys.stdin.isatty() else read_pipe()
    speaker = Speaker(
        model,
        system=system,
        say=lambda line: typer.echo(line, err=True),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        max_new_tokens=max_new_tokens,
        seed=seed,
    )
    if asked is not None:
        from posttrain.cli.batch import answer_file

        answer_file(speaker, asked, out, samples)
    elif piped is not None:
        for answer in next(speaker.answers([(Message("user", piped),)], samples)):
            typer.echo(answer.text)
    else:
        from posttrain.cli.chat import chat

        chat(speaker, seed)
