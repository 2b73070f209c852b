"""LoRA through `peft`: which modules get an adapter, and whether an adapter has learnt anything yet."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers.pytorch_utils import Conv1D

from posttrain.errors import ConfigError, ModelError
from posttrain.models.quiet import quiet

ALL_LINEAR = "all-linear"
ADAPTABLE = (nn.Linear, Conv1D, nn.Embedding)
ADAPTER_PARTS = ("lora_", "modules_to_save.", "trainable_tokens_")
"""What `peft` writes into the names of an adapter's own parameters."""


@dataclass(frozen=True, slots=True)
class LoRA:
    """A low-rank adapter (Hu et al. 2021): W + scale * B A, B zero at the start.

    LoRA(rank=16, alpha=32, targets="all-linear")

    Raises:
        ConfigError: a value is out of its range.
    """

    rank: int = 16
    alpha: float = 32.0
    """scale = alpha / rank; alpha = 2 * rank is the common practice. With rsLoRA, alpha / sqrt(rank)."""
    targets: str | Sequence[str] = ALL_LINEAR
    """`all-linear` (every linear layer but the output projection), a list of names such as [q_proj, v_proj], or a
    regular expression over whole module names."""
    dropout: float = 0.0
    """On the adapter's input, and only where training asks for dropout: log-probs are computed without it."""
    dora: bool = False
    """Weight-decomposed (Liu et al. 2024): the magnitude of each output is learnt apart from its direction."""
    rslora: bool = False
    """Rank-stabilised scale (Kalajdzievski 2023)."""
    init: Literal["default", "gaussian"] = "default"
    """How A starts: uniform (Kaiming) or gaussian / rank. B starts at zero in both."""

    def __post_init__(self) -> None:
        checks = (
            ("rank", self.rank, self.rank >= 1, "at least 1"),
            ("alpha", self.alpha, self.alpha > 0, "above 0"),
            ("dropout", self.dropout, 0 <= self.dropout < 1, "at least 0 and below 1"),
            ("init", self.init, self.init in ("default", "gaussian"), "'default' or 'gaussian'"),
            ("targets", self.targets, bool(self.targets), "'all-linear', module names, or a regular expression"),
        )
        for name, value, holds, expected in checks:
            if not holds:
                raise ConfigError(
                    "the value is out of range",
                    where=f"adapter.{name}",
                    found=repr(value),
                    expected=expected,
                    remedy=f"change adapter.{name}",
                )


@dataclass(frozen=True, slots=True)
class ParameterCount:
    """ParameterCount(trainable=4_884_480, total=139_399_488): elements; tied tensors count once."""

    trainable: int
    total: int

    def __str__(self) -> str:
        share = self.trainable / self.total if self.total else 0.0
        return f"{self.trainable:,} of {self.total:,} parameters train ({share:.2%})"


def trainable_parameters(model: nn.Module) -> ParameterCount:
    parameters = list(model.parameters())
    return ParameterCount(
        trainable=sum(p.numel() for p in parameters if p.requires_grad), total=sum(p.numel() for p in parameters)
    )


def add_adapter(model: nn.Module, lora: LoRA, *, seed: int = 0) -> PeftModel:
    """Wrap `model` with a fresh adapter; the base weights are frozen and the model computes what it did before.

    Args:
        seed: of the adapter's own random stream; the global one is left as it was.

    Raises:
        ConfigError: a target matches no module.
        ModelError: the model carries an adapter already.
    """
    if isinstance(model, PeftModel):
        raise ModelError(
            "the model carries an adapter already",
            found=", ".join(model.peft_config),
            remedy="leave `adapter` out to go on training it, or export the model merged and adapt that",
        )
    targets = matching_modules(model, lora.targets)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha,
        target_modules=lora.targets if lora.targets == ALL_LINEAR else _peft_targets(lora.targets),
        lora_dropout=lora.dropout,
        use_dora=lora.dora,
        use_rslora=lora.rslora,
        init_lora_weights=True if lora.init == "default" else "gaussian",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in targets.values()),
    )
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(model, config)


