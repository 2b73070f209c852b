"""Adapters as folders: what `adapter_config.json` says before anything is loaded, and loading one onto its base."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from peft.utils import get_peft_model_state_dict
from safetensors import SafetensorError, safe_open

from posttrain.errors import ModelError
from posttrain.models.adapters.bottleneck import register
from posttrain.models.adapters.kinds import KINDS, type_merges
from posttrain.models.folders.fingerprint import weights_fingerprint
from posttrain.models.folders.quiet import quiet

if TYPE_CHECKING:
    from posttrain.models.folders.loading import ModelSource

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
GET_AGAIN = "copy or download the folder again"


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """AdapterFacts(kind="lora", base="HuggingFaceTB/SmolLM2-135M", merges=True, virtual_tokens=0, continues=True)"""

    kind: str
    base: str | None
    """What the config calls the model under it."""
    merges: bool
    virtual_tokens: int
    continues: bool
    """Whether training can go on from the folder: what a network made while training is saved without the network."""


def adapter_facts(folder: Path) -> AdapterFacts:
    """What an adapter's folder says of itself.

    Raises:
        ModelError: its config cannot be read.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        peft_type = str(config["peft_type"])
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ModelError("the adapter's config cannot be read", where=path, found=error, remedy=GET_AGAIN) from error
    return AdapterFacts(
        kind=KINDS.get(peft_type, peft_type),
        base=config.get("base_model_name_or_path"),
        merges=type_merges(peft_type),
        virtual_tokens=int(config.get("num_virtual_tokens") or 0),
        continues=peft_type != "P_TUNING" and not config.get("prefix_projection"),
    )


def load_adapter(model: Any, base: ModelSource, source: ModelSource) -> PeftModel:
    """`model` with the folder's adapter on it, ready to train on where it can be (`AdapterFacts.continues`).

    Raises:
        ModelError: the base has other weights than those it was trained on, or the files disagree.
    """
    check_base(weights_fingerprint(model), str(model.dtype), base, source)
    facts = adapter_facts(source.folder)
    register()
    _check_torn(source.folder)
    try:
        with quiet(), torch.random.fork_rng(devices=[]):  # `peft` draws what it then overwrites
            # `peft` loads virtual tokens for use only; they are set to train below.
            wrapped = PeftModel.from_pretrained(model, source.folder, is_trainable=not facts.virtual_tokens)
    except Exception as error:
        raise ModelError(
            "the adapter does not fit its base model",
            where=source.folder,
            found=f"{type(error).__name__}: {error}",
            remedy=f"check that {base.folder} is the model it was trained on",
        ) from error
    _check_keys(wrapped, source.folder)
    if facts.virtual_tokens and facts.continues:
        wrapped.active_peft_config.inference_mode = False
        wrapped.prompt_encoder[wrapped.active_adapter].embedding.weight.requires_grad_(True)
    return wrapped


def check_base(fingerprint: str, dtype: str, base: ModelSource, source: ModelSource) -> None:
    """Hold the weights under an adapter against those that its manifest remembers, where it remembers any.

    Raises:
        ModelError: they are others.
    """
    saved = (source.manifest or {}).get("base") or {}
    if saved.get("dtype") == dtype and saved["fingerprint"] != fingerprint:
        raise ModelError(
            "the adapter was trained on other base weights",
            where=source.folder,
            found=base.folder,
            expected=f"{saved.get('name')} with fingerprint {saved['fingerprint'][:12]}",
            remedy="put the base model back, or export the stage again with `merge: true`",
        )


def _check_torn(folder: Path) -> None:
    path = folder / WEIGHTS
    if not path.is_file():
        return
    try:
        with safe_open(path, "pt") as weights:
            weights.keys()
    except (SafetensorError, OSError) as error:
        raise ModelError("the weight file is torn", where=path, found=error, remedy=GET_AGAIN) from error


def _check_keys(model: PeftModel, folder: Path) -> None:
    """`peft` passes over weights that are missing or left over; both make another adapter than the one saved."""
    path = folder / WEIGHTS
    if not path.is_file():
        return
    with safe_open(path, "pt") as weights:
        saved = set(weights.keys())
    with quiet():
        wanted = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    embeddings = {key for key in saved - wanted if "embed" in key or "lm_head" in key}
    if wanted - saved or saved - wanted - embeddings:
        raise ModelError(
            "the adapter's file and its adapter_config.json disagree",
            where=path,
            found=f"missing: {_listing(wanted - saved) or 'none'}; left over: {_listing(saved - wanted) or 'none'}",
            remedy=GET_AGAIN,
        )


def _listing(keys: Iterable[str]) -> str:
    ordered = sorted(keys)
    return ", ".join(ordered[:5]) + (f" and {len(ordered) - 5} more" if len(ordered) > 5 else "")
