"""A tiny random model of any causal LM family that the installed `transformers` has.

    model = tiny_family("qwen3_next")        # a few layers of width 64, one of each kind that the family has

The fields of the family's own default config are shrunk by their names; what a name does not tell, the table of
families does. Weights are drawn with unit variance, so that attention, states and experts do something: at the small
initial scale of `transformers` a fault of one part would be lost in rounding.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY = 128
LAYERS, WIDTH, HEADS, GROUPS, HEAD_DIM = 4, 64, 4, 2, 16
WINDOW = 8
"""Rows of the sweep are longer, so that windows and chunks hide something."""
LARGEST = 30_000_000
"""Parameters; a family that is larger after all was not shrunk."""

SIZES: tuple[tuple[str, int], ...] = (
    (r"^(unpadded_|decoder_|encoder_)?vocab_size(_per_layer_input)?$|^src_vocab_size$|^tgt_vocab_size$", VOCABULARY),
    (r"^(num_hidden_layers|n_layers?|num_layers|num_decoder_layers|decoder_layers|num_blocks)$", LAYERS),
    (r"^(encoder_layers|num_encoder_layers|depth|num_layers_per_stack)$", 2),
    (r"^(hidden_size|d_model|n_embd|word_embed_proj_dim|emb_dim|embedding_dim|dim|lru_width)$", WIDTH),
    (r"^(attention_hidden_size|mamba_d_ssm|router_hidden_size|embed_dim|ple_embed_dim|embedding_size)$", WIDTH),
    (r"^(hidden_size_per_layer_input|input_embedding_size|output_embedding_size|projection_dim)$", 32),
    (
        r"intermediate_size|intermediate_size_mlp|ffn_dim|^d_ff$|^dff$|^dim_ff$|^d_inner$|ffn_hidden_size|feed_forward",
        96,
    ),
    (r"^(encoder_|decoder_|swa_|num_encoder_|num_decoder_|)(num_)?attention_heads$|^n_heads?$|^num_heads$", HEADS),
    (r"^swa_num_attention_heads$|^num_attention_heads$|^num_query_groups$|^linear_num_heads$", HEADS),
    (r"num_key_value_heads$|^num_kv_heads$", GROUPS),
    (
        r"^(swa_)?head_dim$|^d_head$|^dim_head$|^v_head_dim$|^attention_head_size$|^kv_channels$|^global_head_dim$",
        HEAD_DIM,
    ),
    (r"^qk_nope_head_dim$|^qk_rope_head_dim$|^rotary_dim$|^index_rope_head_dim$", 8),
    (r"^qk_head_dim$|^linear_(key_|value_)?head_dim$|^query_pre_attn_scalar$|^attention_head_dim$", HEAD_DIM),
    (r"^linear_num_(key|value)_heads$", HEADS),
    (r"_lora_rank$|laurel_rank|gated_norm_rank|hc_lowrank|adapter_rank", 16),
    (r"^(num_experts|num_local_experts|n_routed_experts|moe_num_experts)$", 4),
    (r"^(num_experts_per_tok(en)?|moe_topk|moe_k|top_k_experts)$", 2),
    (r"^(n_group|topk_group|num_expert_group|n_shared_experts|num_shared_experts|moe_num_shared_experts)$", 1),
    (r"^zero_expert_num$", 2),
    (r"^first_k_dense_replace$|^num_dense_layers$", 1),
    (r"window(_size|_len)?$|^sliding_window_size$|^local_attention$|^attention_chunk_size$|^rel_extent$", WINDOW),
    (r"chunk_length$|^(mamba_)?chunk_size$|^block_size$", 16),
    (r"^index_block_size$", WINDOW),
    (r"^index_topk(_blocks)?$", 4),
    (r"^index_n_heads$", 64),  # few heads make equal scores, whose order depends on how long the padded row is
    (r"^index_head_dim$", HEAD_DIM),
    (r"^(mamba_)?(d_|ssm_)?state(_size)?$", HEAD_DIM),
    (r"^(mamba_n_heads|mamba_num_heads)$", 8),
    (r"^(mamba_d_head|mamba_head_dim|mamba_headdim)$", HEAD_DIM),
    (r"^(time_step_rank|mamba_dt_rank)$", 8),
    (r"^(mamba_)?n_groups$", 1),
    (r"^(max_position_embeddings|n_positions|n_ctx|max_seq_len|context_length|model_max_length)$", 1024),
    (r"^(max_target_positions|max_source_positions)$", 512),
    (r"^ngram_vocab_size_base$|^encoder_hash_byte_group_vocab$", 512),
    (r"^split_ngram_parts$", 4),
    (r"^num_kv_shared_layers$", 1),
    (r"_embed_dim$", 32),
    (r"^(image_size|crop_size|img_size)$", 56),
    (r"^patch_size$", 14),
)
"""The first pattern that a field's name matches gives its value."""
UNSET = {
    "head_dim": HEAD_DIM,
    "num_key_value_heads": GROUPS,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "audio_vocab_size": VOCABULARY,
}
"""Fields that some default configs leave to the published model."""
TOKEN_ID = re.compile(r"(_token_id|_index|_token_index)$")

