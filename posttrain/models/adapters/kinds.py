"""Adapters through `peft`: putting a fresh one on a model, and what may be done with one that is there.

model = add_adapter(model, LoRA(rank=16))       # any record of posttrain.config.adapters
is_fresh(model)                                 # True until it has learnt something

`configs` makes `peft`'s configuration, `folders` loads a saved one. What the rest of the package needs to know of an
adapter (its kind, virtual tokens, dropout, whether it merges) it asks here, never `peft` itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from peft.tuners.adalora import AdaLoraLayer
from peft.tuners.ia3 import IA3Layer
from peft.tuners.lora import LoraLayer
from peft.tuners.oft import OFTLayer
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn

from posttrain.config.adapters import AdapterSettings, LoRA, PromptTuning
from posttrain.errors import ConfigError, ModelError
from posttrain.models.adapters.bottleneck import BottleneckLayer
from posttrain.models.adapters.configs import matching_modules, peft_config
from posttrain.models.adapters.facts import KINDS, type_merges
from posttrain.models.adapters.size import require_size
from posttrain.models.folders.quiet import quiet
from posttrain.models.sharding.shards import any_nonzero, whole

__all__ = [
    "ADAPTER_PARTS",
    "LoRA",
    "ParameterCount",
    "adapter_dropout",
    "adapter_kind",
    "adapter_layers",
    "add_adapter",
    "is_fresh",
    "matching_modules",
    "merges",
    "trainable_parameters",
    "virtual_tokens",
    "waits_for_gradient",
]

ADAPTER_PARTS = ("lora_", ".ranknum.", ".ia3_", ".oft_", ".bottleneck_", "modules_to_save.", "trainable_tokens_")
"""What `peft` writes into the names of an adapter's own parameters."""

PROBE_LENGTH = 2


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


# ---------------------------------------------------------------- a fresh one


def add_adapter(
    model: nn.Module,
    adapter: AdapterSettings,
    *,
    tokenizer: Any = None,
    seed: int = 0,
    new_rows: Sequence[int] = (),
) -> PeftModel:
    """Wrap `model` with a fresh adapter; the base weights are frozen.

    But for virtual tokens, which every row sees from the start, the model computes what it did before.

    Args:
        tokenizer: needed by `PromptTuning(text=...)` only.
        seed: of the adapter's own random stream; the global one is left as it was.
        new_rows: ids of new tokens, whose rows train beside the adapter (`folders.new_tokens`).

    Raises:
        ConfigError: a target matches no module, a layer cannot have the rank, or the kind cannot sit on this model.
        MemoryLimitError: the adapter and its optimizer take more memory than is free.
        ModelError: the model carries an adapter already.
    """
    if isinstance(model, PeftModel):
        raise ModelError(
            "the model carries an adapter already",
            found=", ".join(model.peft_config),
            remedy="write `adapter: {kind: continue}` to go on training it, or merge it and adapt that",
        )
    if adapter.kind == "continue":
        raise ConfigError(
            "there is no adapter to go on with",
            where="adapter.kind",
            found="a model without an adapter",
            remedy="start from an adapter's folder, or choose a kind to begin with, `kind: lora`",
        )
    config = peft_config(model, adapter, new_rows)
    require_size(model, adapter)
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            adapted = get_peft_model(model, config)
            if adapter.VIRTUAL:
                _probe_virtual(adapted)
        except (ValueError, TypeError, RuntimeError, AttributeError, KeyError) as error:
            raise ConfigError(
                f"an adapter of kind {adapter.kind} cannot be put on this model",
                where="adapter",
                found=f"{type(error).__name__}: {error}",
                remedy="name other `targets`, or choose `kind: lora`",
            ) from error
    if isinstance(adapter, PromptTuning) and adapter.text is not None:
        _start_from_text(adapted, adapter.text, tokenizer)
    return adapted


