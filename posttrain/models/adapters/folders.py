"""An adapter's folder onto its base: the base held against the manifest, the files against their own config.

`facts` reads the config first and `loading` calls this with the model of `base_of`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.utils import get_peft_model_state_dict

from posttrain.errors import ModelError
from posttrain.models.adapters.bottleneck import register
from posttrain.models.adapters.facts import adapter_facts
from posttrain.models.folders.fingerprint import weights_fingerprint
from posttrain.models.folders.new_tokens import ADAPTER_WEIGHTS, add_rows, for_adapter, trained_rows
from posttrain.models.folders.quiet import quiet
from posttrain.models.folders.source import ModelSource
from posttrain.models.folders.tokenizers import has_tokenizer, load_tokenizer
from posttrain.models.folders.weight_files import GET_AGAIN, abbreviated, weight_keys


def load_adapter(
    model: Any,
    base: ModelSource,
    source: ModelSource,
    *,
    tokenizer: Any = None,
    name: str = "default",
    fingerprint: str | None = None,
) -> PeftModel:
    """`model` with the folder's adapter on it, ready to train on where it can be (`AdapterFacts.continues`).

    Args:
        model: the base, or the base with other adapters of the same kind on it.
        tokenizer: the base's. Where the adapter was trained with tokens that the base does not have, the base gets
            their rows first, in place; None is a base that others use too, and that gets none.
        name: what the adapter is called on the model.
        fingerprint: of the base's weights, where it is known: to work it out reads them all.

    Raises:
        ModelError: the base has other weights than those it was trained on, or the files disagree; or the adapter has
            tokens that a shared base lacks.
    """
    _fit_vocabulary(model, tokenizer, source)
    check_base(fingerprint or weights_fingerprint(model), str(model.dtype), base, source)
    facts = adapter_facts(source.folder)
    register()
    # Read first, for `peft` answers a torn file with a stack trace. Older folders may hold a .bin, which has no header.
    path = source.folder / ADAPTER_WEIGHTS
    saved = weight_keys(path) if path.is_file() else None
    try:
        with quiet(), torch.random.fork_rng(devices=[]):  # `peft` draws what it then overwrites
            # `peft` loads virtual tokens for use only; they are set to train below.
            trains = not facts.virtual_tokens
            if isinstance(model, PeftModel):
                model.load_adapter(source.folder, name, is_trainable=trains)
                wrapped = model
            else:
                wrapped = PeftModel.from_pretrained(model, source.folder, adapter_name=name, is_trainable=trains)
    except Exception as error:
        raise misfit(source, base, error) from error
    if saved is not None:
        _check_keys(wrapped, saved, path, name)
    if facts.virtual_tokens and facts.continues:
        wrapped.peft_config[name].inference_mode = False
        wrapped.prompt_encoder[name].embedding.weight.requires_grad_(True)
    return wrapped


def _fit_vocabulary(model: Any, tokenizer: Any, source: ModelSource) -> None:
    """The rows that an adapter with tokens of its own was trained over. `peft` fits the file to a base of its size
    only, and its own loading by name (`AutoPeftModel`) resizes to the tokenizer's length alone."""
    if tokenizer is None:
        if trained := trained_rows(source):
            raise ModelError(
                "the adapter was trained with tokens of its own, which a base that is shared does not have",
                where=source.folder,
                found=f"{len(trained)} trained rows of the vocabulary",
                remedy="serve the adapter's folder by itself, or merge it first: `posttrain merge FOLDER OUT`",
            )
        return
    own = load_tokenizer(source.folder) if has_tokenizer(source.folder) else tokenizer
    needed = for_adapter(model, tokenizer, own, source)
    if needed is not None:
        new, rows = needed
        add_rows(model, new, rows=rows)


def misfit(adapter: ModelSource, base: ModelSource, error: Exception) -> ModelError:
    """What `peft` said when it put an adapter on a base, as the error that names both."""
    return ModelError(
        "the adapter does not fit its base model",
        where=adapter.folder,
        found=f"{type(error).__name__}: {error}",
        remedy=f"check that {base.folder} is the model it was trained on",
    )


def check_base(fingerprint: str, dtype: str, base: ModelSource, source: ModelSource) -> None:
    """Hold the weights under an adapter against those that its manifest remembers, where it remembers any.

    Raises:
        ModelError: they are others.
    """
    saved = (source.manifest or {}).get("base") or {}
    # A hash of bf16 weights says nothing about the same model in fp32: only like dtypes are compared.
    if saved.get("dtype") == dtype and saved["fingerprint"] != fingerprint:
        raise ModelError(
            "the adapter was trained on other base weights",
            where=source.folder,
            found=base.folder,
            expected=f"{saved.get('name')} with fingerprint {saved['fingerprint'][:12]}",
            remedy="put the base model back, or export the stage again with `merge: true`",
        )


def _check_keys(model: PeftModel, saved: set[str], path: Path, name: str) -> None:
    """`peft` passes over weights that are missing or unexpected; both make another adapter than the one saved."""
    with quiet():
        wanted = set(get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False))
    # Other trainers save the embeddings too, in case they were resized: extra keys, and the same adapter.
    embeddings = {key for key in saved - wanted if "embed" in key or "lm_head" in key}
    missing, unexpected = wanted - saved, saved - wanted
    if missing or unexpected - embeddings:
        raise ModelError(
            "the adapter's file and its adapter_config.json disagree",
            where=path,
            found=f"missing: {abbreviated(missing) or 'none'}; left over: {abbreviated(unexpected) or 'none'}",
            remedy=GET_AGAIN,
        )