QWEN4 = {
    "indexer_n_heads": HEADS,
    "indexer_kv_heads": 1,
    "indexer_head_dim": HEAD_DIM,
    "indexer_budget": WINDOW,
    "indexer_compress_ratio": 4,
    "head_dim": HEAD_DIM,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {"is_decoder": True},
    "bert-generation": {"is_decoder": True},
    "big_bird": {"is_decoder": True, "attention_type": "original_full"},
    "bigbird_pegasus": {"attention_type": "original_full"},
    "camembert": {"is_decoder": True},
    "data2vec-text": {"is_decoder": True},
    "electra": {"is_decoder": True},
    "ernie": {"is_decoder": True},
    "megatron-bert": {"is_decoder": True},
    "rembert": {"is_decoder": True},
    "roberta": {"is_decoder": True},
    "roberta-prelayernorm": {"is_decoder": True},
    "roc_bert": {"is_decoder": True},
    "roformer": {"is_decoder": True, "embedding_size": 64},
    "xlm-roberta": {"is_decoder": True},
    "xlm-roberta-xl": {"is_decoder": True},
    "xmod": {"is_decoder": True, "default_language": "en_XX"},
    "xlm": {"causal": True},
    "qwen2_moe": {"use_sliding_window": True, "max_window_layers": 2, "sliding_window": WINDOW, "layer_types": None},
    "phimoe": {"sliding_window": WINDOW},
    "reformer": {
        "is_decoder": True,
        "axial_pos_shape": [32, 32],
        "axial_pos_embds_dim": [32, 32],
        "attn_layers": ["local", "lsh", "local", "lsh"],
        "num_buckets": 4,
        "hidden_size": 64,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "intermediate_size": 96},
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "zamba": {
        "attention_hidden_size": 2 * WIDTH,
        "attention_head_dim": 2 * WIDTH // HEADS,
        "num_key_value_heads": HEADS,
        "num_hidden_layers": 6,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention"] * 2,
    },
    "zamba2": {
        "attention_hidden_size": 2 * WIDTH,
        "attention_head_dim": 2 * WIDTH // HEADS,
        "num_key_value_heads": HEADS,
        "mamba_headdim": HEAD_DIM,
        "num_hidden_layers": 6,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention"] * 2,
        "hybrid_layer_ids": [1, 4],
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "cohere_compass_text": {
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 10_000.0} for kind in ("full_attention", "sliding_attention")
        }
    },
    "dbrx": {"attn_config": {"kv_n_heads": GROUPS, "rope_theta": 10_000.0, "clip_qkv": 8.0}},
    "dots3_note_text": {"per_layer_config": {}, "head_dim": HEAD_DIM},
    "qwen4_exp_text": QWEN4,
    "qwen4_exp": {"text_config": QWEN4},
    "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}},
}
"""What names do not tell. A BERT is a language model only as a decoder; Qwen2-MoE has its window off by default."""

VARIANTS: tuple[dict[str, int], ...] = (
    {},
    {"layers": 8},
    {"groups": HEADS},
    {"layers": 2},
    {"groups": HEADS, "layers": 6},
    {"layers": 12},
)
"""Tried in this order until a model is built and computes a row."""


