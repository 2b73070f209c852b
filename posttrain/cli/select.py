"""posttrain select: the rows that are worth training on, and why each other row went."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from posttrain.cli.terminal import echo


def select(
    data: Annotated[list[str], typer.Argument(metavar="DATA", help="Files, folders, patterns or hub ids.")],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Write data.jsonl, rejected.jsonl, random.jsonl and more here.")
    ],
    recipe: Annotated[
        Path | None, typer.Option("--recipe", metavar="FILE", help="YAML with `steps:` (docs/curation.md).")
    ] = None,
    step: Annotated[
        list[str] | None,
        typer.Option(
            "--step",
            metavar="TEXT",
            help='One step, "KIND KEY=VALUE ...": "score score.kind=length keep.top=0.2". Repeatable, in order.',
        ),
    ] = None,
    budget: Annotated[int | None, typer.Option("--budget", metavar="N", min=1, help="Keep this many rows.")] = None,
    format: Annotated[str, typer.Option("--format", metavar="NAME", help="Row format; told from the keys.")] = "auto",
    split: Annotated[str, typer.Option("--split", metavar="NAME", help="Of a folder or a hub data set.")] = "train",
    bad_rows: Annotated[
        Literal["stop", "skip"], typer.Option("--bad-rows", help="skip: rows that cannot be read are rejected.")
    ] = "stop",
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", metavar="MODEL", help="Whose tokens are counted, where some are.")
    ] = None,
    token_twin: Annotated[
        bool, typer.Option("--token-twin", help="Random rows of as many tokens, too: random_tokens.jsonl.")
    ] = False,
    order: Annotated[
        Literal["input", "choice"] | None, typer.Option("--order", help="Of data.jsonl (default: input).")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the random twin, and of ties.")] = 0,
) -> None:
    """Choose rows by steps; each says what it took, by reason, and a random twin of the same size is drawn.

    Run again with the same rows and folder, it computes only the steps whose settings changed.
    """
    from posttrain.arguments import checked_seed
    from posttrain.cli.outputs import check_out_folder
    from posttrain.cli.progress import progress_on
    from posttrain.cli.selecting import counts_beside, next_commands, show_selection
    from posttrain.cli.terminal import terminal
    from posttrain.config.select_file import load_select
    from posttrain.curation.pipeline import select_rows
    from posttrain.curation.rows import Tools
    from posttrain.data.read import read
    from posttrain.data.unread import reading_notes

    # Everything that was typed is checked before a row is read.
    settings = load_select(recipe, step or (), budget, tokenizer=tokenizer, token_twin=token_twin or None, order=order)
    check_out_folder(out, "the selection")
    checked_seed(seed)
    rows = read(data, format=format, split=split, bad_rows=bad_rows, scan=False)
    with progress_on(terminal(stderr=True)) as progress:
        selection = select_rows(rows, settings, out, Tools(seed, progress))
    show_selection(terminal(), selection)
    if not rows.is_remote:
        for sentence in reading_notes(counts_beside(selection), rows.format):
            echo(sentence)
    for line in next_commands(selection):
        echo(line)
