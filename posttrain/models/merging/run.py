"""Merge models into a folder: opened, held against each other, streamed, read back in a fresh process, renamed.

    report = merge_models(merge_settings("ties", ["runs/a/model", "runs/b/model"], base="smollm2-135m"), "merged")

    open_inputs -> refusals -> vocabulary -> room on the disk -> stream -> files beside the weights -> PendingMerge

`posttrain merge`, `pt.merge`, the stage `merge` and mergekit's files all come through here.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.config.merging import MergeSettings, MergeSource
from posttrain.errors import ConfigError, ExportError, PosttrainError
from posttrain.models.folders.export import begin_reading_back
from posttrain.models.folders.hub import Say
from posttrain.models.folders.manifest import refuse_foreign, temporary_folder
from posttrain.models.folders.own_code import code_runs, own_code
from posttrain.models.folders.shard_files import SHARD_BYTES, size_of
from posttrain.models.folders.source import ModelSource, base_of, resolve
from posttrain.models.merging.checkpoints import open_checkpoints
from posttrain.models.merging.comparison import Comparer
from posttrain.models.merging.inputs import OpenModel, find_base, named_base, open_model
from posttrain.models.merging.outputs import PendingMerge, expected_of, write_beside
from posttrain.models.merging.refusals import (
    require_alike,
    require_base_apart,
    require_filters_fit,
    require_layers,
    require_other_folder,
    twice_named,
)
from posttrain.models.merging.stream import Written, dtype_of_merge, kinds_of, merge_tensors
from posttrain.models.merging.tokens import Vocabulary, vocabulary_of
from posttrain.runs.disk import writing
from posttrain.runs.progress import Progress
from posttrain.runs.records.merging import MergeComparison


@dataclass(frozen=True, slots=True)
class MergeReport:
    """A merge that was read back: MergeReport(Path("merged"), "ties", ("a", "b"), base="smollm2-135m", ...)."""

    folder: Path
    kind: str
    models: tuple[str, ...]
    base: str | None
    dtype: str
    files: Mapping[str, Mapping[str, Any]]
    """{"model.safetensors": {"bytes": 538090408, "sha256": "..."}, ...}"""
    tensors: int
    compared: int
    """Of these so many were found again, byte for byte, by a fresh process under their own names."""
    read: int
    """Bytes of weights, of all models together."""
    seconds: float
    """Of reading, merging and writing the weights."""
    text: str | None
    """What the fresh process generated; None of a reward model, which says nothing."""
    notes: tuple[str, ...] = ()
    comparison: MergeComparison | None = None
    """How the models lie to each other, seen from their base."""

    def __str__(self) -> str:
        over = f" over {self.base}" if self.base else ""
        rate = self.read / 1e6 / max(self.seconds, 1e-9)
        again = "each" if self.compared == self.tensors else f"{self.compared:,} of them"
        spoke = "" if self.text is None else " and answered"
        return (
            f"merged {', '.join(self.models)}{over} by {self.kind} into {self.folder}: {self.tensors:,} tensors in "
            f"{self.dtype}, {self.seconds:.1f} s ({rate:,.0f} MB/s read); a fresh process found {again} byte for byte"
            f"{spoke}"
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """What would be merged, found fit: Plan(settings, models, base, vocabulary, ("...",))."""

    settings: MergeSettings
    models: tuple[OpenModel, ...]
    base: OpenModel | None
    vocabulary: Vocabulary | None
    notes: tuple[str, ...] = ()
    ground: OpenModel | None = None
    """What the models come from, if it is known and the method does not take it; they are compared over it."""

    @property
    def bytes(self) -> int:
        """Of the weights that will be written."""
        dtype = dtype_of_merge(self.settings, self.models[0])
        return sum(size_of(*kind) for kind in kinds_of(self.models[0], self.vocabulary, dtype).values())


def merge_models(
    settings: MergeSettings,
    out: str | Path,
    *,
    seed: int = 0,
    layers: int | None = None,
    say: Say | None = None,
    progress: Progress | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> MergeReport:
    """Merge, save, and read the folder back in a fresh process before it has its name.

    Args:
        settings: models by name or folder (a stage of a recipe is resolved before).
        out: a folder that is not there, is empty, or holds an earlier save.
        seed: of a method that draws and whose settings say none.
        layers: how many the models must have, where a file of mergekit's counts them.
        say: receives a line for each conversion and each note.

    Raises:
        ConfigError: the models do not fit each other; both, the key and the values are named.
        ModelError: a model cannot be read, is quantised or holds a NaN.
        ExportError: the folder holds something else, or what was saved does not read back.
        SourceError: the disk has too little room, or the system refuses the files.
    """
    out, progress = Path(out), progress or Progress()
    # Before `refuse_foreign`, which would call a model's own folder something else.
    named = [source.model for source in settings.sources if source.model is not None]
    require_other_folder(out, {name: Path(name).expanduser() for name in named if Path(name).expanduser().is_dir()})
    refuse_foreign(out)
    with planned(settings, out, say=say) as plan:
        require_layers(plan.models, layers)
        for note in plan.notes:
            progress.say(note) if say is None else say(note)
        require_room(out, plan.bytes)
        temporary = temporary_folder(out)
        seen_from = plan.base or plan.ground
        comparer = Comparer([one.name for one in plan.models], None if seen_from is None else seen_from.name)
        try:
            started = time.monotonic()
            with writing(out):
                written = merge_tensors(
                    settings,
                    plan.models,
                    plan.base,
                    plan.vocabulary,
                    temporary,
                    progress,
                    seed=seed,
                    shard_bytes=shard_bytes,
                    ground=plan.ground,
                    comparer=comparer,
                )
                seconds = time.monotonic() - started
                with progress.doing("reading the merged model back"):
                    pending = _begin(plan, out, temporary, written, started)
                    saved = pending.wait()
        except BaseException:  # an interrupt too: nobody else knows of this folder
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        return MergeReport(
            folder=out,
            kind=settings.kind,
            models=tuple(model.name for model in plan.models),
            base=None if plan.base is None else plan.base.name,
            dtype=str(dtype_of_merge(settings, plan.models[0])).removeprefix("torch."),
            files=saved.files,
            tensors=len(written.checksums),
            compared=pending.compared,
            read=written.read,
            seconds=seconds,
            text=saved.text,
            notes=plan.notes,
            comparison=comparer.record(settings.kind),
        )


@contextmanager
def planned(settings: MergeSettings, out: Path, *, say: Say | None = None, stand_ins: bool = False) -> Iterator[Plan]:
    """The models opened and held against each other; what had to be converted is removed at the end.

    What `posttrain check` asks of a merge, too: every refusal of `merge_models` but those that weights alone can tell.

    Args:
        stand_ins: a model may stand for another of its form, which is not trained yet: that two are one says nothing.

    Raises:
        ConfigError, ModelError: as `merge_models`.
    """
    scratch: list[Path] = []

    def folder() -> Path:
        # Beside the result, where there is room for models, under a name that the next save sweeps after a kill.
        scratch.append(temporary_folder(out.parent / f"{out.name}.inputs"))
        return scratch[-1]

    def opened(name: str | Path) -> OpenModel:
        return open_model(name, folder, say=say)

    try:
        sources = [source_of(source) for source in settings.models]
        models = tuple(
            _open(source, found, opened, folder) for source, found in zip(settings.models, sources, strict=True)
        )
        base = _open_base(settings, models, opened, folder)
        # Once more, of what a catalogue's names and the models' records led to.
        everyone = (*models, *([base] if base else []))
        # A GGUF file is all of its model: what else lies in its folder, the merge too, is none of it.
        require_other_folder(
            out, {model.name: model.source.folder for model in everyone if model.source.gguf_file is None}
        )
        if not stand_ins:
            require_base_apart(models, base)
        require_filters_fit(settings, models[0])
        require_alike(models, base, tokens=settings.tokens, template=settings.template)
        vocabulary = vocabulary_of(models, base, settings.tokens, settings.missing_tokens)
        notes = (*(() if stand_ins else _twice(models)), *_notes(settings, models, base, vocabulary))
        yield Plan(settings, models, base, vocabulary, notes, _ground(models, opened) if base is None else None)
    finally:
        for path in scratch:
            shutil.rmtree(path, ignore_errors=True)


def source_of(source: MergeSource) -> ModelSource | None:
    """Where a model lies; None of a stage's folder, whose checkpoints are meant."""
    if source.model is None:
        raise ConfigError(
            f"`stage: {source.stage}` names a stage of a recipe, and this merge is none of its stages",
            where="models",
            remedy="name the folder: `model: runs/RECIPE/STAGE/model`",
        )
    return resolve(source.model) if source.checkpoints is None else None


