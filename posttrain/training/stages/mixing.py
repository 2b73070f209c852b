"""The order of a stage's rows, and of a mixture what it comes to: a line of the preflight and of stage.json.

order = order_of(stage, rows, seed)       # RowOrder, or the order of a mixture
with_sources(inputs, order)               # the same inputs, with how often the run goes through each source
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import ceil
from typing import Any

from posttrain.config.base import RowStage
from posttrain.config.mixing import step_of
from posttrain.config.settings import Data, Source
from posttrain.data.mixed_rows import MixedRows
from posttrain.data.mixture import Part
from posttrain.errors import ConfigError
from posttrain.runs.records.stage import SourceCounts
from posttrain.training.checks.preflight import Check
from posttrain.training.mixed_order import MixedOrder, PooledOrder, planned_draws
from posttrain.training.order import Order, RowOrder
from posttrain.training.stages.reading import RowInputs
from posttrain.types import TokenTree

MOST_EPOCHS = 4.0
"""Beyond this a repeated row is worth less and less: Muennighoff et al. 2023, arXiv:2305.16264, figure 1."""
LEAST_SEEN = 0.01
"""A source of which the run comes to a smaller share is not what its owner meant to train on."""


def order_of(stage: RowStage, rows: Sequence[TokenTree], seed: int) -> Order:
    """Which rows a step takes.

    Raises:
        ConfigError: the stage would take no step, no source is on at one of them, or one of them never is.
    """
    if not isinstance(rows, MixedRows) or stage.data is None:
        return RowOrder.plan(len(rows), stage.rows_per_step, epochs=stage.epochs, steps=stage.steps, seed=seed)
    data, offsets = stage.data, rows.offsets
    parts = [_part(data, source, len(rows.parts[source.name])) for source in data.sources]
    if data.mixes_by == "concatenate":
        size = sum(part.size for part in parts)
        pool = RowOrder.plan(size, stage.rows_per_step, epochs=stage.epochs, steps=stage.steps, seed=seed)
        return PooledOrder(tuple(parts), offsets, pool)
    draws = planned_draws(parts, stage.rows_per_step, epochs=stage.epochs, steps=stage.steps, epoch=data.epoch)
    steps = ceil(draws / stage.rows_per_step)
    timed = [_timed(part, source, steps) for part, source in zip(parts, data.sources, strict=True)]
    return MixedOrder.plan(timed, offsets, rows_per_step=stage.rows_per_step, draws=draws, epoch=data.epoch, seed=seed)


def with_sources(inputs: RowInputs, order: Order) -> RowInputs:
    """The inputs with what a mixture comes to; those of a single source as they are."""
    sources = inputs.counts.sources
    if sources is None or not isinstance(order, MixedOrder | PooledOrder):
        return inputs
    taken, epochs = order.taken, order.epochs_of
    counted = tuple(replace(source, taken=taken[source.name], epochs=epochs[source.name]) for source in sources)
    return replace(
        inputs,
        counts=replace(inputs.counts, sources=counted),
        findings=(*inputs.findings, sources_check(counted, order)),
    )


def sources_check(sources: Sequence[SourceCounts], order: MixedOrder | PooledOrder) -> Check:
    """Rows, tokens, share and epochs of every source; a warning where one is gone through too often, or hardly."""
    total = sum(source.taken or 0 for source in sources) or 1
    lines, doubts = [], []
    for source in sources:
        taken, epochs = source.taken or 0, source.epochs or 0.0
        lines.append(
            f"{source.name}: {source.rows:,} rows, {source.tokens:,} tokens, {taken / total:.1%} of the run, "
            f"{epochs:.3g} epochs"
        )
        if epochs > MOST_EPOCHS:
            doubts.append(
                f"`{source.name}` is gone through {epochs:.3g} times, and beyond {MOST_EPOCHS:g} a row teaches little: "
                f"lower its weight, or write `epochs: {MOST_EPOCHS:g}`"
            )
        elif (share := order.seen_share(source.name)) < LEAST_SEEN:
            doubts.append(
                f"the run comes to {share:.2%} of the rows of `{source.name}`: raise its weight or the stage's "
                "`steps`, or read fewer rows with `limit`"
            )
    evidence: dict[str, Any] = {
        source.name: {"rows": source.rows, "taken": source.taken, "epochs": source.epochs} for source in sources
    }
    return Check(
        "sources",
        "sources of the mixture",
        "warn" if doubts else "pass",
        "; ".join(lines),
        evidence,
        "; ".join(doubts) or None,
    )


def _part(data: Data, source: Source, rows: int) -> Part:
    size = rows * source.repeat
    share = float(size)
    if data.mixes_by == "weights" and source.weight is not None:
        share = source.weight
    elif data.mixes_by == "temperature" and data.temperature is not None:
        share = size ** (1 / data.temperature)
    return Part(source.name, rows, share, source.repeat, source.epochs)


def _timed(part: Part, source: Source, steps: int) -> Part:
    begin = step_of(source.begin, steps)
    end = None if source.until is None else step_of(source.until, steps)
    # What starts after the run would be read, encoded, and never trained on.
    if begin >= steps or (end is not None and end <= begin):
        raise ConfigError(
            f"the source `{source.name}` is never on",
            where="data.sources",
            found=f"from: {source.begin}, until: {source.until}, in a run of {steps:,} steps",
            expected="a source that is on for at least one step",
            remedy="change its `from` and `until`, give the stage more `steps`, or remove the source",
        )
    return replace(part, begin=begin, end=end)
