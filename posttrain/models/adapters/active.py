"""Which of a model's adapters computes, for as long as something is asked of it.

with adapter_in_use(model, "pia"):      # or None, the base without any
    logits = model(input_ids).logits

`peft`'s own switches (`set_adapter`, `disable_adapter`) also decide what trains: between two steps of a trainer on the
same model they would freeze its adapter, or thaw another. Here only the flags change that the layers' forwards read,
and they are put back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any, Final, Literal

from peft import PeftModel
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from posttrain.errors import ModelError, unknown


class AdapterChoice(Enum):
    """What an engine's `adapter` may be besides a name and None."""

    ACTIVE = "active"
    """Whichever is active as it computes, or none where the model has none."""


ACTIVE: Final = AdapterChoice.ACTIVE
AdapterName = str | None | Literal[AdapterChoice.ACTIVE]


def require_adapter(model: nn.Module, name: AdapterName) -> None:
    """
    Raises:
        UnknownKeyError: the model has no adapter of that name.
        ModelError: the adapters cannot be switched, since one is merged into the weights or of a kind that replaces
            parts of the model.
    """
    if name is ACTIVE:
        return
    known = list(model.peft_config) if isinstance(model, PeftModel) else []
    if name is not None and name not in known:
        nothing = "load it into the model first" if known else "the model has no adapter: leave `adapter` out"
        raise unknown("adapter", name, known, otherwise=nothing)
    if not isinstance(model, PeftModel) or model.active_peft_config.is_prompt_learning:
        return
    layers = _switches(model)
    merged = any(isinstance(layer, BaseTunerLayer) and layer.merged for layer in layers)
    if merged or not layers:
        raise ModelError(
            "the model's adapters cannot be switched",
            found="an adapter that is merged into the weights"
            if merged
            else f"{known[0]}, which has no layers of its own",
            expected="adapters beside the weights",
            remedy="load the model with its adapter unmerged, or leave `adapter` out",
        )


@contextmanager
def adapter_in_use(model: nn.Module, name: AdapterName) -> Iterator[None]:
    """Within it the model computes with this adapter alone; afterwards whatever was active is so again.

    The base of a model with virtual tokens is no matter of flags: ask `model.get_base_model()`.

    Raises:
        UnknownKeyError: the model has no such adapter, or no longer.
    """
    if name is ACTIVE or not isinstance(model, PeftModel):
        yield
        return
    # Asked each time: layers pass over an adapter that they lack, and the base would answer under its name.
    if name is not None and name not in model.peft_config:
        raise unknown("adapter", name, model.peft_config)
    # Not kept from one time to the next: an adapter that is loaded meanwhile brings layers of its own.
    before = [(layer, layer._active_adapter, layer._disable_adapters) for layer in _switches(model)]
    active = model.active_adapter
    if name is not None:
        model.active_adapter = name
    try:
        for layer, own, _ in before:
            layer._active_adapter = own if name is None else [name]
            # Alone among layers, one of trained rows does not pass over an adapter that it lacks.
            lacks = isinstance(layer, TrainableTokensLayer) and name not in layer.trainable_tokens_delta
            layer._disable_adapters = name is None or lacks
        yield
    finally:
        model.active_adapter = active
        for layer, own, disabled in before:
            layer._active_adapter, layer._disable_adapters = own, disabled


def _switches(model: nn.Module) -> list[Any]:
    """Every module that looks which adapter is active: adapted layers, and trained copies of whole modules."""
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)]
