"""One training stage: rows and a start model in, a proven model folder out.

prepared = prepare(stage, start, folder, seed=0, progress=progress)    # reads, encodes, loads, proves
outcome = train(prepared, folder, progress)                           # the loop, then the export
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from posttrain.config import PreferenceStage, TrainingStage, stage_fingerprint, stage_yaml
from posttrain.config.settings import LoRA as LoRASettings
from posttrain.data.read import Examples
from posttrain.diagnostics.progress import Progress
from posttrain.diagnostics.run_store import StageFolder
from posttrain.models.adapters import LoRA
from posttrain.models.export import ExportSettings, PendingSave, begin_save
from posttrain.models.fingerprint import weights_fingerprint
from posttrain.models.loading import LoadedModel, load
from posttrain.models.logprobs import Policy
from posttrain.models.reference import LiveReference, reference
from posttrain.training import checkpoint, preflight
from posttrain.training.algorithms import Algorithm, algorithm
from posttrain.training.inputs import Inputs, load_inputs
from posttrain.training.loop import Loop, Work
from posttrain.training.memory import activation_bytes_per_token, fitting_microbatch, plan
from posttrain.training.order import stream_seed
from posttrain.training.records import environment, now
from posttrain.types import TokenTree


@dataclass(frozen=True, slots=True)
class Prepared:
    """A stage that has passed its preflight."""

    work: Work
    loaded: LoadedModel
    preflight: preflight.Preflight
    inputs: Inputs
    start_weights: str
    """Fingerprint of the weights before step 1."""
    reference_kind: str | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """A trained stage: the model in memory, and the folder on its way to its name."""

    policy: Policy
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
    examples: Examples | None = None,
    resumed: dict[str, Any] | None = None,
    proof_only: bool = False,
) -> Prepared:
    """Everything before step 1.

    Args:
        start: the model the stage starts from, by name, by folder, or loaded.
        examples: rows that are there already, in place of `stage.data`.
        resumed: stage.json of the attempt that this one goes on from; its micro-batch size is kept, since another one
            rounds differently.
        proof_only: nothing will be trained, so no reference is computed beyond what the checks ask.

    Raises:
        DataError, EncodingError: before a model is loaded.
        PreflightError: a check failed and `preflight.on_failure` is `stop`; preflight.json is written all the same.
    """
    objective = _objective(stage)
    inputs = load_inputs(stage, objective, start, folder, seed, progress, examples)
    loaded = _load(stage, start, seed, progress)
    device = _device(stage.compute.device)
    loaded.model.to(device)
    noisy = stage.adapter is not None and stage.adapter.dropout > 0
    if noisy and objective.name != "sft":
        progress.say(f"{folder.name}: adapter.dropout is off: with it, policy and reference would differ at step 0")
    policy = Policy(
        loaded.model,
        autocast=_autocast(stage.compute.precision, device),
        dropout=noisy and objective.name == "sft",
        activation_checkpointing=stage.compute.activation_checkpointing,
    )
    # Of the weights as they are now: a model from Python may have been trained since it was loaded.
    start_weights = weights_fingerprint(policy.model)
    identity = stage_fingerprint(stage, data=inputs.fingerprints, start_model=start_weights, seed=seed)
    with progress.phase(f"{folder.name}: preflight", unit="checks") as phase:
        checks = [*_data_checks(stage, inputs), preflight.choose_path(policy, inputs.rows, stage.compute.logprobs)]
        phase.advance(len(checks))
        checks.append(preflight.check_leak(policy, inputs.rows))
        per_token = activation_bytes_per_token(policy, preflight.probes(inputs.rows)[0])
    live = isinstance(stage, PreferenceStage) and stage.reference_kind == "live"
    budget = _budget(stage, policy, inputs, per_token, live, resumed)
    if proof_only and objective.needs_reference:
        start_reference: Any = LiveReference(policy)
    else:
        start_reference = _reference(stage, objective, policy, inputs, folder, budget, progress)
    memory = plan(policy, tokens_per_microbatch=budget, activation_bytes_per_token=per_token, live_reference=live)
    if start_reference is not None:
        checks.append(preflight.check_identity(policy, start_reference, objective, inputs.rows))
    checks += [
        preflight.check_gradient(policy, start_reference, objective, inputs.rows),
        preflight.check_memory(memory),
    ]
    proven = preflight.Preflight(
        tuple(checks),
        preflight.decoded_rows(_first(inputs.rows), inputs.encoder),
        memory,
    )
    folder.write_preflight(proven.record())
    if stage.preflight.on_failure == "stop":
        proven.require()
    work = Work(
        stage=stage,
        algorithm=objective,
        policy=policy,
        reference=start_reference,
        rows=inputs.rows,
        held_out=inputs.held_out,
        decoder=inputs.encoder,
        tokens_per_microbatch=budget,
        memory=memory,
        seed=seed,
        identity=identity,
    )
    kind = start_reference.kind if start_reference else None
    return Prepared(work, loaded, proven, inputs, start_weights, kind)


def train(prepared: Prepared, folder: StageFolder, progress: Progress) -> Outcome:
    """Run the loop and begin the export; `outcome.pending.wait()` gives the model folder its name."""
    work, started = prepared.work, time.monotonic()
    loop = Loop(work, folder, progress)
    folder.write_stage(arithmetic=loop.arithmetic())
    progress.say(loop.arithmetic())
    steps = loop.run()
    tokenizer, encoder = prepared.loaded.tokenizer, prepared.inputs.encoder
    if encoder.settings.template != "raw":  # served as it was trained, also under a template that the stage named
        tokenizer.chat_template = encoder.chat_template
    with progress.phase(f"{folder.name}: saving and reading back", unit="files"):
        pending = begin_save(
            work.policy.model,
            tokenizer,
            folder.model,
            ExportSettings(
                merge=work.stage.export.merge,
                stop_ids=tuple(sorted(encoder.stop_ids)),
                info={
                    "stage": folder.name,
                    "method": work.stage.method,
                    "identity": work.identity,
                    "steps": steps,
                },
            ),
            base=prepared.loaded.base,
        )
    return Outcome(work.policy, steps, time.monotonic() - started, pending)


def run_stage(
    stage: TrainingStage,
    start: str | Path | LoadedModel,
    folder: StageFolder,
    *,
    seed: int,
    progress: Progress,
    identity: str | None = None,
    examples: Examples | None = None,
    evaluate: Callable[[Any, Any], None] | None = None,
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
    )
    prepared = prepare(stage, start, folder, seed=seed, progress=progress, examples=examples, resumed=record)
    _show(prepared.preflight, folder.name, progress)
    folder.write_stage(**_facts(prepared))
    outcome = train(prepared, folder, progress)
    try:
        if evaluate is not None:
            evaluate(outcome.policy.model, prepared.loaded.tokenizer)
        saved = outcome.pending.wait()
    except BaseException:
        outcome.pending.discard()
        raise
    progress.say(str(saved))
    folder.write_stage(output="model", steps=outcome.steps)
    return outcome


def _facts(prepared: Prepared) -> dict[str, Any]:
    """What stage.json says once the stage has passed its preflight."""
    work, source = prepared.work, prepared.loaded.source
    gradient = next(check for check in prepared.preflight.checks if check.name == "gradient")
    return {
        "fingerprint": work.identity,
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


def _show(proven: preflight.Preflight, stage: str, progress: Progress) -> None:
    marks = {"pass": "ok  ", "warn": "warn", "fail": "FAIL"}
    for check in proven.checks:
        progress.say(f"{stage}: {marks[check.status]} {check.title}: {check.detail}")
        if check.status != "pass" and check.remedy:
            progress.say(f"{stage}:      {check.remedy}")


def _data_checks(stage: TrainingStage, inputs: Inputs) -> list[preflight.Check]:
    first = _first(inputs.rows)
    encoding = stage.encoding  # type: ignore[attr-defined]
    counts = inputs.counts
    return [
        preflight.check_data(
            counts["kept"], counts["dropped"], counts["truncated"], counts["tokens"], counts["trained_tokens"]
        ),
        preflight.check_stop_token(first, inputs.encoder.stop_ids, wanted=encoding.stop_token == "train"),
        preflight.check_bos(first, inputs.encoder.tokens.bos_id),
    ]


def _first(rows: Sequence[TokenTree]) -> list[TokenTree]:
    return [rows[index] for index in range(min(preflight.SEARCHED_TREES, len(rows)))]


# ---------------------------------------------------------------- model


def _load(stage: TrainingStage, start: str | Path | LoadedModel, seed: int, progress: Progress) -> LoadedModel:
    if isinstance(start, LoadedModel):
        return start
    adapter = None if stage.adapter is None else adapter_of(stage.adapter)
    loaded = load(start, adapter=adapter, seed=stream_seed(seed, "adapter"), say=progress.say)
    for notice in loaded.notices:
        progress.say(notice)
    return loaded


def adapter_of(settings: LoRASettings) -> LoRA:
    """The recipe's adapter as the models layer takes it."""
    return LoRA(**settings.model_dump(exclude={"kind"}))


