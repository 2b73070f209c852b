"""Tiny random models of many families of `transformers`, for facts that must hold whatever a family's code looks like.

model = family_model("opt", dropout=0.1)        # two layers, 64 wide; fields that a family lacks are left out
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

VOCAB = 97

_SIZES: Mapping[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "d_model": 32,
    "n_embd": 32,
    "embedding_size": 32,
    "word_embed_proj_dim": 32,
    "intermediate_size": 48,
    "ffn_dim": 48,
    "d_ff": 48,
    "n_inner": 48,
    "decoder_ffn_dim": 48,
    "encoder_ffn_dim": 48,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "shared_intermediate_size": 16,
    "expert_ffn_hidden_size": 16,
    "num_hidden_layers": 2,
    "num_layers": 2,
    "n_layer": 2,
    "n_layers": 2,
    "decoder_layers": 2,
    "encoder_layers": 2,
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "kv_channels": 8,
    "max_position_embeddings": 128,
    "n_positions": 128,
    "max_seq_len": 128,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_k": 2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "decoder_start_token_id": 1,
    "scale_embedding": False,
    "is_decoder": True,
    "add_cross_attention": False,
}
"""Small values for every size that some family has."""

_SPECIAL: Mapping[str, Mapping[str, Any]] = {
    "dbrx": {
        "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32},
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
    },
    "doge": {"num_experts": 16},  # without experts: with them its routing reads ahead, and a policy of it is refused
    "qwen3_next": {"layer_types": ["full_attention", "full_attention"]},
    "jamba": {"expert_layer_period": 1, "expert_layer_offset": 0, "attn_layer_period": 1, "attn_layer_offset": 0},
    "granitemoehybrid": {"layer_types": ["attention", "attention"]},
    "minimax": {"layer_types": ["full_attention", "full_attention"]},
    "ernie4_5_moe": {"moe_layer_start_index": 0, "moe_layer_end_index": -1, "moe_k": 2},
    "gpt_oss": {"layer_types": ["full_attention", "full_attention"]},
    "trocr": {"use_learned_position_embeddings": True},
    "gpt_neo": {"attention_types": [[["global"], 2]], "attention_layers": ["global", "global"]},
}

DROPOUTS = (
    "dropout",
    "hidden_dropout",
    "hidden_dropout_prob",
    "attention_dropout",
    "attention_probs_dropout_prob",
    "activation_dropout",
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
    "residual_dropout",
    "embedding_dropout",
    "embed_pdrop",
    "emb_pdrop",
    "ffn_dropout",
    "layerdrop",
    "decoder_layerdrop",
    "router_jitter_noise",
    "input_jitter_noise",
)
"""Every field that makes two calls in train mode differ, by all the names that families have for it."""


def family_config(family: str, **fields: Any) -> Any:
    """A tiny config; a field that the family's config lacks is left out."""
    known = CONFIG_MAPPING[family]()
    properties = {name for name in dir(type(known)) if isinstance(getattr(type(known), name), property)}
    wanted = {**_SIZES, **_SPECIAL.get(family, {}), **fields}
    return AutoConfig.for_model(
        family, **{name: value for name, value in wanted.items() if hasattr(known, name) and name not in properties}
    )


def noisy_config(family: str, p: float = 0.1) -> Any:
    """The same with every dropout of `DROPOUTS` at `p`."""
    config = family_config(family, **dict.fromkeys(DROPOUTS, p))
    if family == "dbrx":
        config.attn_config.attn_pdrop = p
        config.ffn_config.moe_jitter_eps = p
    return config


def family_model(family: str, config: Any = None, seed: int = 0, **fields: Any) -> PreTrainedModel:
    """A random causal LM in eval mode whose weights depend on the seed alone, whatever ids its config names."""
    config = family_config(family, **fields) if config is None else config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for _, parameter in sorted(model.named_parameters()):
                if parameter.is_floating_point():
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter.copy_(noise * 0.2) if parameter.ndim >= 2 else parameter.add_(noise * 0.1)
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    return model.eval()
