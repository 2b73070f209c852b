"""posttrain generate: talk to one model, or let it answer a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from posttrain.cli import options


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
    from posttrain.cli.generating import answer, refuse_contradictions, strategy_written
    from posttrain.cli.outputs import check_out
    from posttrain.cli.unused import note_unused
    from posttrain.models import require_known

    check_out(out)
    require_known(model)  # before torch is loaded, which `answer` does
    refuse_contradictions(prompts, out, samples, temperature)
    chosen = strategy_written(ctx, strategy, set_ or [], reward, show)
    if temperature == 0 and chosen is None:
        why = "at temperature 0 the likeliest token is taken"
        note_unused(why, top_k=top_k is not None, top_p=top_p != 1, min_p=min_p != 0, seed=seed != 0)
    answer(
        model,
        prompts,
        out,
        samples,
        chosen,
        show,
        system=system,
        template=template,
        device=device,
        model_code=model_code,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        max_new_tokens=max_new_tokens,
        stop=tuple(stop or ()),
        seed=seed,
    )
