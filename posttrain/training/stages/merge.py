"""The stage `merge`: earlier policies, folders and checkpoints become one model, from which later stages start."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from posttrain.config.lineage import START
from posttrain.config.merge_measures import BarrierSettings, WeightSearch
from posttrain.config.merging import Merge, MergeSettings, MergeSource
from posttrain.config.nested import changed_within
from posttrain.config.suite_settings import SuiteSettings
from posttrain.data.encoder_settings import EncoderSettings
from posttrain.errors import unknown
from posttrain.evaluate.merging.barrier import measured_barriers, sentence
from posttrain.evaluate.merging.search import halves_of, searched
from posttrain.evaluate.runner import content_of, content_of_suite
from posttrain.models.folders.loading import resolve
from posttrain.models.folders.manifest import folder_fingerprint
from posttrain.models.merging.comparison import conflict_sentence
from posttrain.models.merging.run import Plan, merge_models, planned, require_room
from posttrain.runs.checkpoints import MANIFEST, file_identity, whole_checkpoints
from posttrain.runs.folder import RunFolder, StageFolder
from posttrain.runs.records.merging import Barrier
from posttrain.training.stages.kind import MakingKind, StageContext


def with_folders(stage: Merge, run: RunFolder | None, start: str | Path) -> Merge:
    """The stage with `{stage: NAME}` resolved to the folder that the stage wrote, and with the recipe's start as base
    where a base is needed and none is named.

    Args:
        run: None before those stages have run: the start stands for what they will have made of it, which has its form.
    """

    def located(source: MergeSource) -> MergeSource:
        if source.stage is None:
            return source
        if run is None:
            return source.model_copy(update={"model": str(start), "stage": None, "checkpoints": None})
        folder = run.stage(source.stage)
        place = start if source.stage == START else folder.model if source.checkpoints is None else folder.path
        return source.model_copy(update={"model": str(place), "stage": None})

    return _with_base(_with_sources(stage, located), start)


def _with_sources(stage: Merge, change: Any) -> Merge:
    return changed_within(stage, lambda record, _: change(record) if isinstance(record, MergeSource) else record)


def _with_base(stage: Merge, start: str | Path) -> Merge:
    if stage.merge.base is not None or stage.merge.row.base != "needed":
        return stage
    base = MergeSource(model=str(start))
    return stage.model_copy(update={"merge": stage.merge.model_copy(update={"base": base})})


def models_that_fit(ctx: StageContext[Merge]) -> Plan | None:
    """For `posttrain check`: every refusal that files can tell, before a weight is read.

    Raises:
        ConfigError: the models do not fit each other.
        ModelError: one of them cannot be read.
    """
    if ctx.stage.search is not None:
        # Before anything is merged: a suite that cannot choose is found in a second.
        halves_of(_suites_of(ctx, ctx.stage.search), ctx.stage.search.chosen_on, ctx.split_seed)
    if not ctx.proof_only:
        return None  # `merge_models` refuses the same before it writes, and adapters would be folded twice
    with planned(ctx.stage.merge, ctx.folder.model, say=ctx.say, stand_ins=True) as plan:
        return plan


def make_merge(ctx: StageContext[Merge], plan: Plan | None) -> None:
    """Write the merged model into the stage's folder, read back.

    Raises:
        ModelError: a weight is not finite.
        ExportError: what was saved is not what was merged, or the disk is full.
    """
    stage, folder = ctx.stage, ctx.folder
    settings = stage.merge if stage.search is None else _searched(ctx, stage.search)
    report = merge_models(settings, folder.model, seed=ctx.seed, say=ctx.say, progress=ctx.progress)
    ctx.say(str(report))
    assert report.comparison is not None
    barriers = _barriers(ctx, stage.barrier) if stage.barrier is not None else ()
    folder.write(replace(report.comparison, barriers=barriers))
    for said in (conflict_sentence(report.comparison), *map(sentence, barriers)):
        if said:
            ctx.say(said)


def _barriers(ctx: StageContext[Merge], settings: BarrierSettings) -> tuple[Barrier, ...]:
    encoding, device = _asked(ctx)
    return measured_barriers(
        ctx.stage.merge, settings, ctx.folder.model, encoding=encoding, device=device, progress=ctx.progress
    )


def _searched(ctx: StageContext[Merge], search: WeightSearch) -> MergeSettings:
    """The merge with the numbers that its suites chose; what was measured before an interruption is not again."""
    stage = ctx.stage
    suites = _suites_of(ctx, search)
    encoding, device = _asked(ctx)
    rests_on = [
        stage.model_dump(mode="json", include={"merge", "search"}),
        {key: value for key, value in content_of_models(stage).items()},
        [(suite.model_dump(mode="json"), content_of_suite(suite)) for suite in suites],
        [ctx.seed, ctx.split_seed, None if encoding is None else encoding.template_identity],
    ]
    identity = hashlib.sha256(json.dumps(rests_on, sort_keys=True, default=repr).encode()).hexdigest()
    return searched(
        stage.merge,
        search,
        suites,
        ctx.folder,
        identity=identity,
        seed=ctx.seed,
        split_seed=ctx.split_seed,
        encoding=encoding,
        device=device,
        progress=ctx.progress,
    )


def _suites_of(ctx: StageContext[Merge], search: WeightSearch) -> list[SuiteSettings]:
    """Raises ConfigError where a program runs the stage without the suites that it names."""
    known = {suite.name: suite for suite in ctx.suites}
    if missing := [name for name in search.suite if name not in known]:
        raise unknown("suite", missing[0], known, where=f"{ctx.folder.name}.search.suite")
    return [known[name] for name in search.suite]


def _asked(ctx: StageContext[Merge]) -> tuple[EncoderSettings | None, str]:
    """How the merge will be asked by the suites, and where."""
    answers = ctx.answers
    return (None, "auto") if answers is None else (answers.encoding, answers.device)


def what_would_be_merged(ctx: StageContext[Merge], plan: Plan | None) -> str:
    """Of `posttrain check`: nothing stands in for a model, since the stages behind are checked on the start's shape."""
    assert plan is not None
    require_room(ctx.folder.path, plan.bytes)
    over = f" over {plan.base.name}" if plan.base is not None else ""
    return (
        f"{len(plan.models)} models are merged by {plan.settings.kind}{over}: {len(plan.models[0].entries):,} tensors, "
        f"{plan.bytes / 1e6:,.0f} MB. Models that stages make are checked by the recipe's start, whose form they have"
    )


def content_of_models(stage: Merge) -> Mapping[str, str]:
    """Hashes of the models: one that was trained anew lies where the one before it lay; and of the barrier's rows."""
    rows = {} if stage.barrier is None else {"barrier.data": content_of(stage.barrier.data)}
    return rows | {
        f"merge.{source.label}.{index}": _content(source) for index, source in enumerate(stage.merge.sources)
    }


def _content(source: MergeSource) -> str:
    if source.checkpoints is None:
        return folder_fingerprint(resolve(str(source.model)).folder)
    paths = whole_checkpoints(StageFolder(Path(str(source.model))).checkpoints)
    chosen = paths[-source.checkpoints.last :] if source.checkpoints.last else paths
    # A checkpoint's manifest has the hashes of its files.
    return " ".join(str(file_identity(path / MANIFEST)["sha256"]) for path in chosen)


MERGE: MakingKind[Merge, Plan | None] = MakingKind(
    outputs=Merge.OUTPUTS,
    inputs=models_that_fit,
    make=make_merge,
    with_models=with_folders,
    content=content_of_models,
    stand_in=what_would_be_merged,
)
