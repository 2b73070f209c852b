"""posttrain export: a model in the form that somebody else wants."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from posttrain.cli.options import ModelCode, ModelName
from posttrain.cli.terminal import echo


def export(
    model: ModelName,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the result.")],
    to: Annotated[
        Literal["merged", "bf16", "adapter", "gguf"],
        typer.Option(
            "--to",
            help="merged: a whole model in safetensors, an adapter folded in; bf16: the same in bfloat16; adapter: the "
            "adapter alone; gguf: one file for llama.cpp, and a Modelfile for Ollama.",
        ),
    ],
    dtype: Annotated[
        Literal["f32", "f16", "bf16", "q8_0"] | None,
        typer.Option(
            "--dtype", help="Of the weights: merged f32, f16, bf16 (as the folder has them); gguf also q8_0 (f16)."
        ),
    ] = None,
    model_code: ModelCode = "refuse",
) -> None:
    """Write a model in another form, read it back and compare; then say which commands use it."""
    from posttrain.cli.outputs import check_out_folder
    from posttrain.cli.unused import refuse_unused
    from posttrain.errors import ConfigError
    from posttrain.models import require_known

    refuse_unused(f"`--to {to}` says which", "leave it out", dtype=dtype is not None and to in ("bf16", "adapter"))
    if to == "merged" and dtype == "q8_0":
        raise ConfigError(
            "q8_0 is a kind of GGUF's", where="--dtype", expected="f32, f16 or bf16", remedy="write `--to gguf`"
        )
    check_out_folder(out, "the model")
    require_known(model)
    from posttrain.cli.progress import progress_on
    from posttrain.cli.terminal import terminal
    from posttrain.models.folders.exports import export_model
    from posttrain.models.folders.own_code import folder_code

    with (
        progress_on(terminal(stderr=True)) as progress,
        progress.phase("writing and reading back", unit="files"),
        folder_code(model_code),
    ):
        exported = export_model(model, out, to=to, dtype=dtype, say=progress.say)
    for line in exported.lines:
        echo(line)
    for command in exported.commands:
        echo(f"  {command}")
