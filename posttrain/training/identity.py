"""What a stage rests on, as hashes that are known before anything is loaded: its data, its start model, its settings.

    identity = identity_of_recipe(ctx, answers)       # StageIdentity
    require_unchanged(identity)                       # after the rows were read: they are those that were hashed

The fingerprint that checkpoints carry is of the encoded rows and is known only once they are encoded; this one decides
beforehand whether a finished stage is run again, and what is said of it then.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from posttrain.config import StageSettings, data_of, stage_fingerprint
from posttrain.config.fingerprint import objective_fingerprint
from posttrain.config.settings import ReadSettings, Source
from posttrain.data.read import Examples
from posttrain.data.sources.files import FileSource, SavedDataset, combine_fingerprints, open_sources
from posttrain.data.sources.hub import HubSource
from posttrain.data.sources.source import DataSource
from posttrain.errors import SourceError
from posttrain.evaluate.runner import content_of_suite
from posttrain.models.folders.fingerprint import weights_fingerprint
from posttrain.models.folders.loading import LoadedModel, resolve
from posttrain.models.folders.manifest import folder_fingerprint
from posttrain.runs.differences import START_MODEL
from posttrain.training.rl.tasks import is_generated, tasks_fingerprint
from posttrain.training.stages.kind import MakingKind, StageContext, StageIdentity
from posttrain.training.stages.sampling_inputs import content_of
from posttrain.training.stages.speech import AnswerSettings
from posttrain.training.stages.table import kind_of_stage

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def identity_of_recipe(ctx: StageContext[StageSettings], answers: AnswerSettings) -> StageIdentity:
    """Of a recipe's stage, whose data are files and whose start is a folder."""
    assert not isinstance(ctx.start, LoadedModel)
    hashed = _Hashed()
    for key, data in _parts(ctx.stage):
        if data.path:
            files = [path for path in data.path if not is_generated(path)]
            content = hashed.add(open_sources(files, data.split)) if files else ""
            hashed.contents[key] = tasks_fingerprint(data, content)
    kind = kind_of_stage(ctx.stage)
    if isinstance(kind, MakingKind):
        # Its settings do not say how the model is asked that it lets answer: the stage that trained it does.
        hashed.contents["template"] = answers.encoding.template_identity
        # A reward model that was trained anew lies where the one before it lay.
        hashed.contents |= kind.content(ctx.stage)
    if ctx.stage.chosen_by:
        # What chooses what it makes stands beside the stages.
        chosen_by = [suite for suite in ctx.suites if suite.name in ctx.stage.chosen_by]
        asked = [(suite.model_dump(mode="json"), content_of_suite(suite)) for suite in chosen_by]
        hashed.contents["search.suite"] = _hash([_said(one) for one in asked])
    return hashed.identity(ctx, folder_fingerprint(resolve(ctx.start).folder))


def identity_of_call(ctx: StageContext[Any]) -> StageIdentity:
    """Of `train(...)`: rows and functions that a program passed, and a start that may be in memory."""
    hashed = _Hashed()
    for key, rows in (("data", ctx.examples), ("held_out", ctx.held_out)):
        if isinstance(rows, Examples):
            options = rows.options
            which = options.limit if not options.skip else (options.skip, options.limit)
            asked = _hash([_said(options.format, options.columns, options.rules, which, options.bad_rows)])
            hashed.contents[key] = combine_fingerprints([hashed.add(rows.sources, by_commit=False), asked])
        elif rows is not None:
            hashed.contents[key] = _hash([_said(task.prompt, task.answer, task.metadata, task.tools) for task in rows])
    for key, data in _parts(ctx.stage):
        if data.path and key.partition(".")[0] not in hashed.contents:
            hashed.contents[key] = hashed.add(open_sources(list(data.path), data.split), by_commit=False)
    if ctx.rewards:
        hashed.contents["rewards"] = _hash([content_of(function) for function in ctx.rewards])
    if isinstance(ctx.start, LoadedModel):
        return hashed.identity(ctx, weights_fingerprint(ctx.start.model))
    return hashed.identity(ctx, folder_fingerprint(resolve(ctx.start).folder))


def _parts(stage: StageSettings) -> Iterator[tuple[str, ReadSettings]]:
    """What the stage reads, by key: ("data", ...), or ("data.maths", ...) of each source of a mixture."""
    for key, data in data_of(stage).items():
        for part in data.parts:
            yield f"{key}.{part.name}" if isinstance(part, Source) else key, part


class _Hashed:
    """Contents by key, and the files that were read for them."""

    def __init__(self) -> None:
        self.contents: dict[str, str] = {}
        self.sources: list[tuple[DataSource, str]] = []

    def add(self, sources: Sequence[DataSource], *, by_commit: bool = True) -> str:
        """Hashes them.

        Args:
            by_commit: whether the hub is asked for the commit of its rows; else they count by their name, for a program
                may work without a network on rows that it has already.
        """
        found = [
            source.fingerprint() if by_commit or not isinstance(source, HubSource) else _hash([_said(source)])
            for source in sources
        ]
        self.sources += zip(sources, found, strict=True)
        return combine_fingerprints(found)

    def identity(self, ctx: StageContext[Any], start_model: str) -> StageIdentity:
        if (own := objective_fingerprint(ctx.stage)) is not None:
            self.contents["objective"] = own
        quick = stage_fingerprint(
            ctx.stage,
            data=list(self.contents.values()),
            start_model=start_model,
            seed=ctx.seed,
            split_seed=ctx.split_seed,
        )
        contents: Mapping[str, str] = {**self.contents, START_MODEL: start_model}
        # Only what lies on a disk can change under a reader; a pipe is read once, and the hub names a commit.
        files = tuple(pair for pair in self.sources if isinstance(pair[0], FileSource | SavedDataset))
        return StageIdentity(quick, contents, files)


def require_unchanged(identity: StageIdentity | None) -> None:
    """Raises SourceError, naming the file, if a file that was hashed before it was read is another one by now.

    Otherwise the stage would train on rows that its record does not name, and another run of the same recipe would take
    its model for one of the rows that it does name.
    """
    for source, before in identity.files if identity is not None else ():
        if source.fingerprint() != before:
            raise SourceError(
                "the file changed while the run began",
                where=source.name,
                found="another content than a moment ago; nothing was trained",
                expected="a file that stays as it is until the rows are read",
                remedy="run it again, once nothing writes to the file",
            )


def _said(*values: object) -> str:
    """The values as text, without the addresses that some objects show: these differ in every process."""
    return _ADDRESS.sub("", repr(values))


def _hash(parts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogatepass")).hexdigest()
