"""posttrain score: rewards for a file of responses, by one reward model or an ensemble of several."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from posttrain.cli.options import ModelCode


def score(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="A reward model's folder or hub id.")],
    file: Annotated[str, typer.Argument(metavar="FILE", help="Pairs, ranked lists, feedback or conversations.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the rewards here as JSONL (default: stdout).")
    ] = None,
    combine: Annotated[
        Literal["mean", "worst", "mean_minus_std"], typer.Option("--combine", help="How several models become one.")
    ] = "mean",
    std_weight: Annotated[
        float, typer.Option("--std-weight", min=0.0, help="Of mean_minus_std: standard deviations taken off.")
    ] = 1.0,
    head: Annotated[
        str | None, typer.Option("--head", metavar="NAME", help="An attribute, group or condition of the model.")
    ] = None,
    normalised: Annotated[
        bool, typer.Option("--normalised", help="With the scale and shift that are stored with the model.")
    ] = False,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Score only this many rows.")] = None,
    model_code: ModelCode = "refuse",
) -> None:
    """Write the reward of every response in a file.

    One line per row: its place, the rewards in the order of its responses, and their lengths. With several models, also
    the rewards of each. Rows of RewardBench 2 are scored as that benchmark scores them.
    """
    from posttrain.cli.outputs import check_out, echo_json
    from posttrain.cli.progress import progress_on
    from posttrain.cli.terminal import terminal
    from posttrain.cli.unused import note_unused
    from posttrain.data import read
    from posttrain.data.write import write_jsonl
    from posttrain.models import require_known
    from posttrain.runs.files import write_json

    check_out(out, "the rewards")
    if len(models) == 1:
        note_unused("one model alone is not combined", combine=combine != "mean", std_weight=std_weight != 1)
    elif combine != "mean_minus_std":
        note_unused(f"`--combine {combine}` knows no standard deviation", std_weight=std_weight != 1)
    for name in models:  # before torch is loaded
        require_known(name)
    from posttrain.evaluate.reward_bench import looks_like_reward_bench, read_reward_bench

    # Before the models: a mistake in the file is shown without a wait.
    bench = read_reward_bench(file, limit) if looks_like_reward_bench(file) else None
    examples = read(file, limit=limit) if bench is None else [row.comparison() for row in bench]

    from posttrain.cli.reward_rows import BenchTally, Tally, open_models, scored_rows

    with progress_on(terminal(stderr=True)) as progress:
        opened = open_models(models, head, progress, model_code)
        with progress.phase("scoring", total=len(examples), unit="rows") as phase:
            rows = scored_rows(opened, examples, combine, std_weight, head, normalised, phase)
            tally = Tally() if bench is None else BenchTally(bench)
            counted = (tally.counted(row) for row in rows)
            if out is not None:
                write_jsonl(out, counted)
            else:
                for row in counted:
                    echo_json(row)
        progress.say(f"{len(examples):,} rows{f' in {out}' if out else ''}: {tally}")
        if isinstance(tally, BenchTally) and out is not None:
            write_json(tally.path_beside(out), tally.record().to_json())