def _open(source: MergeSource, found: ModelSource | None, opened: Any, scratch: Callable[[], Path]) -> OpenModel:
    if source.checkpoints is None:
        assert found is not None
        return opened(source.model)
    return open_checkpoints(Path(str(source.model)), source.checkpoints, opened, source.label, scratch)


def _open_base(
    settings: MergeSettings, models: Sequence[OpenModel], opened: Any, scratch: Callable[[], Path]
) -> OpenModel | None:
    if settings.base is not None:
        return _open(settings.base, source_of(settings.base), opened, scratch)
    if settings.row.base != "needed":
        return None
    return opened(find_base([model.source for model in models]))


def _ground(models: Sequence[OpenModel], opened: Any) -> OpenModel | None:
    """The model that all of them come from, by their own word; None where they do not say, or it is gone."""
    # Checkpoints lie over their start, whose source they have.
    named = [str(model.source.folder) if model.averaged else named_base(model.source) for model in models]
    try:
        places = {resolve(name).folder.resolve() for name in named if name is not None}
        # The merge does without: what cannot be read is no reason to refuse it.
        return opened(named[0]) if len(places) == 1 and None not in named else None
    except PosttrainError:
        return None


def _twice(models: Sequence[OpenModel]) -> list[str]:
    return [f"{name} is listed twice, and counts twice" for name in twice_named(models)]


