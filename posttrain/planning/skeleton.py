"""A model without memory behind it: its class, its adapter and its shapes, on torch's meta device.

    facts = facts_of(config, LoRA(rank=16), "policy")      # 70 billion parameters are counted in a second

What `transformers` and `peft` would make is made by them, so that every architecture and every kind of adapter is
counted as it is, tied weights, biases and new heads included.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from posttrain.config.adapters import AdapterSettings, LoRA, PromptTuning, QLoRA
from posttrain.errors import ConfigError, ModelError
from posttrain.models.adapters.configs import peft_config
from posttrain.models.folders.quiet import quiet
from posttrain.models.tree.checkpointing import layers_of

Role = Literal["policy", "reward"]
"""What stands on the backbone: a vocabulary, or a head of one number (reward and value models)."""

BEYOND = 1 << 30
"""Tokens of a window that hides nothing."""
EXPERTS = ".experts."
"""What architectures with a mixture of experts write into the names of the experts' weights."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is counted of a model: Facts(total=134_515_008, trained=134_515_008, active=134_515_008, ...)."""

    total: int
    """Parameters, each once; tied ones are one."""
    trained: int
    active: int
    """Of `total`, those that a token meets: all but the experts that it is not sent to."""
    projection: int
    """Of the output projection, whether it is tied to the embeddings or not; 0 under a head of one number."""
    multiplied: int
    """Active weights of the layers that hidden states are multiplied with: two operations each and token."""
    trained_multiplied: int
    """Of these, the ones that train."""
    layer: int
    """Parameters of the largest layer, which FSDP gathers at a time."""
    root: int
    """Parameters outside of the layers: embeddings, output projection, last norm."""
    trained_layer: int
    trained_root: int
    largest: int
    """Parameters of the largest tensor, which a weight sync holds whole."""
    quantised: int
    """Parameters of the layers' linear maps, which 4 and 8 bit formats pack."""
    layers: int
    vocabulary: int
    width: int
    heads: int
    key_heads: int
    head_size: int
    """Of a key; `heads` x `head_size` is the width of the attention."""
    virtual: int
    """Virtual tokens before every row."""

    def kv_values(self) -> int:
        """Values that the keys and values of one token are, over all layers."""
        return 2 * self.layers * self.key_heads * self.head_size


def build(config: PreTrainedConfig, adapter: AdapterSettings | None, role: Role, dtype: torch.dtype) -> nn.Module:
    """The model with its adapter on the meta device.

    Raises:
        ConfigError: a target of the adapter matches nothing, or the kind cannot sit on this model.
        ModelError: `transformers` has no such model.
    """
    with quiet(), torch.device("meta"):
        model = _plain(copy.deepcopy(config), role, dtype)
        if adapter is None:
            return model
        try:
            return get_peft_model(model, peft_config(model, countable(adapter)))
        except (ValueError, TypeError, RuntimeError, AttributeError, KeyError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(
                f"an adapter of kind {adapter.kind} cannot be put on this model",
                where="adapter",
                found=f"{type(error).__name__}: {error}",
                remedy="name other `targets`, or choose `kind: lora`",
            ) from error


def _plain(config: PreTrainedConfig, role: Role, dtype: torch.dtype) -> Any:
    try:
        if role == "policy":
            return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
        kind = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(config), None)
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(
            "transformers has no language model for this config.json",
            found=f"model_type {config.model_type}: {error}",
            remedy="name a folder with a causal language model, or a model of the table (`posttrain plan --help`)",
        ) from error
    if kind is None:
        raise ModelError(
            "transformers has no reward head for this architecture",
            found=config.model_type,
            expected="an architecture with a ...ForSequenceClassification class",
            remedy="start the reward model from another base model",
        )
    config.num_labels = 1
    return kind(config).to(dtype)


def countable(adapter: AdapterSettings) -> AdapterSettings:
    """The same sizes without what needs weights: a text to begin with, a quantised base."""
    if isinstance(adapter, PromptTuning):
        return adapter.model_copy(update={"init": "random", "text": None})
    if isinstance(adapter, QLoRA):
        return LoRA(rank=adapter.rank, alpha=adapter.alpha, targets=adapter.targets)
    return adapter