@torch.no_grad()
def _probe_virtual(model: PeftModel) -> None:
    """`peft` guesses the shapes of the cache from the config; a wrong guess shows at the first forward."""
    ids = torch.zeros(1, PROBE_LENGTH, dtype=torch.long, device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits
    columns = logits.shape[1] if logits.ndim == 3 else PROBE_LENGTH  # a reward model has one score per row
    if columns not in (PROBE_LENGTH, PROBE_LENGTH + virtual_tokens(model)):
        raise ValueError(f"{columns} columns of logits for {PROBE_LENGTH} tokens")


@torch.no_grad()
def _start_from_text(model: PeftModel, text: str, tokenizer: Any) -> None:
    """The virtual tokens begin as the embeddings of a text, repeated or cut to their number."""
    if tokenizer is None:
        raise ConfigError(
            "the text of the prompt needs a tokenizer", where="adapter.text", remedy="pass `tokenizer`, or use load()"
        )
    ids = tokenizer(text, add_special_tokens=False).input_ids
    prompt_P = model.prompt_encoder[model.active_adapter].embedding.weight
    repeated_P = torch.tensor(ids, device=prompt_P.device).repeat(-(-len(prompt_P) // len(ids)))[: len(prompt_P)]
    prompt_P.copy_(model.get_input_embeddings()(repeated_P))


# ---------------------------------------------------------------- what it is


def adapter_kind(model: nn.Module) -> str | None:
    """What a recipe calls the adapter's kind; None without an adapter. A kind of `peft` that no recipe has keeps its
    name there."""
    if not isinstance(model, PeftModel):
        return None
    # An enum of `peft`, but the plain string of a kind that was registered from outside (`bottleneck.PEFT_TYPE`).
    name = str(getattr(model.active_peft_config.peft_type, "value", model.active_peft_config.peft_type))
    return KINDS.get(name, name)


def virtual_tokens(model: nn.Module) -> int:
    """How many virtual tokens stand before every row: 0 without an adapter that has them."""
    if not isinstance(model, PeftModel) or not model.active_peft_config.is_prompt_learning:
        return 0
    return int(model.active_peft_config.num_virtual_tokens)


def merges(model: nn.Module) -> bool:
    """Whether the adapter can be folded into the weights; True without one."""
    return not isinstance(model, PeftModel) or type_merges(model.active_peft_config.peft_type)


def adapter_dropout(model: nn.Module) -> float:
    """The largest share that an adapter of the model drops while it trains."""
    # By `peft`'s names (lora_dropout.default, ...): the model's own dropouts do not count here.
    rates = [
        float(module.p)
        for layer in model.modules()
        if isinstance(layer, BaseTunerLayer)
        for name, module in layer.named_modules()
        if "_dropout." in name and "p" in vars(module)
    ]
    return max(rates, default=0.0)


def waits_for_gradient(model: nn.Module) -> frozenset[str]:
    """Parameters of a fresh adapter that get no gradient until another factor, which starts at zero, has moved."""
    if not is_fresh(model):
        return frozenset()
    # AdaLoRA's zero factor is the diagonal E between A and B, so both wait; LoRA's is B, and on embeddings A. A check
    # that every parameter gets a gradient would call these broken at step 1.
    svd = adapter_kind(model) == "adalora"
    parts = ["lora_A", "lora_B"] if svd else ["lora_A", "lora_embedding_B", "bottleneck_down"]
    return frozenset(name for name, _ in model.named_parameters() if any(part in name for part in parts))


def adapter_layers(model: nn.Module) -> dict[str, list[str]]:
    """The layers that an adapter sits on, by their names in the model beneath it, with the parameters of each that
    train, by theirs: {"model.layers.0.mlp.up_proj": ["base_model.model...up_proj.lora_A.default.weight", ...]}. Empty
    without an adapter, and for virtual tokens."""
    if not isinstance(model, PeftModel):
        return {}
    layers = {name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    trained: dict[str, list[str]] = {}
    for name, parameter in model.named_parameters():
        words = name.split(".")
        # The longest prefix: a module that is adapted may lie inside another that is.
        owner = next((own for end in range(len(words), 0, -1) if (own := ".".join(words[:end])) in layers), None)
        if owner is not None and parameter.requires_grad:
            trained.setdefault(owner.removeprefix("base_model.model."), []).append(name)
    return trained


# ---------------------------------------------------------------- fresh or not


def is_fresh(model: nn.Module) -> bool:
    """Whether switching the adapter off gives exactly the model as it is now.

    True only for adapters of the weights that change nothing yet, on a base that is frozen and unmerged, without
    trained copies of whole modules. Virtual tokens change every row from the start. An adapter that has been trained
    before is part of the start, and its reference must contain it.
    """
    if not isinstance(model, PeftModel) or virtual_tokens(model):
        return False
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not any(part in name for part in ADAPTER_PARTS):
            return False  # a trained bias or norm does not come back when the adapter is switched off

    # Wrong here, and the reference of DPO or of a KL penalty is another model than the one that training began from.
    return all(
        _layer_is_fresh(module)
        for module in model.modules()
        if isinstance(module, BaseTunerLayer | ModulesToSaveWrapper)
    )


def _layer_is_fresh(layer: Any) -> bool:
    if isinstance(layer, ModulesToSaveWrapper):
        original = layer.original_module.state_dict()
        copies = [layer.modules_to_save[name].state_dict() for name in layer.active_adapters]
        return all(torch.equal(whole(copy[key]), whole(original[key])) for copy in copies for key in original)
    # A merged adapter is in the base weights: switching it off takes nothing away, whatever its factors say.
    if layer.merged_adapters:
        return False
    for kind, changes_nothing in CHANGES_NOTHING.items():
        if isinstance(layer, kind):
            return all(changes_nothing(layer, adapter) for adapter in layer.active_adapters)
    return False


def _lora_changes_nothing(layer: Any, adapter: str) -> bool:
    if adapter in layer.lora_B:
        factors = [list(layer.lora_A[adapter].parameters()), list(layer.lora_B[adapter].parameters())]
    elif adapter in layer.lora_embedding_B:
        factors = [[layer.lora_embedding_A[adapter]], [layer.lora_embedding_B[adapter]]]
    else:
        return True
    # Linear layers start with B at zero, embeddings with A: one zero factor makes the product zero.
    if all(any(any_nonzero(parameter) for parameter in factor) for factor in factors):
        return False
    if adapter not in layer.lora_magnitude_vector:
        return True

    # DoRA (Liu et al. 2024, arXiv:2402.09353) also scales each output's weights to a magnitude, which starts at their
    # own norm; once it has moved, a zero product no longer means an unchanged layer.
    magnitude = whole(layer.lora_magnitude_vector[adapter].weight)
    weight = whole(layer.get_base_layer().weight)
    norm = torch.linalg.norm(weight.T if layer.fan_in_fan_out else weight, dim=1).to(magnitude.dtype)
    return magnitude.numel() == norm.numel() and torch.allclose(magnitude.flatten(), norm.flatten(), rtol=1e-5)


def _adalora_changes_nothing(layer: Any, adapter: str) -> bool:
    return adapter not in layer.lora_E or not any_nonzero(layer.lora_E[adapter])


def _ia3_changes_nothing(layer: Any, adapter: str) -> bool:
    return adapter not in layer.ia3_l or bool((whole(layer.ia3_l[adapter]) == 1).all())


def _oft_changes_nothing(layer: Any, adapter: str) -> bool:
    return adapter not in layer.oft_R or not any_nonzero(layer.oft_R[adapter].weight)


def _rows_change_nothing(layer: Any, adapter: str) -> bool:
    if adapter not in layer.trainable_tokens_delta:
        return True
    rows = whole(layer.get_base_layer().weight)[layer.token_indices[adapter]]
    return torch.equal(whole(layer.trainable_tokens_delta[adapter]), rows)


CHANGES_NOTHING: Mapping[type[Any], Callable[[Any, str], bool]] = {
    AdaLoraLayer: _adalora_changes_nothing,  # before LoraLayer, of which it is one
    LoraLayer: _lora_changes_nothing,
    IA3Layer: _ia3_changes_nothing,
    OFTLayer: _oft_changes_nothing,
    BottleneckLayer: BottleneckLayer.is_fresh,
    TrainableTokensLayer: _rows_change_nothing,
}
"""Kinds of layer of which it can be proven that they change nothing; any other counts as trained."""
