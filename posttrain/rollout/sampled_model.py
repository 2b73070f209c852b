"""What the native engine has to know of a model before it samples from it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft import PeftModel
from torch import nn

from posttrain.errors import ModelError

ATTENTION_LAYERS = frozenset({"full_attention", "sliding_attention"})
"""Layer types whose state is the keys and values of each token; others are recomputed."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode, and afterwards in the mode that it was in."""
    # Module by module: a frozen part may be in eval mode within a model that trains.
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def causal_lm(model: nn.Module) -> Any:
    return model.get_base_model() if isinstance(model, PeftModel) else model


def text_config(model: nn.Module) -> Any:
    """The decoder's config; refuses what cannot be sampled row by row."""
    config = causal_lm(model).config
    if config.is_encoder_decoder:
        raise ModelError(
            "the native engine samples from causal language models",
            found=f"{type(causal_lm(model)).__name__}, an encoder with a decoder",
            remedy="use a decoder-only model",
        )
    return config.get_text_config(decoder=True)


def layers_without_keys(config: Any) -> list[str]:
    """Layer types whose state `SlotCache` cannot hold: ["linear_attention"] for Qwen3-Next."""
    declared = getattr(config, "layer_types", None) or ()
    return sorted(set(declared) - ATTENTION_LAYERS)
