"""The stage `select`: rows are chosen by steps, and a random twin of the same size is drawn beside them."""

from __future__ import annotations

from collections import Counter

from posttrain.config.select import Select
from posttrain.curation.pipeline import select_rows
from posttrain.curation.rows import Tools
from posttrain.curation.selection import TOKEN_TWIN, TWIN, Selection
from posttrain.data.read import Examples, read
from posttrain.data.unread import unread_keys
from posttrain.data.write import write_jsonl
from posttrain.models.folders.loading import LoadedModel
from posttrain.models.folders.named import named_content
from posttrain.runs.records.stage import DataCounts
from posttrain.training.stages.kind import OUTPUT_NAMES, MakingKind, StageContext


def rows_to_select(ctx: StageContext[Select]) -> Examples:
    """The stage's rows; all are looked at now, so that a bad one is found before a step begins."""
    data = ctx.stage.data
    assert data is not None  # the recipe's validation refuses a stage without data
    return read(list(data.path), **data.keywords(ctx.folder.path / "rejected_rows.jsonl"))


def make_selection(ctx: StageContext[Select], rows: Examples) -> DataCounts:
    """Write data.jsonl, rejected.jsonl, random.jsonl and manifest.json into the stage's folder.

    Raises:
        EmptyDatasetError: no row is left.
        ConfigError, DataError: what a step raises.
    """
    ctx.say(*rows.counts.notes, *unread_keys(rows.counts.unread_keys))
    assert not isinstance(ctx.start, LoadedModel)  # a recipe's stage starts from a folder
    tools = Tools(ctx.seed, ctx.progress, model=ctx.start)
    selection = select_rows(rows, ctx.stage, ctx.folder.path, tools)
    ctx.say(*str(selection).splitlines())
    return _counts(selection)


def _counts(selection: Selection) -> DataCounts:
    removed = Counter(selection.refused)
    for result in selection.steps:
        removed.update(result.by_reason)
    return DataCounts(
        read=selection.rows_read,
        kept=len(selection.pool),
        dropped=dict(removed),
        truncated={},
        findings={},
        tokens=None,
        trained_tokens=None,
        stop_share=None,
        rows=None,
        held_out_rows=None,
    )


def stand_in_selection(ctx: StageContext[Select], rows: Examples) -> str:
    """All rows, which is what a stage after this one may be given at most; steps may need hours and models."""
    folder = ctx.folder.path
    folder.mkdir(parents=True, exist_ok=True)
    count = write_jsonl(folder / OUTPUT_NAMES["data"], (dict(row) for _, row in rows.with_rows()))
    for name in (TWIN, TOKEN_TWIN):
        write_jsonl(folder / name, (dict(row) for _, row in rows.with_rows()))
    steps = ", ".join(step.label for step in ctx.stage.steps)
    return f"{count:,} rows are read; {len(ctx.stage.steps)} steps choose among them ({steps}). Not known before: which"


SELECT: MakingKind[Select, Examples] = MakingKind(
    outputs=Select.OUTPUTS,
    inputs=rows_to_select,
    make=make_selection,
    content=named_content,
    stand_in=stand_in_selection,
)
