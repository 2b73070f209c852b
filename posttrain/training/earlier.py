"""Before a stage runs: what lies in its folder from an earlier attempt is gone on with, kept under another name, or
refused, and never written over.

    finished, other inputs     moved to `<stage>.1`; a line says what differs and where it is     `make_room`
    interrupted, other inputs  refused: neither its checkpoint nor its curves belong to these       `make_room`
    all else                   left to the stage, which goes on from its checkpoint or begins

Results from which a stage is to begin are neither moved nor removed by it (`require_inputs_elsewhere`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from posttrain.config import StageSettings, data_of, what_changed
from posttrain.config.merging import sources_in
from posttrain.config.online import SamplingStage
from posttrain.config.yaml_text import parse
from posttrain.data.read import Examples
from posttrain.data.sources.files import FileSource, SavedDataset
from posttrain.errors import ConfigError, ResumeError
from posttrain.runs.differences import Difference, all_differences
from posttrain.runs.folder import RunFolder, StageFolder, remove_results
from posttrain.runs.records.stage import StageRecord
from posttrain.training.provenance import now
from posttrain.training.run_record import Timed
from posttrain.training.stages.kind import StageContext

UNKNOWN = "something that the earlier result's record does not name: an older version wrote it"


def make_room(ctx: StageContext[Any], run: RunFolder, timed: Timed, *, resumes_by_content: bool = True) -> None:
    """Set a finished result of other inputs aside; to be called before the stage writes anything.

    Args:
        resumes_by_content: whether an interrupted stage is refused where the hashes of its inputs differ. Not so from
            Python, where rows and models in memory are compared once they are encoded, by the checkpoint.

    Raises:
        ResumeError: the stage was interrupted, and what it rests on has changed since.
        ConfigError: the earlier result cannot be moved, or is what the stage begins from.
    """
    folder = ctx.folder
    if not folder.exists or ctx.identity is None:
        return
    record = folder.stage()
    # `output` too: a stage that was done, and whose next attempt failed before it began, still has its model.
    if record.status == "done" or record.output is not None:
        if (because := _because(record, ctx)) is None:
            return
        require_inputs_elsewhere([folder.path], inputs_of(ctx.start, [ctx.stage], (ctx.examples, ctx.held_out)))
        kept = run.set_aside(folder, because, now())
        timed.anew()
        ctx.say(f"{'; '.join(because)}: it runs again, and the earlier result is kept in {kept.path}")
        return
    if not folder.checkpoints.exists():
        return
    settings = _settings_changed(folder, ctx)
    changed = all_differences(settings, record.contents, ctx.identity.contents)
    moved = record.quick_identity not in (None, ctx.identity.quick)
    if moved if resumes_by_content else settings:
        raise ResumeError(
            f"the stage `{folder.name}` was interrupted, and what it depends on has changed since",
            where=folder.path,
            found="; ".join(changed) or "the data or the start model has other content",
            remedy="undo the change to go on, or start it anew with --fresh (from Python: fresh=True)",
        )


def inputs_of(start: Any, stages: Iterable[StageSettings], rows: Iterable[Any] = ()) -> Iterator[str]:
    """The paths that stages read: of a start that is not loaded yet, of their data, of models that are merged, and of
    rows that are read when they are needed. Data that an earlier stage of the recipe writes is not there before that
    stage has run."""
    # A name of the catalogue is no path, even where a folder that the command runs in holds the results.
    if isinstance(start, str | Path) and Path(start).exists():
        yield str(start)
    for stage in stages:
        for data in data_of(stage).values():
            for part in data.parts:
                yield from part.path if part.stage is None else ()
        for _, source in sources_in(stage):
            if source.model is not None and Path(source.model).exists():
                yield source.model
    for examples in rows:
        if isinstance(examples, Examples):
            yield from (source.name for source in examples.sources if isinstance(source, FileSource | SavedDataset))


def require_inputs_elsewhere(results: Sequence[Path], inputs: Iterable[str]) -> None:
    """To be called before results are moved or removed: a model that a stage is to begin from would be lost with them.

    Raises:
        ConfigError: one of the inputs lies in a folder of results.
    """
    for given in inputs:
        for folder in results:
            if Path(os.path.realpath(given)).is_relative_to(os.path.realpath(folder)):
                raise ConfigError(
                    "a stage begins from results that make room for its own",
                    where=folder,
                    found=f"{given}, which lies in this folder",
                    expected="a start model and data outside of the folder that the stage writes",
                    remedy="choose another folder with --out (from Python: out=) or another name for the stage, or "
                    "move what it begins from elsewhere",
                )


def clear_checkpoints(folder: StageFolder) -> None:
    """Before a finished stage whose model is gone is made again from its start: a checkpoint of its last step would
    train nothing."""
    if folder.checkpoints.exists():
        remove_results([folder.checkpoints])


def _because(record: StageRecord, ctx: StageContext[Any]) -> list[str] | None:
    """What differs from the finished result that is there, a phrase each; None where nothing does."""
    assert ctx.identity is not None
    changed = _settings_changed(ctx.folder, ctx)
    kept_other = isinstance(ctx.stage, SamplingStage) and record.examine_keep not in (None, ctx.stage.examine.keep)
    if kept_other:
        # No step depends on it, so no hash has it; the weights that the stage ends with do.
        changed.append(Difference("examine.keep", record.examine_keep, ctx.stage.examine.keep))
    if record.quick_identity == ctx.identity.quick and not kept_other:
        return None
    because = all_differences(changed, record.contents, ctx.identity.contents)
    return because or (None if record.quick_identity is None else [UNKNOWN])


def _settings_changed(folder: StageFolder, ctx: StageContext[Any]) -> list[Difference]:
    path = folder.path / "config.yaml"
    if not path.exists():
        return []
    before = parse(path.read_text(encoding="utf-8"), str(path)).value
    if not isinstance(before, dict):
        return []
    return what_changed(before, ctx.stage, seed=ctx.seed, split_seed=ctx.split_seed)
