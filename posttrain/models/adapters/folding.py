"""Folding an adapter into the weights, without touching the model that trains and without breaking tied embeddings.

An export, a rollout engine's weights and a stage that starts from an adapter take the merged model from here; mixing
several adapters is `combine`.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn

from posttrain.models.adapters.quantised import dequantised, is_quantised
from posttrain.models.folders.quiet import quiet


def merged_copy(model: Any, dtype: torch.dtype | None = None) -> Any:
    """A plain `transformers` model on the CPU that computes what `model` computes; `model` stays as it is.

    Merged in the model's own dtype and cast to `dtype` afterwards; an adapter over quantised weights is merged into
    the full weights that they stand for.
    """
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    merged = merge_in_place(_on_dequantised_base(model) if is_quantised(plain) else cpu_copy(model))
    record_tying(merged)
    # Cast last: a delta of LoRA is often smaller than half a step of bf16, and would vanish if it were added there.
    if dtype is not None:
        cast_weights(merged, dtype)
    return merged


def merge_in_place(model: Any) -> Any:
    """The model with its adapter folded into its weights; a model without one as it is."""
    if not isinstance(model, PeftModel):
        return model
    untie_adapted_ends(model)
    with quiet():
        return model.merge_and_unload()


def _on_dequantised_base(model: Any) -> Any:
    """The adapter of a quantised model, over the dequantised weights."""
    plain = dequantised(model.get_base_model() if isinstance(model, PeftModel) else model)
    if not isinstance(model, PeftModel):
        return plain
    # Not `merge_and_unload` on the quantised layers: that rounds the sum to 4 bits again, and part of what was learnt.
    with quiet():
        adapted = get_peft_model(plain, copy.deepcopy(model.active_peft_config))
        set_peft_model_state_dict(adapted, get_peft_model_state_dict(model, save_embedding_layers=False))
    return adapted


def cast_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """What saving in `dtype` and loading again does: parameters are rounded, while buffers that no file holds (the
    frequencies of rotary positions) keep their precision. `model.to(dtype)` would round those too."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def cpu_copy(model: Any) -> Any:
    """A deep copy whose tensors lie on the CPU; nothing is copied on the device itself. Tied tensors stay tied."""
    # What deepcopy's memo holds counts as copied: one entry per tensor, so that tied names get the same copy.
    moved: dict[int, Any] = {}
    for parameter in model.parameters():
        moved[id(parameter)] = nn.Parameter(
            parameter.detach().to("cpu", copy=True), requires_grad=parameter.requires_grad
        )
    for buffer in model.buffers():
        moved[id(buffer)] = buffer.detach().to("cpu", copy=True)
    return copy.deepcopy(model, moved)


def record_tying(model: Any) -> None:
    """Make the config say whether the two ends of the model share their weights.

    With the flag on and two tensors, a reload overwrites one of them with the other (transformers#45127).
    """
    head = model.get_output_embeddings()
    # A reward model has no output projection, and its config may keep the flag.
    if head is not None and head.weight is not model.get_input_embeddings().weight:
        _set_tied(model.config, False)


def untie_adapted_ends(model: PeftModel) -> None:
    """Give the output projection weights of its own where an end of a tied pair is adapted.

    Merging adds to the weights in place: into a shared tensor, each end's change would reach the other end too.
    """
    causal_lm = model.get_base_model()
    ends = causal_lm.get_input_embeddings(), causal_lm.get_output_embeddings()
    if ends[1] is None or not any(isinstance(end, BaseTunerLayer) for end in ends):
        return
    embeddings, projection = (end.get_base_layer() if isinstance(end, BaseTunerLayer) else end for end in ends)
    if embeddings.weight is projection.weight:
        projection.weight = nn.Parameter(projection.weight.detach().clone(), requires_grad=False)
        _set_tied(causal_lm.config, False)


def _set_tied(config: Any, tied: bool) -> None:
    # In both, for a model with pictures keeps the language model's flag in its text config, and readers differ.
    config.tie_word_embeddings = tied
    config.get_text_config().tie_word_embeddings = tied