def matching_modules(model: nn.Module, targets: str | Sequence[str]) -> dict[str, nn.Module]:
    """The modules that `targets` names, by their full names.

    Raises:
        ConfigError: a name or the expression matches nothing that an adapter can sit on; the nearest names are given.
    """
    adaptable = {name: module for name, module in model.named_modules() if isinstance(module, ADAPTABLE)}
    if targets == ALL_LINEAR:
        head = model.get_output_embeddings()  # type: ignore[operator]
        return {n: m for n, m in adaptable.items() if m is not head and not isinstance(m, nn.Embedding)}
    wanted = _peft_targets(targets)
    if isinstance(wanted, str):
        found = {name: module for name, module in adaptable.items() if _compiled(wanted).fullmatch(name)}
        if not found:
            raise _unmatched([wanted], adaptable)
        return found
    missing = [target for target in wanted if not any(_is_named(name, target) for name in adaptable)]
    if missing:
        raise _unmatched(missing, adaptable)
    return {name: m for name, m in adaptable.items() if any(_is_named(name, target) for target in wanted)}


def is_fresh(model: nn.Module) -> bool:
    """Whether switching the adapter off gives exactly the model as it is now.

    True only for LoRA whose every update B A is zero, on a base that is frozen and unmerged, without trained copies of
    whole modules. An adapter that has been trained before is part of the start, and its reference must contain it.
    """
    if not isinstance(model, PeftModel):
        return False
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not any(part in name for part in ADAPTER_PARTS):
            return False  # a trained bias or norm does not come back when the adapter is switched off
    return all(
        _layer_is_fresh(module)
        for module in model.modules()
        if isinstance(module, BaseTunerLayer | ModulesToSaveWrapper)
    )


def _layer_is_fresh(layer: Any) -> bool:
    if isinstance(layer, ModulesToSaveWrapper):
        original = layer.original_module.state_dict()
        copies = [layer.modules_to_save[name].state_dict() for name in layer.active_adapters]
        return all(torch.equal(copy[key], original[key]) for copy in copies for key in original)
    if not isinstance(layer, LoraLayer) or layer.merged_adapters:
        return False
    return all(_delta_is_zero(layer, adapter) for adapter in layer.active_adapters)


def _delta_is_zero(layer: Any, adapter: str) -> bool:
    if adapter in layer.lora_B:
        factors = [list(layer.lora_A[adapter].parameters()), list(layer.lora_B[adapter].parameters())]
    elif adapter in layer.lora_embedding_B:
        factors = [[layer.lora_embedding_A[adapter]], [layer.lora_embedding_B[adapter]]]
    else:
        return True
    # Linear layers start with B at zero, embeddings with A.
    if all(any(bool(parameter.any()) for parameter in factor) for factor in factors):
        return False
    if adapter not in layer.lora_magnitude_vector:
        return True
    magnitude = layer.lora_magnitude_vector[adapter].weight
    weight = layer.get_base_layer().weight
    norm = torch.linalg.norm(weight.T if layer.fan_in_fan_out else weight, dim=1).to(magnitude.dtype)
    return magnitude.numel() == norm.numel() and torch.allclose(magnitude.flatten(), norm.flatten(), rtol=1e-5)


def _peft_targets(targets: str | Sequence[str]) -> str | list[str]:
    """`peft` reads a string as an expression over whole names; a plain name is meant as a name."""
    if isinstance(targets, str):
        return [targets] if re.fullmatch(r"\w+", targets) else targets
    return list(targets)


def _is_named(module: str, target: str) -> bool:
    return module == target or module.endswith(f".{target}")


def _compiled(expression: str) -> re.Pattern[str]:
    try:
        return re.compile(expression)
    except re.error as error:
        raise ConfigError(
            "not a regular expression",
            where="adapter.targets",
            found=f"{expression!r}: {error}",
            remedy="correct it, or give a list of module names",
        ) from error


def _unmatched(missing: list[str], adaptable: dict[str, nn.Module]) -> ConfigError:
    names = sorted({name.rsplit(".", 1)[-1] for name in adaptable})
    close = list(_nearest_names(missing, names))
    return ConfigError(
        "no module of this model has this name",
        where="adapter.targets",
        found=", ".join(repr(target) for target in missing),
        expected=f"one of {', '.join(names)}",
        example=f"targets: [{', '.join(close)}]" if close else "targets: all-linear",
        remedy="name modules of this model" + (f"; the nearest are {', '.join(close)}" if close else ""),
    )


def _nearest_names(missing: list[str], names: list[str]) -> Iterator[str]:
    for target in missing:
        yield from difflib.get_close_matches(target.rsplit(".", 1)[-1], names, n=2, cutoff=0.5)