def names() -> list[str]:
    """Every family of `AutoModelForCausalLM`."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_family(name: str, seed: int = 0, **changes: Any) -> Any:
    """A model of the family with random weights, in eval mode.

    Raises:
        ValueError: no variant of its config could be built; says what each of them met.
    """
    faults = []
    for variant in VARIANTS:
        try:
            return _built(tiny_config(name, variant, changes), seed)
        except Exception as error:  # a boundary: any family's own code may raise anything, and it is told
            faults.append(f"{type(error).__name__}: {' '.join(str(error).split())}")
    raise ValueError("; ".join(dict.fromkeys(faults)))


def tiny_config(name: str, variant: dict[str, int], changes: dict[str, Any]) -> Any:
    """The family's default config with every size shrunk, those of its parts too."""
    kind, own = CONFIG_MAPPING[name], FAMILIES.get(name, {}) | changes
    whole = {part: value for part, value in own.items() if isinstance(value, dict) and part.endswith("_config")}
    return kind(**_shrunk(kind(**whole), variant, own))


def _shrunk(default: Any, variant: dict[str, int], own: dict[str, Any]) -> dict[str, Any]:
    """Arguments for the config's class: what is large made small, and `own` over it."""
    values = dict(default.to_dict())
    parts = [part for part in getattr(default, "sub_configs", {}) if getattr(default, part, None) is not None]
    layers = variant.get("layers", LAYERS)
    depth = next((values[key] for key in ("num_hidden_layers", "n_layer", "num_layers") if values.get(key)), 0)
    made: dict[str, Any] = {}
    for key, value in values.items():
        if key in parts or key in ("model_type", "dtype", "transformers_version"):
            continue
        small = UNSET.get(key) if value is None else _small(key, value, variant, layers)
        if small is not None:
            made[key] = small
        elif isinstance(value, list | tuple) and depth and len(value) == depth:
            made[key] = _of_layers(key, value, layers)
        elif key == "rope_parameters" and isinstance(value, dict) and value:
            made[key] = _rope(value)
    if "qk_rope_head_dim" in made and "head_dim" in made:  # multi-head latent attention rotates a part of each head
        made["head_dim"] = made["qk_rope_head_dim"]
    for part in parts:
        inner = getattr(default, part)
        made[part] = {"model_type": inner.model_type} | _shrunk(inner, variant, own.get(part, {}))
    return {**made, **{key: value for key, value in own.items() if key not in parts}}


def _small(key: str, value: Any, variant: dict[str, int], layers: int) -> Any:
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    if TOKEN_ID.search(key):
        return value % VOCABULARY if value >= VOCABULARY else None
    for pattern, size in SIZES:
        if re.search(pattern, key):
            if size == LAYERS and re.search(r"layer|blocks", key):
                return layers
            if size == GROUPS and "key_value" in key:
                return variant.get("groups", GROUPS)
            return min(size, value) if value > 0 else None
    return None


def _of_layers(key: str, values: Any, layers: int) -> list[Any]:
    """As many entries, with each kind that there is; sizes as everywhere else."""
    if all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        small = _small(key.removesuffix("_per_layer"), max(values), {}, layers)
        return [small if small is not None else value for value in values[:layers]]
    kinds = list(dict.fromkeys(map(repr, values)))
    of_kind = {repr(value): value for value in values}
    chosen = [of_kind[kind] for kind in kinds][:layers]
    return (chosen * layers)[:layers] if len(chosen) > 1 else list(values[:layers])


def _rope(value: dict[str, Any]) -> dict[str, Any]:
    if all(isinstance(one, dict) for one in value.values()):
        return {key: _rope(one) for key, one in value.items()}
    if "mrope_section" in value:
        return {**value, "mrope_section": [2, 3, 3]}
    return value


def _built(config: Any, seed: int) -> Any:
    with torch.device("meta"):
        outline = AutoModelForCausalLM.from_config(config)
    size = sum(parameter.numel() for parameter in outline.parameters())
    if size > LARGEST:
        raise ValueError(f"{size:,} parameters are too many")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    _draw(model, seed)
    with torch.no_grad():
        output = model(input_ids=torch.arange(3, 15)[None], use_cache=False)
    if not bool(torch.isfinite(output.logits).all()):
        raise ValueError("its logits are not finite")
    return model


@torch.no_grad()
def _draw(model: Any, seed: int) -> None:
    """Matrices of variance 1 / fan-in, embeddings of variance 1; what has one dimension stays as it was initialised."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    tied = {id(head.weight)} if head is not None and isinstance(head, nn.Linear) else set()
    for parameter in model.parameters():
        if parameter.dim() < 2 or not parameter.is_floating_point():
            continue
        scale = parameter.shape[-1] ** -0.5
        if id(parameter) in embeddings and id(parameter) not in tied:
            scale = 1.0
        parameter.copy_(torch.randn(parameter.shape, generator=generator).mul_(scale))