def _notes(
    settings: MergeSettings, models: Sequence[OpenModel], base: OpenModel | None, vocabulary: Vocabulary | None
) -> Iterator[str]:
    first = models[0]
    if settings.base is None and base is not None:
        yield f"the base is {base.name}, which all models name as their start"
    if vocabulary is not None and vocabulary.added:
        words = ", ".join(map(repr, vocabulary.added[:5])) + (" ..." if len(vocabulary.added) > 5 else "")
        verb = "are added" if settings.tokens == "union" else "are dropped, which the base has not"
        yield f"{len(vocabulary.added):,} tokens {verb}: {words}; {vocabulary.rows:,} rows of embeddings"
    everyone = [*models, *([base] if base is not None else [])]
    for model, filled in zip(everyone, vocabulary.pieces if vocabulary is not None else (), strict=False):
        if filled:
            yield f"{model.name} lacks {len(filled):,} tokens, which take the mean of its rows for their pieces"
    for model in models if settings.base is not None and base is not None else ():
        start = base_of(model.source) if model.source.layout == "adapter" else None
        if start is not None and base is not None and start.folder.resolve() != base.source.folder.resolve():
            # Allowed: the base may be what the adapter's own base was trained from.
            yield (
                f"the adapter {model.name} was trained on {start.name}, and the base is {base.name}: its difference "
                "holds what parts the two, too"
            )
    positions = {int(getattr(model.config.get_text_config(), "max_position_embeddings", 0) or 0) for model in models}
    if len(positions) > 1:
        yield f"the models were made for {', '.join(f'{n:,}' for n in sorted(positions))} positions: the least counts"
    for other in models[1:]:
        if settings.template == "first" and (differences := first.speech.differences(other.speech)):
            yield f"spoken to as {first.name}, unlike {other.name} ({'; '.join(differences)})"
    if first.is_reward and any((model.reward or {}).get("rule", {}).get("scale") is not None for model in models):
        yield "its scores are not normalised: scale and shift were fitted to the scores of each model"


# ---------------------------------------------------------------- saving


def require_room(out: Path, needed: int) -> None:
    """Raises ExportError if the disk has not so many bytes: found after hours of merging, it would be too late."""
    there = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(there).free
    if free < needed * 1.01 + 50e6:  # tokenizer, manifest, and what else is written meanwhile
        raise ExportError(
            "the disk has no room for the merged model",
            where=out,
            found=f"{free / 1e9:,.1f} GB free",
            expected=f"{needed / 1e9:,.1f} GB and a little more",
            remedy="free some room, give a folder on another disk, or write a narrower `dtype`",
        )


def _begin(plan: Plan, out: Path, temporary: Path, written: Written, started: float) -> PendingMerge:
    """Write what lies beside the weights, and have a fresh process load it all."""
    first, settings = plan.models[0], plan.settings
    ground = plan.base if settings.tokens == "base" and plan.base is not None else first
    tokenizer = first.tokenizer if plan.vocabulary is None else plan.vocabulary.tokenizer
    rows = first.rows if plan.vocabulary is None else plan.vocabulary.rows
    dtype = dtype_of_merge(settings, first)
    export = write_beside(plan.models, ground, temporary, tokenizer, rows, dtype, _said(plan))
    expected = expected_of(first, tokenizer, rows, export, dtype, written.checksums)
    info = {
        "kind": "model",
        "base": None if plan.base is None else {"name": plan.base.name, "origin": plan.base.source.origin},
        "training": dict(export.info),
    }
    code = bool(own_code(temporary)) and code_runs(temporary)
    return begin_reading_back(PendingMerge, out, temporary, expected, info, started, model_code=code)


def _said(plan: Plan) -> dict[str, Any]:
    """What the manifest says of the merge: the settings as they were, and what each model was."""
    return {
        "merged": {
            "settings": json.loads(plan.settings.model_dump_json(by_alias=True, exclude_defaults=True)),
            "kind": plan.settings.kind,
            "models": [_identity(model) for model in plan.models],
            "base": None if plan.base is None else _identity(plan.base),
        }
    }


def _identity(model: OpenModel) -> dict[str, Any]:
    files = (model.source.manifest or {}).get("files") or {}
    weights = {name: entry["sha256"] for name, entry in files.items() if name.endswith(".safetensors")}
    return {"name": model.name, "folder": str(model.source.folder), "weights": weights, "converted": model.converted}
