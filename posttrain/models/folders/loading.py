"""A name, a folder or a hub id becomes a model and its tokenizer, checked before anything is computed with them.

    source (what lies there) -> require_fitting (can this adapter begin here) -> weights -> adapter -> `LoadedModel`

Every causal LM of every verb comes through `load`: what the checks below refuse would otherwise show as a bad metric
hours later. Reward models take the same way in `reward.folders`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from posttrain.arguments import checked_whole
from posttrain.config.adapters import AdapterSettings, Continue, LoRA, QLoRA
from posttrain.config.new_tokens import NewToken
from posttrain.data.speech import Speech
from posttrain.errors import ConfigError, ModelError
from posttrain.models.adapters.facts import AdapterFacts, adapter_facts
from posttrain.models.adapters.folders import load_adapter
from posttrain.models.adapters.folding import merge_in_place
from posttrain.models.adapters.kinds import add_adapter
from posttrain.models.adapters.quantised import quantisation, require_quantisation
from posttrain.models.devices import device_of, dtype_of
from posttrain.models.folders.fingerprint import weights_fingerprint
from posttrain.models.folders.gguf import read_gguf
from posttrain.models.folders.hub import Say
from posttrain.models.folders.new_tokens import add_rows, with_new_tokens
from posttrain.models.folders.own_code import code_runs, notice_of, remedy_of
from posttrain.models.folders.quiet import quiet
from posttrain.models.folders.source import ModelSource, base_of, require_name, resolve
from posttrain.models.folders.spoken import speech_of
from posttrain.models.folders.tokenizers import check_vocabulary, has_tokenizer, load_tokenizer
from posttrain.models.folders.weight_files import abbreviated
from posttrain.models.sharding.mesh import Sharding
from posttrain.models.sharding.slices import read_slices, require_plain_weights, weight_shards
from posttrain.models.sharding.wrap import park
from posttrain.models.tree.every_token import count_every_token


@dataclass(slots=True)
class LoadedModel:
    """A model that passed the checks: LoadedModel(model, tokenizer, source, fingerprint="9f2c...").

    A model trains in place; a stage that trained it writes how it is spoken to from then on (`speech`).
    """

    model: Any
    """A PreTrainedModel, or a PeftModel around one."""
    tokenizer: Any
    source: ModelSource
    fingerprint: str
    """`weights_fingerprint` of the model as it was loaded, a fresh adapter included."""
    base: ModelSource
    """Where the weights under the adapter come from; `source` itself if the folder holds a whole model."""
    notices: tuple[str, ...] = ()
    """What a user should know, a line each."""
    adapter: AdapterSettings | None = None
    """The fresh adapter that `load` put on it."""
    speech: Speech = field(default_factory=lambda: Speech(recorded=False))
    """How it is spoken to; `Encoder(loaded.tokenizer, loaded.speech.settings())` builds the ids of its training."""
    new_rows: tuple[int, ...] = ()
    """Ids of the tokens that were added as it was loaded."""
    sharding: Sharding | None = None
    """How its weights lie on the ranks: what `Policy(loaded.model, sharding=loaded.sharding)` needs to know."""


def load(
    name_or_path: str | Path,
    *,
    adapter: AdapterSettings | None = None,
    tokens: Sequence[NewToken] = (),
    dtype: str | torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    seed: int = 0,
    say: Say | None = None,
    sharding: Sharding | None = None,
) -> LoadedModel:
    """Load a causal LM by catalogue name, folder (a whole model, an adapter, GGUF), `.gguf` file, or hub id.

    A folder's `generation_config.json` is not carried into the model: every sampling field is the run's own. What it
    lists as the ids that end an answer is no sampling, but how the model is spoken to: it goes into `speech`.

    Args:
        adapter: puts a fresh adapter on the model. On an adapter folder, its own adapter is folded into the weights
            first; leave `adapter` out, or pass Continue(), to go on training that one.
        tokens: what the model gets beside its own tokens, where it lacks them; their rows begin as the mean of their
            pieces' (`new_tokens`), and train beside a fresh adapter.
        dtype: of the weights. fp32 is the default because small updates vanish in bf16 weights; compute in bf16 is
            a matter of autocast.
        seed: of the fresh adapter's random stream.
        say: receives a line for each long step (a download, a conversion).
        sharding: keep this rank's part of every weight alone, and read no more than it where that can be; every rank
            of the mesh has to load. What comes out trains in a `Policy`, and computes nowhere else.

    Raises:
        ModelError: nothing has this name, a file is torn or missing, weights and config disagree, or the tokenizer has
            ids that the model has no embedding for.
        ConfigError: the adapter cannot be put on this start.
        MissingExtraError: QLoRA without bitsandbytes.
    """
    require_name(name_or_path)
    if not (adapter is None or isinstance(adapter, AdapterSettings)):
        raise _no_settings(adapter)
    # All arguments before the name: it may stand for a download.
    device, dtype = device_of(device), dtype_of(dtype)
    checked_whole("seed", seed, below=2**64, example=0)
    source = resolve(name_or_path, say=say)
    require_fitting(source, adapter, device)

    base = source if source.layout != "adapter" else base_of(source, say)
    because = None
    if sharding is not None:
        _require_shardable(base, adapter)
        because = _read_whole_because(source, adapter, tokens)
    quantised = adapter if isinstance(adapter, QLoRA) else None
    slices = sharding if because is None else None
    model, tokenizer, notices = _load_whole(base, dtype, quantised, device, slices)
    if source.layout == "adapter":
        model, tokenizer = _with_its_adapter(model, tokenizer, base, source)
    # Folded in, not stacked: a reference is the model with its adapter off, and `peft` switches off all at once.
    fresh = None if isinstance(adapter, Continue) else adapter
    if fresh is not None and source.layout == "adapter":
        model, base = merge_in_place(model), source
        notices = [*notices, f"{source.name}: its adapter is folded into the weights, under the new one"]
    check_vocabulary(model, tokenizer, source.folder)
    new = with_new_tokens(tokenizer, tokens)
    if new.pieces:
        add_rows(model, new)
    notices, tokenizer = [*notices, *new.notes], new.tokenizer
    if fresh is not None:
        model = add_adapter(model, fresh, tokenizer=tokenizer, seed=seed, new_rows=tuple(new.pieces))
    count_every_token(model)  # here too: a loop of the user's own may train what was loaded without a policy
    # bitsandbytes placed the quantised weights while they were read, and 8-bit ones cannot be moved.
    model = (model if quantised else model.to(device)).eval()
    if sharding is not None:
        park(model, sharding)
    if because is not None:
        notices = [*notices, f"each process reads the whole model before it keeps its part: {because}"]
    if source.origin:
        notices = [f"{source.name}: {source.origin}", *notices]
    return LoadedModel(
        model,
        tokenizer,
        source,
        weights_fingerprint(model),
        base,
        tuple(notices),
        fresh,
        speech_of(source),
        tuple(new.pieces),
        sharding,
    )


def _with_its_adapter(model: Any, tokenizer: Any, base: ModelSource, source: ModelSource) -> tuple[Any, Any]:
    """A base with the adapter of a folder on it, and the tokenizer that the folder brings, if it brings one."""
    own = load_tokenizer(source.folder) if has_tokenizer(source.folder) else tokenizer
    # The base's goes in: beside it shows which tokens the adapter was trained with that the base has no rows for.
    return load_adapter(model, base, source, tokenizer=tokenizer), own


def with_tokens(loaded: LoadedModel, tokens: Sequence[NewToken]) -> LoadedModel:
    """A loaded model with these tokens beside its own, its weights in place.

    Raises:
        ConfigError: the model carries an adapter, or a token cannot be one.
    """
    new = with_new_tokens(loaded.tokenizer, tokens)
    if new.pieces:
        add_rows(loaded.model, new)
    return replace(
        loaded,
        tokenizer=new.tokenizer,
        fingerprint=weights_fingerprint(loaded.model) if new.pieces else loaded.fingerprint,
        notices=(*loaded.notices, *new.notes),
        new_rows=tuple(new.pieces),
    )


def _no_settings(adapter: object) -> ConfigError:
    return ConfigError(
        "`adapter` is no adapter's settings",
        found=f"{type(adapter).__name__}: {adapter!r}"[:80],
        expected="LoRA(...) or another of the kinds in docs/adapters.md, or None",
        remedy="write `adapter=pt.LoRA(rank=16)`",
    )


def require_fitting(source: ModelSource, adapter: AdapterSettings | None, device: torch.device) -> None:
    """Whether this adapter can begin from this start, by what the files say of themselves; nothing is loaded.

    Raises:
        ConfigError: there is no adapter to go on with, it cannot be gone on with or folded in, or QLoRA has no CUDA
            device or no plain weights to quantise.
        MissingExtraError: QLoRA without bitsandbytes.
    """
    facts = adapter_facts(source.folder) if source.layout == "adapter" else None
    if isinstance(adapter, QLoRA):
        # An adapter's folder is refused too: folding it into 4 bits would round most of what it learnt away.
        require_quantisation(device)
        if source.layout != "model":
            raise ConfigError(
                "only the weights of a whole model can be quantised",
                where=source.folder,
                found=f"a start of kind {source.layout}",
                remedy="write `kind: lora`, or start from a folder with a whole model (`posttrain merge` makes one)",
            )
    if isinstance(adapter, Continue):
        _require_continuing(source, facts)
    elif adapter is not None and facts is not None and not facts.merges:
        raise ConfigError(
            f"an adapter of kind {facts.kind} cannot be folded into the weights, so no other can be put over it",
            where=source.folder,
            remedy="write `adapter: {kind: continue}` to go on training it, or start from its base",
        )


def _require_continuing(source: ModelSource, facts: AdapterFacts | None) -> None:
    if facts is None:
        raise ConfigError(
            "there is no adapter to go on with",
            where="adapter.kind",
            found=f"{source.folder} holds a whole model",
            remedy="start from an adapter's folder, or choose a kind to begin with: `adapter: {kind: lora}`",
        )
    if not facts.continues:
        raise ConfigError(
            "the network that made these virtual tokens was not saved with them, so training cannot go on",
            where=source.folder,
            found=f"kind: {facts.kind}",
            remedy="begin anew from its base; `kind: prompt`, or `kind: prefix` without `projection`, can be gone on "
            "with",
        )


# ---------------------------------------------------------------- parts of models


def _require_shardable(base: ModelSource, adapter: AdapterSettings | None) -> None:
    """
    Raises:
        ConfigError: QLoRA quantises as it loads.
        ModelError: the weights are quantised already.
    """
    if isinstance(adapter, QLoRA):
        raise ConfigError(
            "quantised weights cannot be spread over ranks",
            where="adapter.kind",
            found="qlora with a mesh whose `shard` is above 1",
            expected="weights in fp32, bf16 or fp16",
            remedy="write `adapter: {kind: lora}`, or `compute: {mesh: {shard: 1, replicate: N}}`",
        )
    if base.layout == "model":
        require_plain_weights(base.folder)


def needs_whole_weights(adapter: AdapterSettings | None) -> str | None:
    """Why a fresh adapter cannot be put on a model in parts; None where it can."""
    if isinstance(adapter, LoRA) and adapter.dora:
        return "DoRA begins with the norms of the weights"
    if adapter is not None and adapter.VIRTUAL:
        return "virtual tokens are tried on the model as they are made"
    return None


def _read_whole_because(source: ModelSource, adapter: AdapterSettings | None, tokens: Sequence[NewToken]) -> str | None:
    """Why a model cannot be read in parts; None where it can."""
    if source.layout == "gguf":
        return "a GGUF file is dequantised as a whole"
    if source.layout == "adapter":
        return "an adapter's folder is held against its base's weights"
    if tokens:
        return "rows of new tokens are means of others"
    if (of_adapter := needs_whole_weights(adapter)) is not None:
        return of_adapter
    if code_runs(source.folder):
        return "the folder brings code of its own"
    if not weight_shards(source.folder):
        return "its weights are not in safetensors"
    return None


# ---------------------------------------------------------------- whole models


def _load_whole(
    source: ModelSource,
    dtype: torch.dtype,
    quantised: QLoRA | None,
    device: torch.device,
    sharding: Sharding | None = None,
) -> tuple[Any, Any, list[str]]:
    """The model of a whole folder or GGUF file, its tokenizer, and notices; parked where there is a `sharding`."""
    placement: dict[str, Any] = {}
    if quantised is not None:
        placement = {"quantization_config": quantisation(quantised), "device_map": {"": str(device)}}
    if source.layout == "gguf":
        path = source.folder / str(source.gguf_file)
        read = read_gguf(path, dtype)
        return _without_folder_defaults(read.model), read.tokenizer, [f"{path.name}: dequantised from {read.tensors}"]

    tokenizer = load_tokenizer(source.folder)
    model_code = code_runs(source.folder)
    try:
        with quiet():
            if sharding is not None:
                model, info = read_slices(source.folder, AutoModelForCausalLM, dtype, sharding, device)
            else:
                model, info = AutoModelForCausalLM.from_pretrained(
                    source.folder,
                    dtype=dtype,
                    local_files_only=True,
                    trust_remote_code=model_code,
                    output_loading_info=True,
                    **placement,
                )
    except Exception as error:
        raise ModelError(
            "transformers cannot load this folder as a causal language model",
            where=source.folder,
            found=f"{type(error).__name__}: {error}",
            remedy=remedy_of(source.folder, "check config.json against the weights"),
        ) from error
    notices = _check_keys(model, info["missing_keys"], info["unexpected_keys"], source.folder)
    return _without_folder_defaults(model.eval()), tokenizer, [*notice_of(source.folder), *notices]


def _without_folder_defaults(model: PreTrainedModel) -> PreTrainedModel:
    """Whoever calls `model.generate` gets what they pass, not the temperature that lay in the folder."""
    ids = model.generation_config
    model.generation_config = GenerationConfig(
        bos_token_id=ids.bos_token_id, eos_token_id=ids.eos_token_id, pad_token_id=ids.pad_token_id
    )
    return model


def _check_keys(model: nn.Module, missing: Iterable[str], unexpected: Iterable[str], folder: Path) -> list[str]:
    """Weights that were made up, or that belong to a layer and were dropped, are errors; other extras are notices."""
    # `transformers` only remarks on both, and `quiet` silences the remark.
    if missing:
        raise ModelError(
            "the folder lacks weights of this architecture, which would start at random",
            where=folder,
            found=abbreviated(missing),
            remedy="get the complete model; config.json may be of another one",
        )
    # The bias of a layer that config.json says has none: dropped, and every logit is a little off. A head that this
    # class has not (`score`, `value_head`) changes nothing.
    dropped = [key for key in unexpected if _belongs_to_a_layer(model, key)]
    if dropped:
        raise ModelError(
            "the folder holds weights that config.json leaves out, so the model would compute something else",
            where=folder,
            found=abbreviated(dropped),
            remedy="correct config.json (a bias flag, say), or merge the adapter whose weights these are",
        )
    return [f"not used by the language model: {abbreviated(unexpected)}"] if unexpected else []


def _belongs_to_a_layer(model: nn.Module, key: str) -> bool:
    """Whether the longest part of `key` that names a module names one without parts of its own, as q_proj.bias does."""
    module: nn.Module = model
    for part in key.split("."):
        children = dict(module.named_children())
        if part not in children:
            return module is not model and not children
        module = children[part]
    return True
