"""What a stage starts from, by what its files say: resolved before a row is read and before a weight is loaded.

start = resolve_start(stage, "runs/mine/sft/model", device)      # refuses what would fail at the end
start.tokenizer, start.positions, start.notes
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoConfig

from posttrain.config.adapters import Bottleneck, Continue
from posttrain.config.stages import TrainingStage
from posttrain.data.speech import Speech
from posttrain.errors import ConfigError, ModelError
from posttrain.models.adapters.facts import AdapterFacts, adapter_facts
from posttrain.models.adapters.kinds import adapter_kind, merges, virtual_tokens
from posttrain.models.folders.gguf import read_gguf_tokenizer
from posttrain.models.folders.loading import LoadedModel, ModelSource, base_of, require_fitting, resolve
from posttrain.models.folders.new_tokens import with_new_tokens
from posttrain.models.folders.own_code import code_runs, remedy_of
from posttrain.models.folders.spoken import speech_of
from posttrain.models.folders.tokenizers import has_tokenizer, load_tokenizer
from posttrain.models.folders.weight_files import GET_AGAIN

CONTINUE = "write `adapter: {kind: continue}` to go on training it"


@dataclass(frozen=True, slots=True)
class Start:
    """Start(tokenizer, positions=8192, merge=True, notes=())"""

    tokenizer: Any
    positions: int | None
    """The longest row that fits: the model's positions but for virtual tokens; None where no limit is named."""
    merge: bool
    """Whether the stage's folder will hold whole weights."""
    notes: tuple[str, ...] = ()
    """What the user should know before training, a line each."""
    speech: Speech = field(default_factory=lambda: Speech(recorded=False))
    """How the start is spoken to, by its record or its files."""
    new_tokens: Mapping[int, str] = field(default_factory=dict)
    """The tokens that it does not have and gets, by their ids; `tokenizer` has them already."""


def resolve_start(stage: TrainingStage, start: str | Path | LoadedModel, device: torch.device) -> Start:
    """Decide what will be exported, and refuse what cannot work.

    Raises:
        ConfigError: the stage's adapter does not fit the start, or its export cannot be made.
        MissingExtraError: QLoRA without bitsandbytes.
    """
    if isinstance(start, LoadedModel):
        return _of_loaded(stage, start)
    source = resolve(start)
    facts = adapter_facts(source.folder) if source.layout == "adapter" else None
    if facts is not None and stage.OUTPUTS == "reward" and not facts.merges:
        raise _unmergeable_start(stage, facts.kind)
    if facts is not None and stage.adapter is None and stage.OUTPUTS == "policy":
        raise ConfigError(
            "the start is an adapter, and the stage does not say what becomes of it",
            where=f"{stage.name}: adapter",
            found=f"{source.folder} holds an adapter of kind {facts.kind}",
            remedy=f"{CONTINUE}, `adapter: {{kind: lora}}` to fold it in and train a new one, or start from a whole "
            "model (`posttrain merge` makes one) to train all weights",
        )
    # Before the rows: QLoRA without its package or card would be refused after minutes of encoding.
    require_fitting(source, stage.adapter, device)
    merge = _merge(stage, facts)
    if not merge and (stage.adapter is not None or facts is not None):
        _require_base(stage, source, facts)
    # Virtual tokens take positions from every row, so the longest row is known only with the adapter.
    tokenizer, positions = _of_files(source)
    new = with_new_tokens(tokenizer, stage.tokens, f"{stage.name}: tokens")
    kind, taken = None, 0
    if stage.adapter is not None:
        kind, taken = stage.adapter.kind, stage.adapter.virtual_tokens
    if facts is not None and isinstance(stage.adapter, Continue):
        kind, taken = facts.kind, facts.virtual_tokens
    left = _left(positions, taken, stage)
    notes = tuple(_notes(stage, kind, merge))
    return Start(new.tokenizer, left, merge, notes, speech_of(source), new.texts)


def _of_loaded(stage: TrainingStage, start: LoadedModel) -> Start:
    model = start.model
    kind = adapter_kind(model)
    lacking = with_new_tokens(start.tokenizer, stage.tokens, f"{stage.name}: tokens").texts
    if lacking:
        raise ConfigError(
            "a model that is loaded already gets no tokens more",
            where=f"{stage.name}: tokens",
            found=f"a model without {', '.join(lacking.values())}",
            remedy=f"load it with them, `pt.load(name, tokens={list(lacking.values())})`, or give train() its name",
        )
    if stage.OUTPUTS == "reward":
        return _of_loaded_under_a_head(stage, start, kind)
    if isinstance(stage.adapter, Continue) and kind is None:
        raise ConfigError(
            "there is no adapter to go on with",
            where=f"{stage.name}: adapter",
            found="a loaded model without an adapter",
            remedy="load it with one, `load(name, adapter=LoRA())`, or leave `adapter` out to train all weights",
        )
    if stage.export.merge is True and not merges(model):
        raise _unmergeable(stage, str(kind))
    merge = merges(model) if stage.export.merge == "auto" else stage.export.merge
    if not merge and isinstance(model, PeftModel) and start.base.layout != "model":
        raise _no_base(stage, start.base)
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    left = _left(positions, virtual_tokens(model), stage)
    return Start(start.tokenizer, left, merge, tuple(_notes(stage, kind, merge)), start.speech, _added(start))


