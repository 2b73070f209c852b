"""One training stage: rows and a start model in, a proven model folder out.

prepared = prepare(stage, start, folder, seed=0, progress=progress)    # reads, encodes, loads, proves
outcome = train(prepared, folder, progress)                           # the loop, then the export
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from posttrain.config import PreferenceStage, Reward, TrainingStage, stage_fingerprint, stage_yaml
from posttrain.config.adapters import AdaLoRA
from posttrain.config.base import RowStage
from posttrain.config.online import SamplingStage
from posttrain.data.read import Examples
from posttrain.data.reward_encode import RewardEncoder
from posttrain.data.speech import Speech
from posttrain.models.adapters.kinds import adapter_dropout
from posttrain.models.devices import device_of
from posttrain.models.folders.export import ExportSettings, PendingSave, begin_save
from posttrain.models.folders.fingerprint import weights_fingerprint
from posttrain.models.folders.loading import LoadedModel
from posttrain.models.reference import reference
from posttrain.models.tree.heads import ScoreModel
from posttrain.models.tree.logprobs import Policy
from posttrain.models.tree.model import TreeModel
from posttrain.rewards.scorer import RewardFunction
from posttrain.runs.folder import StageFolder
from posttrain.runs.heartbeat import Heartbeat
from posttrain.runs.progress import Progress
from posttrain.training import checkpoint
from posttrain.training.balance import balanced
from posttrain.training.checks import preflight
from posttrain.training.checks.memory import explained, program_bytes
from posttrain.training.checks.of_rows import fixed, prove, prove_weights, show, stand
from posttrain.training.loop import Loop, Work
from posttrain.training.objectives import objective_of
from posttrain.training.order import RowOrder
from posttrain.training.rank_allocation import schedule as rank_schedule
from posttrain.training.records import environment, now
from posttrain.training.stages import reward, reward_evaluation
from posttrain.training.stages.prepared import Prepared, autocast_of, load_policy
from posttrain.training.stages.rows import Inputs, load_inputs
from posttrain.training.stages.sampling import prepare_online
from posttrain.training.stages.sampling_end import conclude
from posttrain.training.stages.speech import run_date
from posttrain.training.stages.starts import settle
from posttrain.training.step import mismatched_of_run, require_two_rows
from posttrain.types import Task, TokenTree


@dataclass(frozen=True, slots=True)
class Outcome:
    """A trained stage: the model in memory, and the folder on its way to its name."""

    policy: TreeModel
    steps: int
    seconds: float
    pending: PendingSave


def prepare(
    stage: TrainingStage,
    start: str | Path | LoadedModel,
    folder: StageFolder,
    *,
    seed: int,
    progress: Progress,
    examples: Examples | Sequence[Task] | None = None,
    resumed: dict[str, Any] | None = None,
    proof_only: bool = False,
    rewards: Sequence[RewardFunction] = (),
) -> Prepared:
    """Everything before step 1.

    Args:
        start: the model the stage starts from, by name, by folder, or loaded.
        examples: rows that are there already, in place of `stage.data`.
        resumed: stage.json of the attempt that this one goes on from; its micro-batch size is kept, since another one
            rounds differently.
        proof_only: nothing will be trained, so no reference is computed beyond what the checks ask.
        rewards: functions, for a stage that samples; beside those that it names.

    Raises:
        DataError, EncodingError: before a model is loaded.
        PreflightError: a check failed and `preflight.on_failure` is `stop`; preflight.json is written all the same.
    """
    if isinstance(stage, SamplingStage):
        with progress.doing(f"{folder.name}: reading the tasks, loading the model and the engine"):
            return prepare_online(stage, start, folder, seed, progress, examples, resumed, proof_only, rewards)
    assert isinstance(stage, RowStage)
    assert examples is None or isinstance(examples, Examples)  # a list of tasks is for stages that sample
    objective = objective_of(stage)
    device = device_of(stage.compute.device)
    settled = settle(stage, start, device)
    for note in settled.notes:
        progress.say(f"{folder.name}: {note}")
    with progress.doing(f"{folder.name}: reading the rows"):
        inputs = load_inputs(stage, objective, settled, folder, seed, progress, examples)
    order = RowOrder.plan(len(inputs.rows), stage.rows_per_step, epochs=stage.epochs, steps=stage.steps, seed=seed)
    require_two_rows(objective, order, len(inputs.held_out))
    _check_adapter(stage, start, order.steps)
    program = program_bytes(device, start.model if isinstance(start, LoadedModel) else None)
    with progress.doing(f"{folder.name}: loading the model"):
        if isinstance(stage, Reward):
            assert isinstance(inputs.encoder, RewardEncoder)
            loaded = reward.load_start(stage, start, inputs.encoder, device, seed, progress)
        else:
            loaded = load_policy(stage, start, device, seed, progress)
    noisy = adapter_dropout(loaded.model) > 0
    imitates = objective.unit == "tokens"
    if noisy and not imitates:
        progress.say(f"{folder.name}: adapter.dropout is off: with it, policy and reference would differ at step 0")
    model_class = partial(ScoreModel.of, rule=stage.rule) if isinstance(stage, Reward) else Policy
    policy: TreeModel = model_class(
        loaded.model,
        autocast=autocast_of(stage.compute.precision, device),
        dropout=noisy and imitates,
        activation_checkpointing=stage.compute.activation_checkpointing,
    )
    objective = balanced(objective, policy, stage)
    with progress.doing(f"{folder.name}: looking through the weights"):
        finite = prove_weights(stage, policy, folder)
        # Of the weights as they are now: a model from Python may have been trained since it was loaded.
        start_weights = weights_fingerprint(policy.model)
    identity = stage_fingerprint(stage, data=inputs.fingerprints, start_model=start_weights, seed=seed)
    with explained(fixed(policy), "the checks before step 1"):
        proven, budget = prove(stage, policy, objective, inputs, folder, resumed, progress, program)
    proven = proven.after(finite)
    stand(proven, stage, folder)
    start_reference: Any = None
    if objective.needs_reference and proof_only:
        start_reference = preflight.Itself(policy)
    elif objective.needs_reference:
        # Only now: the log-probs of all rows are the dear part, and the checks above are what may stop the stage.
        with explained(proven.memory, "the reference's log-probs"):
            others = mismatched_of_run(objective, order, inputs.rows, inputs.held_out, seed)
            start_reference = _reference(stage, policy, inputs, others, folder, budget, progress)
            identical = preflight.check_identity(policy, start_reference, objective, inputs.rows)
        proven = proven.with_check(identical)
        stand(proven, stage, folder)
    work = Work(
        stage=stage,
        algorithm=objective,
        policy=policy,
        reference=start_reference,
        rows=inputs.rows,
        held_out=inputs.held_out,
        decoder=inputs.encoder,
        tokens_per_microbatch=budget,
        memory=proven.memory,
        seed=seed,
        identity=identity,
        adapter=loaded.adapter,
    )
    kind = start_reference.kind if start_reference else None
    return Prepared(work, loaded, proven, inputs, start_weights, kind, settled.merge, run_date(folder))


def train(prepared: Prepared, folder: StageFolder, progress: Progress) -> Outcome:
    """Run the loop and begin the export; `outcome.pending.wait()` gives the model folder its name."""
    work, started = prepared.work, time.monotonic()
    categories = prepared.inputs.categories
    untrained = reward_evaluation.untrained_scores(work, categories) if isinstance(work.stage, Reward) else None
    loop = Loop(work, folder, progress)
    folder.write_stage(arithmetic=loop.arithmetic())
    progress.say(loop.arithmetic())
    steps = loop.run()
    tokenizer, encoder = prepared.loaded.tokenizer, prepared.inputs.encoder
    if isinstance(work.stage, Reward):
        reward_evaluation.write_evaluation(
            work, encoder, folder, untrained=untrained, steps=steps, progress=progress, categories=categories
        )
    if encoder.settings.template != "raw":  # served as it was trained, also under a template that the stage named
        tokenizer.chat_template = encoder.chat_template
    info = {"stage": folder.name, "method": work.stage.method, "identity": work.identity, "steps": steps}
    # Under `raw` the tokenizer may have a template that nobody trained it with: the record says what to do.
    speech = Speech.of(encoder)
    if work.stage.MAKES_POLICY:
        prepared.loaded.speech = speech  # the model in memory is another one now, and a next stage may start from it
    settings = ExportSettings(prepared.merge, speech.stop_ids, speech, prepared.inputs.prompts, info=info)
    with progress.phase(f"{folder.name}: saving and reading back", unit="files"):
        if isinstance(work.stage, Reward):
            assert isinstance(encoder, RewardEncoder)
            pending = reward.begin_export(work.stage, work, prepared.loaded, encoder, folder.model, settings)
        else:
            pending = begin_save(work.policy.model, tokenizer, folder.model, settings, base=prepared.loaded.base)
    return Outcome(work.policy, steps, time.monotonic() - started, pending)


def run_stage(
    stage: TrainingStage,
    start: str | Path | LoadedModel,
    folder: StageFolder,
    *,
    seed: int,
    progress: Progress,
    identity: str | None = None,
    examples: Examples | Sequence[Task] | None = None,
    evaluate: Callable[[Any, Any], None] | None = None,
    rewards: Sequence[RewardFunction] = (),
) -> Outcome:
    """A whole stage, with its records: prepare, train, ask the suites while the export is read back, save.

    Args:
        identity: what the stage depends on, as far as it is known without loading; kept in stage.json.
        evaluate: called with the trained model and its tokenizer.
    """
    record = folder.stage() if folder.exists else {}
    if checkpoint.latest(folder.checkpoints) is None:
        folder.forget_logs()
        record = {}
    folder.write_config(stage_yaml(stage))
    folder.write_stage(
        name=folder.name,
        method=stage.method,
        status="running",
        started=record.get("started") or now(),
        quick_identity=identity,
        environment=environment(),
        output=None,
        error=None,
        warnings=[],
    )
    with Heartbeat(folder.path, progress, stall_after=stage.log.stall_after):
        prepared = prepare(
            stage, start, folder, seed=seed, progress=progress, examples=examples, resumed=record, rewards=rewards
        )
        show(prepared.preflight, folder.name, progress)
        folder.write_stage(**_facts(prepared))
        outcome = train(prepared, folder, progress)
    warnings = conclude(folder) if isinstance(stage, SamplingStage) else []
    try:
        if evaluate is not None:
            evaluate(outcome.policy.model, prepared.loaded.tokenizer)
        with progress.doing(f"{folder.name}: reading the saved model back"):
            saved = outcome.pending.wait()
    except BaseException:
        outcome.pending.discard()
        raise
    progress.say(str(saved))
    for warning in warnings:
        progress.say(f"WARNING: {folder.name}: {warning}")
    folder.write_stage(output="model", steps=outcome.steps)
    return outcome


def _facts(prepared: Prepared) -> dict[str, Any]:
    """What stage.json says once the stage has passed its preflight."""
    work, source = prepared.work, prepared.loaded.source
    gradient = next(check for check in prepared.preflight.checks if check.name == "gradient")
    return {
        "fingerprint": work.identity,
        "date": prepared.date,
        "environment": environment(work.policy.device),
        "start_model": {
            "name": source.name,
            "path": str(source.folder),
            "fingerprint": prepared.start_weights,
        },
        "data": prepared.inputs.counts,
        "parameters": {key: gradient.evidence[key] for key in ("total", "trainable")},
        "logprobs": work.policy.path,
        "reference": prepared.reference_kind,
        "tokens_per_microbatch": work.tokens_per_microbatch,
    }


# ---------------------------------------------------------------- model


def _check_adapter(stage: TrainingStage, start: str | Path | LoadedModel, steps: int) -> None:
    """What an adapter asks of the number of steps, known once the rows are."""
    adapter = start.adapter if isinstance(start, LoadedModel) and stage.MAKES_POLICY else stage.adapter
    if isinstance(adapter, AdaLoRA):
        rank_schedule(adapter, steps)


def _reference(
    stage: TrainingStage,
    policy: TreeModel,
    inputs: Inputs,
    others: Sequence[Sequence[TokenTree]],
    folder: StageFolder,
    budget: int,
    progress: Progress,
) -> Any:
    assert isinstance(stage, PreferenceStage)  # no other stage has an objective that needs a reference
    kind = stage.reference_kind or "auto"
    with progress.phase(f"{folder.name}: reference log-probs", unit="tokens") as phase:

        def show(done: int, of: int) -> None:
            phase.total = of
            phase.advance(done - phase.done, tokens=int(done - phase.done))

        assert isinstance(policy, Policy)
        return reference(
            kind,  # type: ignore[arg-type]
            policy,
            trees=_Joined(inputs.rows, inputs.held_out, *others),
            store=folder.path / "reference",
            tokens_per_microbatch=budget,
            passes=stage.epochs or (stage.steps or 0) * stage.rows_per_step / len(inputs.rows),
            progress=show,
        )


class _Joined(Sequence[TokenTree]):
    """Rows and held-out rows as one sequence; nothing is copied."""

    def __init__(self, *parts: Sequence[TokenTree]):
        self._parts = parts

    def __len__(self) -> int:
        return sum(len(part) for part in self._parts)

    def __getitem__(self, index: Any) -> Any:
        for part in self._parts:
            if index < len(part):
                return part[index]
            index -= len(part)
        raise IndexError(index)
