"""posttrain merge: a base and its adapters as one whole model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from posttrain.cli.options import ModelCode
from posttrain.cli.terminal import echo

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def merge(
    start: Annotated[str, typer.Argument(metavar="START", help="An adapter's folder, or the base of the adapters.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the whole model.")],
    adapter: Annotated[
        list[str] | None, typer.Option("--adapter", metavar="FOLDER", help="A (further) adapter; may be repeated.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option("--weights", metavar="W,W,...", help="One for each adapter, the start's first (default: 1)."),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            "--method",
            metavar="NAME",
            help="How several become one: cat (their exact weighted sum), svd, linear, ties, dare_linear, dare_ties, "
            "magnitude_prune, or one of the last four with _svd behind it.",
        ),
    ] = "cat",
    density: Annotated[
        float, typer.Option("--density", help="Share of entries that ties, dare and magnitude_prune keep.")
    ] = 0.5,
    dtype: Annotated[Literal["fp32", "bf16", "fp16"], typer.Option("--dtype", help="Of the saved weights.")] = "fp32",
    seed: Annotated[int, typer.Option("--seed", help="Of what dare drops.")] = 0,
    model_code: ModelCode = "refuse",
) -> None:
    """Fold adapters into their base, save the whole model, and read it back in a fresh process."""
    from posttrain.cli.outputs import check_out_folder
    from posttrain.cli.unused import note_unused
    from posttrain.models import require_known
    from posttrain.models.adapters.methods import PRUNING, require_method

    if method not in PRUNING:
        note_unused(f"the method {method} keeps every entry", density=density != 0.5)
    if "dare" not in method:
        note_unused(f"the method {method} draws nothing", seed=seed != 0)
    if not adapter and not weights:
        note_unused("one adapter of weight 1 is folded in as it is", method=method != "cat")

    require_method(method)
    check_out_folder(out, "the model")
    for name in (start, *(adapter or ())):
        require_known(name)
    numbers = _numbers(weights)

    import torch  # after all that can be refused without it

    from posttrain.cli.progress import progress_on
    from posttrain.cli.terminal import terminal
    from posttrain.models.adapters.combine import merge_adapters
    from posttrain.models.folders.own_code import folder_code

    with (
        progress_on(terminal(stderr=True)) as progress,
        progress.phase("merging and reading back", unit="files"),
        folder_code(model_code),
    ):
        report = merge_adapters(
            start,
            out,
            adapters=adapter or (),
            weights=numbers,
            method=method,
            density=density,
            dtype=getattr(torch, DTYPES[dtype]),
            seed=seed,
            say=progress.say,
        )
    echo(str(report))
    if report.rounding:
        echo(f"rounding to {dtype} moved a logit by up to {report.rounding:.1e}")


def _numbers(text: str | None) -> list[float]:
    """ "0.5,0.5" -> [0.5, 0.5]"""
    from posttrain.errors import ConfigError

    try:
        return [float(word) for word in text.split(",")] if text else []
    except ValueError:
        raise ConfigError(
            "the weights are no numbers",
            where="--weights",
            found=text,
            example="--weights 0.5,0.5",
            remedy="correct it",
        ) from None
