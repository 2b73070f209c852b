"""The architectures that are written as GGUF, each proven against llama.cpp (tests/ecosystem/test_llama_cpp.py).

There is no maintained converter that could be installed: llama.cpp's own is a script of its repository. What is here
follows it for three architectures and refuses every other by name, for a tensor in the wrong layout loads without a
word and answers nonsense.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from posttrain.errors import ExportError


@dataclass(frozen=True, slots=True)
class Architecture:
    """Architecture("llama", "LLAMA", permuted=True): how GGUF calls it, and what is written otherwise."""

    name: str
    """`general.architecture`."""
    constant: str
    """The name in `gguf.MODEL_ARCH`."""
    permuted: bool
    """Whether the rows of queries and keys are put in pairs: llama.cpp turns (0, 1), (2, 3), ... in its rope of
    `llama`, where transformers turns (0, d/2), (1, d/2 + 1), ..."""


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("llama", "LLAMA", permuted=True),
    "qwen2": Architecture("qwen2", "QWEN2", permuted=False),
    "qwen3": Architecture("qwen3", "QWEN3", permuted=False),
}
"""By `model_type` of config.json."""


QWEN3_HEAD = 128
"""Size of a head in every Qwen3 that was published."""


def architecture_of(config: Any, where: Path) -> Architecture:
    """
    Raises:
        ExportError: the architecture, its activation, its rope or its attention is none that is written.
    """
    found = ARCHITECTURES.get(config.model_type)
    remedy = "export it as safetensors (`--to merged`), and convert that with llama.cpp's convert_hf_to_gguf.py"
    if found is None:
        raise ExportError(
            "this architecture is not written as GGUF",
            where=where,
            found=f"model_type: {config.model_type}",
            expected=f"one of {', '.join(ARCHITECTURES)}",
            remedy=remedy,
        )
    rope = dict(getattr(config, "rope_parameters", None) or {})
    settings = config.to_dict()
    wrong = [
        (rope.get("rope_type", "default") != "default", f"rope_type: {rope.get('rope_type')}", "default"),
        (rope.get("partial_rotary_factor", 1.0) != 1.0, "a rope over a part of each head", "over all of it"),
        (settings.get("hidden_act", "silu") != "silu", f"hidden_act: {settings.get('hidden_act')}", "silu"),
        (bool(settings.get("use_sliding_window")), "use_sliding_window: true", "attention over the whole context"),
        (bool(settings.get("mlp_bias")), "mlp_bias: true", "no biases in the mlp"),
        (
            # The reader that compares what was written takes this for the size of every head of a qwen3.
            found.name == "qwen3" and head_dimension(config) != QWEN3_HEAD,
            f"head_dim: {head_dimension(config)}",
            str(QWEN3_HEAD),
        ),
        (bool(settings.get("attention_bias")) and found.name != "qwen2", "attention_bias: true", "none"),
    ]
    for is_wrong, text, expected in wrong:
        if is_wrong:
            raise ExportError(
                f"a {config.model_type} of this kind is not written as GGUF",
                where=where,
                found=text,
                expected=expected,
                remedy=remedy,
            )
    return found


def head_dimension(config: Any) -> int:
    return int(config.to_dict().get("head_dim") or config.hidden_size // config.num_attention_heads)


def write_settings(writer: Any, config: Any) -> None:
    """The keys of config.json that llama.cpp computes with."""
    head = head_dimension(config)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_rope_dimension_count(head)
    # Always: where they are left out, a reader takes embedding / heads, which is another number for some models.
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_vocab_size(config.vocab_size)


def permuted(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a projection with the two halves of each head interlaced: of one head [0, 1, 2, 3] -> [0, 2, 1, 3]."""
    rows = weight.shape[0]
    parts = weight.reshape(heads, 2, rows // heads // 2, *weight.shape[1:])
    return parts.swapaxes(1, 2).reshape(weight.shape)


def as_written(name: str, weight: torch.Tensor, architecture: Architecture, config: Any) -> torch.Tensor:
    """A tensor of the model in the layout of the file."""
    if architecture.permuted and name.endswith("q_proj.weight"):
        return permuted(weight, config.num_attention_heads)
    if architecture.permuted and name.endswith("k_proj.weight"):
        return permuted(weight, config.num_key_value_heads)
    return weight