def _reference(
    stage: TrainingStage,
    objective: Algorithm,
    policy: Policy,
    inputs: Inputs,
    folder: StageFolder,
    budget: int,
    progress: Progress,
) -> Any:
    if not objective.needs_reference or not isinstance(stage, PreferenceStage):
        return None
    kind = stage.reference_kind or "auto"
    with progress.phase(f"{folder.name}: reference log-probs", unit="tokens") as phase:

        def show(done: int, of: int) -> None:
            phase.total = of
            phase.advance(done - phase.done, tokens=int(done - phase.done))

        return reference(
            kind,  # type: ignore[arg-type]
            policy,
            trees=_Joined(inputs.rows, inputs.held_out),
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


def _budget(
    stage: TrainingStage,
    policy: Policy,
    inputs: Inputs,
    per_token: float,
    live: bool,
    resumed: dict[str, Any] | None,
) -> int:
    asked = stage.compute.tokens_per_microbatch
    if asked != "auto":
        return int(asked)
    if resumed and resumed.get("tokens_per_microbatch"):
        return int(resumed["tokens_per_microbatch"])
    largest = max(tree.num_tokens for tree in _first(inputs.rows))
    return fitting_microbatch(policy, per_token, largest_tree=largest, live_reference=live)


def _objective(stage: TrainingStage) -> Algorithm:
    return algorithm(stage.method, stage.parameters if isinstance(stage, PreferenceStage) else None)


def _device(asked: str) -> torch.device:
    if asked != "auto":
        return torch.device(asked)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _autocast(precision: str, device: torch.device) -> torch.dtype | None:
    """bf16 where the hardware gains by it: CUDA cards that have it. CPUs without AMX or AVX512-BF16 lose."""
    if precision == "bf16":
        return torch.bfloat16
    gains = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.bfloat16 if precision == "auto" and gains else None