def _added(start: LoadedModel) -> dict[int, str]:
    """The tokens that were added as the model was loaded."""
    return {index: start.tokenizer.convert_ids_to_tokens(index) for index in start.new_rows}


def _of_loaded_under_a_head(stage: TrainingStage, start: LoadedModel, kind: str | None) -> Start:
    """A reward model of a loaded policy: of a copy, into whose weights the policy's adapter is folded."""
    if not merges(start.model):
        raise _unmergeable_start(stage, str(kind))
    # The copy's weights are folded, so an adapter exported alone would name a base that has none of them.
    merge = not stage.exports_adapter
    if not merge and (kind is not None or start.base.layout != "model"):
        raise _no_base(stage, start.base)
    positions = getattr(start.model.config.get_text_config(), "max_position_embeddings", None)
    adapter = stage.adapter
    left = _left(positions, adapter.virtual_tokens if adapter is not None else 0, stage)
    notes = tuple(_notes(stage, adapter.kind if adapter else None, merge))
    return Start(start.tokenizer, left, merge, notes, start.speech, _added(start))


def _merge(stage: TrainingStage, facts: AdapterFacts | None) -> bool:
    """Whether whole weights are exported."""
    if not isinstance(stage.adapter, Continue) or facts is None:
        return not stage.exports_adapter
    if stage.export.merge is True and not facts.merges:
        raise _unmergeable(stage, facts.kind)
    return facts.merges if stage.export.merge == "auto" else stage.export.merge


def _require_base(stage: TrainingStage, source: ModelSource, facts: AdapterFacts | None) -> None:
    """An adapter alone names the model under it, and others must be able to load that one."""
    if facts is not None and not isinstance(stage.adapter, Continue):
        raise ConfigError(
            "the start's adapter is folded into the weights, which then lie in no folder that an adapter could name",
            where=f"{stage.name}: export.merge",
            found=f"{source.folder}, and an adapter to be exported alone",
            remedy=f"{CONTINUE}, make a whole model of the start with `posttrain merge`, or export merged",
        )
    base = base_of(source) if facts is not None else source
    if base.layout != "model":
        raise _no_base(stage, base)


def _no_base(stage: TrainingStage, base: ModelSource) -> ConfigError:
    return ConfigError(
        "an adapter alone needs a base that others can load",
        where=f"{stage.name}: export.merge",
        found=f"{base.folder}: a base of kind {base.layout}",
        expected="a folder with a whole model, a catalogue name or a hub id",
        remedy="remove `export.merge` to export merged weights, or save the base as a whole model first",
    )


def _unmergeable(stage: TrainingStage, kind: str) -> ConfigError:
    return ConfigError(
        f"an adapter of kind {kind} cannot be folded into the weights",
        where=f"{stage.name}: export.merge",
        found="merge: true",
        remedy="remove `export.merge` to export the adapter alone, or train an adapter of kind lora",
    )


def _unmergeable_start(stage: TrainingStage, kind: str) -> ConfigError:
    return ConfigError(
        f"the start's adapter, of kind {kind}, cannot be folded into the weights under a reward model's head",
        where=stage.name,
        remedy="start the reward model from the base of that adapter",
    )


def _notes(stage: TrainingStage, kind: str | None, merge: bool) -> Iterator[str]:
    if kind is None or merge:
        return
    if stage.export.merge == "auto":
        yield f"an adapter of kind {kind} cannot be folded into the weights: the folder will hold the adapter alone"
    if kind == Bottleneck.model_fields["kind"].default:
        yield "`peft` has no bottleneck adapters: the folder loads with posttrain, and not with peft or vLLM"


# ---------------------------------------------------------------- from files alone


def _of_files(source: ModelSource) -> tuple[Any, int | None]:
    """The tokenizer, and the longest sequence that the model was made for; no weight is read."""
    if source.layout == "gguf":
        return read_gguf_tokenizer(source.folder / str(source.gguf_file))
    base = base_of(source) if source.layout == "adapter" else source
    if base.layout == "gguf":
        tokenizer, positions = _of_files(base)
    else:
        tokenizer = None
        positions = getattr(_config(base.folder), "max_position_embeddings", None)
    if tokenizer is None or has_tokenizer(source.folder):
        tokenizer = load_tokenizer(source.folder if has_tokenizer(source.folder) else base.folder)
    return tokenizer, positions


def _config(folder: Path) -> Any:
    path = folder / "config.json"
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            "the model's config cannot be read", where=path, found=error, expected="JSON", remedy=GET_AGAIN
        ) from error
    model_code = code_runs(folder)
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=model_code).get_text_config()
    except Exception as error:  # transformers raises whatever its parts raise
        kind = written.get("model_type") if isinstance(written, dict) else None
        raise ModelError(
            "transformers does not take the model's config",
            where=path,
            found=f"model_type: {kind}; {type(error).__name__}: {error}",
            expected="an architecture that this version of transformers knows",
            # Another copy of the same file would be refused as this one is.
            remedy=remedy_of(
                folder, "install a newer transformers, or use a model of another architecture" if kind else GET_AGAIN
            ),
        ) from error


def _left(positions: int | None, virtual: int, stage: TrainingStage) -> int | None:
    if positions is None:
        return None
    if virtual >= positions - 1:
        raise ConfigError(
            "the virtual tokens leave no room for a row",
            where=f"{stage.name}: adapter.tokens",
            found=f"{virtual:,} virtual tokens of {positions:,} positions",
            remedy="lower adapter.tokens",
        )
    return positions - virtual
