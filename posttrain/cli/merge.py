"""posttrain merge: a base and its adapters, or several whole models, as one whole model."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from posttrain.cli.options import ModelCode


def merge(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL... OUT",
            help="Models, or an adapter's folder, or the base of the adapters, or a file of settings (.yaml: "
            "mergekit's, or a stage's `merge:`); last the folder of the whole model.",
        ),
    ],
    adapter: Annotated[
        list[str] | None, typer.Option("--adapter", metavar="FOLDER", help="A (further) adapter; may be repeated.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option("--weights", metavar="W,W,...", help="One for each model or adapter, in their order."),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            metavar="NAME",
            help="How several become one. Adapters of one base: cat (their exact weighted sum, the default), svd, "
            "linear, ties, dare_linear, dare_ties, magnitude_prune, or one of the last four with _svd behind it. "
            "Models: linear (the default), slerp, task_arithmetic, ties, dare_ties and the others of docs/merging.md.",
        ),
    ] = None,
    density: Annotated[
        float | None,
        typer.Option("--density", help="Share of entries that ties, dare and their kin keep (of adapters 0.5)."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="MODEL", help="What all models were trained from, if their folders do not say."),
    ] = None,
    rescale: Annotated[
        Literal["paper", "l1", "none"] | None,
        typer.Option("--rescale", help="What makes up for dropped entries; l1 as mergekit does."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A key of the method: lambda=0.5; repeatable."),
    ] = None,
    tokens: Annotated[
        Literal["refuse", "union", "base"],
        typer.Option("--tokens", help="Of models whose tokens differ: put them together by their text."),
    ] = "refuse",
    dtype: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"],
        typer.Option("--dtype", help="Of the saved weights; auto: fp32 of adapters, else as the first model's."),
    ] = "auto",
    seed: Annotated[int, typer.Option("--seed", help="Of what dare and its kin drop.")] = 0,
    model_code: ModelCode = "refuse",
) -> None:
    """Make one model of several, save it, and read it back in a fresh process."""
    from posttrain.cli import merging
    from posttrain.cli.outputs import check_out_folder

    models, out = merging.models_and_out(names, adapter or [])
    numbers = merging.numbers_of(weights)
    file = merging.file_of(models, adapter or [])
    if file is None and merging.is_of_adapters(models, adapter or [], method):
        merging.refuse_for_adapters(base=base, rescale=rescale, set=settings, tokens=tokens != "refuse")
        adapters = [*models[1:], *(adapter or [])]
        chosen = merging.AdapterMerge(models[0], adapters, numbers, method or "cat", density, dtype, seed)
        merging.merge_adapters_of(chosen, out, model_code)
        return
    if file is not None:
        merging.refuse_for_files(
            weights=weights, method=method, density=density is not None, base=base, rescale=rescale, set=settings
        )
        merge_settings, layers = merging.settings_of_file(file, tokens=tokens, dtype=dtype)
    else:
        written = {"density": density, "rescale": rescale, "base": base}
        layers = None
        merge_settings = merging.settings_of_options(
            models, method or "linear", numbers, written, settings or [], tokens=tokens, dtype=dtype, seed=seed
        )
    check_out_folder(out, "the model")
    merging.merge_models_of(merge_settings, layers, out, seed, model_code)