def facts_of(config: PreTrainedConfig, adapter: AdapterSettings | None, role: Role) -> Facts:
    """Raises as `build` does."""
    model = build(config, adapter, role, torch.float32)
    text = config.get_text_config()
    named = dict(model.named_parameters())
    blocks = _blocks(model)
    prefixes = {id(module): name for name, module in model.named_modules()}
    inside = [tuple(named[n] for n in named if n.startswith(prefixes[id(block)] + ".")) for block in blocks]
    in_layers = {id(p) for block in inside for p in block}
    heads = int(text.num_attention_heads)
    share = _active_share(text)
    active = {name: p.numel() * (share if EXPERTS in name else 1.0) for name, p in named.items()}
    multiplied = {n: size for n, size in active.items() if id(named[n]) in in_layers and named[n].ndim >= 2}
    plain: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    output = plain.get_output_embeddings() if role == "policy" else None
    size = lambda parameters: sum(p.numel() for p in parameters)  # noqa: E731
    trains = lambda parameters: sum(p.numel() for p in parameters if p.requires_grad)  # noqa: E731
    rest = [p for p in named.values() if id(p) not in in_layers]
    return Facts(
        total=size(named.values()),
        trained=trains(named.values()),
        active=int(sum(active.values())),
        projection=int(output.weight.numel()) if output is not None else 0,
        multiplied=int(sum(multiplied.values())),
        trained_multiplied=int(sum(size for name, size in multiplied.items() if named[name].requires_grad)),
        layer=max(size(block) for block in inside),
        root=size(rest),
        trained_layer=max(trains(block) for block in inside),
        trained_root=trains(rest),
        largest=max(p.numel() for p in named.values()),
        quantised=sum(p.numel() for n, p in named.items() if n in multiplied and not p.requires_grad),
        layers=int(text.num_hidden_layers),
        vocabulary=int(text.vocab_size),
        width=int(text.hidden_size),
        heads=heads,
        key_heads=int(getattr(text, "num_key_value_heads", None) or heads),
        head_size=int(getattr(text, "head_dim", None) or text.hidden_size // heads),
        virtual=adapter.virtual_tokens if adapter is not None else 0,
    )


def _blocks(model: nn.Module) -> tuple[nn.Module, ...]:
    """
    Raises:
        ModelError: nothing says which of its modules are layers.
    """
    blocks = layers_of(model)
    if not blocks:
        raise ModelError(
            "the plan finds no layers in this architecture",
            found=type(model).__name__,
            expected="layers that transformers makes for activation checkpointing",
            remedy="run `posttrain check` where the model fits: its preflight measures what a step takes",
        )
    return blocks


def narrow_layers(model: nn.Module) -> None:
    """The layers' matrices in bf16, as FSDP gathers them (`compute.gather`); norms and the root stay as they are."""
    for parameter in (p for block in _blocks(model) for p in block.parameters() if p.ndim >= 2):
        parameter.data = parameter.data.to(torch.bfloat16)


def _active_share(text: Any) -> float:
    """The share of its experts that a token is sent to; 1 for a dense model."""
    experts = next((getattr(text, key) for key in ("num_experts", "num_local_experts") if hasattr(text, key)), None)
    chosen = getattr(text, "num_experts_per_tok", None)
    return chosen / experts if experts and chosen else 1.0


def is_sparse(config: PreTrainedConfig) -> bool:
    """Whether the model is a mixture of experts."""
    return _active_share(config.get_text_config()) < 1.0


def shortened(config: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    """The same model with fewer layers, all of which see every earlier token at plain positions.

    Windows and scaled positions change no size that a pass holds, and code that reads positions as numbers cannot run
    on tensors without memory.
    """
    config = copy.deepcopy(config)
    text = config.get_text_config()
    text.num_hidden_layers = layers
    kinds = getattr(text, "layer_types", None)
    if kinds is not None:
        text.layer_types = ["full_attention"] * layers
    if getattr(text, "sliding_window", None) is not None:
        text.sliding_window = BEYOND  # some classes make a mask of it even where no layer has one
    if hasattr(text, "use_sliding_window"):
        text.use_sliding_window = False
    if (rope := getattr(text, "rope_parameters", None)) and "rope_theta" in rope:
        text.rope_parameters = {"rope_type": "default", "rope_theta": rope["rope_theta"]}
    return config
