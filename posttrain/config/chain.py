"""What each stage of a recipe starts from, as far as adapters go: a whole model, or an adapter that was exported alone.

A stage that starts from an adapter says what becomes of it: `kind: continue` goes on training it, another kind folds it
into the weights and trains a new one over it. What cannot work is refused here, before anything runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic_core import PydanticCustomError

from posttrain.config.adapters import AdapterSettings, Continue, PrefixTuning, PTuning, QLoRA
from posttrain.config.lineage import ancestors, started_from
from posttrain.config.settings import PromptEncoding
from posttrain.config.stages import StageSettings, TrainingStage
from posttrain.config.values import refuse


@dataclass(frozen=True, slots=True)
class Before:
    """What the last policy's folder holds: Before("sft", LoRA(rank=8)) is an adapter alone, of the stage `sft`."""

    stage: str
    adapter: AdapterSettings | None
    """None: whole weights."""
    unknown: bool = False
    """An adapter or whole weights, as the recipe's start model will show."""


def check_adapters(stages: Sequence[StageSettings]) -> None:
    """Raises the validation error of the first stage whose adapter does not fit what it starts from."""
    after: dict[str, Before | None] = {}
    for index, stage in enumerate(stages):
        above = started_from(stages, stage)
        before = None if above is None else after[above.name]
        # Stages that write data leave the policy as it is; what else makes a policy makes a whole one.
        if not isinstance(stage, TrainingStage):
            after[stage.name] = Before(stage.name, None)
            continue
        # Of the recipe's start nothing is known yet: its folder says what it is, when the run begins.
        if before is not None and not before.unknown:
            fault = _over_whole(stage) if before.adapter is None else _over_adapter(stage, before.stage, before.adapter)
            if fault is not None:
                path, problem, remedy = fault
                raise _refusal(problem, ("stages", index, *path), before, remedy)
        # A reward model is a side branch, from which no stage starts.
        if stage.OUTPUTS == "policy":
            after[stage.name] = _after(stage, before)


def continued(stages: Sequence[StageSettings], name: str) -> AdapterSettings | None:
    """The adapter that the stage `name` goes on with, where a stage before it began it; None where the start did."""
    adapter: AdapterSettings | None = None
    own = next((stage for stage in stages if stage.name == name), None)
    for stage in ancestors(stages, own) if own is not None else ():
        if isinstance(stage, TrainingStage) and not isinstance(stage.adapter, Continue):
            adapter = stage.adapter
    return adapter


def spoken_before(stages: Sequence[StageSettings], stage: TrainingStage) -> TrainingStage:
    """The stage as it will speak to its model once the policies before it in the recipe are trained: it takes over what
    they say of the template, its values and the day, wherever it says nothing itself."""
    before: PromptEncoding | None = None
    for other in ancestors(stages, stage):
        if isinstance(other, TrainingStage):
            before = _over(before, other.encoding)  # type: ignore[attr-defined]
    own = stage.encoding  # type: ignore[attr-defined]
    return stage if before is None else stage.model_copy(update={"encoding": _over(before, own)})


def _over(before: PromptEncoding | None, own: PromptEncoding) -> PromptEncoding:
    if before is None:
        return own
    # Values belong to their template: those of another one would set variables that mean something else there.
    same = own.template in ("auto", before.template)
    update = {
        "template": before.template if own.template == "auto" else own.template,
        "template_kwargs": {**(before.template_kwargs if same else {}), **own.template_kwargs},
        "date": own.date or before.date,
    }
    return own.model_copy(update=update)


def _after(stage: TrainingStage, before: Before | None) -> Before:
    adapter = stage.adapter
    if isinstance(adapter, Continue):
        if before is None or before.adapter is None:
            return Before(stage.name, None, unknown=True)
        adapter = before.adapter
    # `auto` merges what can be merged, as the export does.
    merged = adapter is None or (adapter.MERGES and stage.export.merge is not False)
    return Before(stage.name, None if merged else adapter)


def _over_whole(stage: TrainingStage) -> tuple[tuple[str, ...], str, str] | None:
    if isinstance(stage.adapter, Continue):
        return ("adapter", "kind"), "there is no adapter to go on with", "write `export: {merge: false}` in that stage"
    return None


def _over_adapter(
    stage: TrainingStage, earlier: str, adapter: AdapterSettings
) -> tuple[tuple[str, ...], str, str] | None:
    """(where, what is wrong, what to do), if something is."""
    going_on = "write `adapter: {kind: continue}` to go on training it"
    merged = f"remove `export.merge` in `{earlier}`" if adapter.MERGES else f"choose `kind: lora` in `{earlier}`"
    if stage.adapter is None and stage.OUTPUTS == "reward" and adapter.MERGES:
        return None  # a reward model is made of the policy with its adapter folded in
    if stage.adapter is None and stage.OUTPUTS == "policy":
        problem = (
            f"the stage starts from the adapter that `{earlier}` exports alone, and does not say what becomes of it"
        )
        return ("adapter",), problem, f"{going_on}, or {merged} to train all weights"
    if isinstance(stage.adapter, Continue):
        network = isinstance(adapter, PTuning) or (isinstance(adapter, PrefixTuning) and adapter.projection is not None)
        if network:
            problem = "the network that makes its virtual tokens is not saved with them, so training cannot go on"
            return ("adapter", "kind"), problem, f"choose `kind: prompt` in `{earlier}`"
        if stage.export.merge is True and not adapter.MERGES:
            problem = f"an adapter of kind {adapter.kind} cannot be folded into the weights"
            return ("export", "merge"), problem, "remove `export.merge`"
        return None
    if not adapter.MERGES:
        problem = f"an adapter of kind {adapter.kind} cannot be folded into the weights, so no other can be put over it"
        return ("adapter",), problem, f"{going_on}, or {merged}"
    if isinstance(stage.adapter, QLoRA):
        return ("adapter", "kind"), "only the weights of a whole model can be quantised", merged
    if stage.exports_adapter:
        problem = (
            f"`{earlier}` exports an adapter alone, so its weights lie in no folder that another adapter could name"
        )
        return ("export", "merge"), problem, f"{merged}, or export this stage merged"
    return None


def _refusal(problem: str, path: tuple[str | int, ...], before: Before, remedy: str) -> PydanticCustomError:
    kind = "whole weights" if before.adapter is None else f"an adapter of kind {before.adapter.kind} alone"
    return refuse(problem, path=path, found=f"`{before.stage}` exports {kind}", remedy=remedy)
