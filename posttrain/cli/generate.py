"""posttrain generate: talk to one model, or let it answer a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from posttrain.cli import options
from posttrain.cli.terminal import echo, echo_exact


def generate(
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
) -> None:
    """Talk to a model; answer a file with --prompts; answer one prompt from a pipe.

    The model folder's generation_config.json changes no sampling: what is not said here has the default shown here.
    """
    from posttrain.cli.outputs import check_out
    from posttrain.models import require_known, resolve

    check_out(out)
    require_known(model)  # before torch is loaded, which the next lines do
    from posttrain.cli.batch import answer_file
    from posttrain.cli.chat import chat
    from posttrain.cli.speaker import Speaker, read_pipe, read_prompts, require_policy
    from posttrain.cli.unused import note_unused
    from posttrain.types import Message

    _refuse_contradictions(prompts, out, samples, temperature)
    if temperature == 0:
        why = "at temperature 0 the likeliest token is taken"
        note_unused(why, top_k=top_k is not None, top_p=top_p != 1, min_p=min_p != 0, seed=seed != 0)
    require_policy(resolve(model, say=lambda line: echo(line, err=True)))
    asked = [prompt.prompt for prompt in read_prompts(prompts)] if prompts is not None else None
    piped = None if prompts is not None or sys.stdin.isatty() else read_pipe()
    speaker = Speaker(
        model,
        system=system,
        template=template,
        device=device,
        model_code=model_code,
        say=lambda line: echo(line, err=True),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        max_new_tokens=max_new_tokens,
        stop=tuple(stop or ()),
        seed=seed,
    )
    if asked is not None:
        answer_file(speaker, asked, out, samples)
    elif piped is not None:
        for answer in next(speaker.answers([(Message("user", piped),)], samples)):
            echo_exact(answer.text)
    else:
        chat(speaker, seed)


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
