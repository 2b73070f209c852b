"""Which shape a name stands for: a folder's config.json, one in the hub's cache, or a published one of this table.

    found = config_of("qwen3-8b")         # FoundConfig(config, "the table of published architectures: Qwen/Qwen3-8B")

The table lets a plan be made where no model is and no network: the numbers are those of the models' own config.json.
Tests hold them against the parameter counts that the models' pages give.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from posttrain.errors import ModelError, did_you_mean, nearest
from posttrain.models.adapters.facts import ADAPTER_CONFIG
from posttrain.models.folders.catalogue import CATALOGUE, folder_of
from posttrain.models.folders.hub import looks_like_hub_id

_SMOLLM2 = {"model_type": "llama", "vocab_size": 49_152, "tie_word_embeddings": True}
_LLAMA3 = {"model_type": "llama", "vocab_size": 128_256, "num_key_value_heads": 8, "tie_word_embeddings": False}
_QWEN25 = {"model_type": "qwen2", "vocab_size": 152_064, "tie_word_embeddings": False}
_QWEN3 = {"model_type": "qwen3", "vocab_size": 151_936, "head_dim": 128, "num_key_value_heads": 8}
_QWEN3_MOE = {
    "model_type": "qwen3_moe",
    "vocab_size": 151_936,
    "head_dim": 128,
    "num_key_value_heads": 4,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "tie_word_embeddings": False,
}
_GEMMA2 = {"model_type": "gemma2", "vocab_size": 256_000, "tie_word_embeddings": True}


def _shape(base: Mapping[str, Any], hub: str, width: int, hidden: int, layers: int, heads: int, **more: Any) -> Any:
    sizes = {"hidden_size": width, "intermediate_size": hidden, "num_hidden_layers": layers}
    return hub, {**base, **sizes, "num_attention_heads": heads, **more}


ARCHITECTURES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "smollm2-135m": _shape(_SMOLLM2, "HuggingFaceTB/SmolLM2-135M", 576, 1536, 30, 9, num_key_value_heads=3),
    "smollm2-360m": _shape(_SMOLLM2, "HuggingFaceTB/SmolLM2-360M", 960, 2560, 32, 15, num_key_value_heads=5),
    "smollm2-1.7b": _shape(_SMOLLM2, "HuggingFaceTB/SmolLM2-1.7B", 2048, 8192, 24, 32, num_key_value_heads=32),
    "llama-3.2-1b": _shape(
        _LLAMA3, "meta-llama/Llama-3.2-1B", 2048, 8192, 16, 32, head_dim=64, tie_word_embeddings=True
    ),
    "llama-3.2-3b": _shape(
        _LLAMA3, "meta-llama/Llama-3.2-3B", 3072, 8192, 28, 24, head_dim=128, tie_word_embeddings=True
    ),
    "llama-3.1-8b": _shape(_LLAMA3, "meta-llama/Llama-3.1-8B", 4096, 14_336, 32, 32),
    "llama-3.1-70b": _shape(_LLAMA3, "meta-llama/Llama-3.1-70B", 8192, 28_672, 80, 64),
    "llama-3.1-405b": _shape(_LLAMA3, "meta-llama/Llama-3.1-405B", 16_384, 53_248, 126, 128),
    "mistral-7b": _shape(
        {"model_type": "mistral", "vocab_size": 32_768, "tie_word_embeddings": False},
        *("mistralai/Mistral-7B-v0.3", 4096, 14_336, 32, 32),
        num_key_value_heads=8,
    ),
    "gemma-2-2b": _shape(_GEMMA2, "google/gemma-2-2b", 2304, 9216, 26, 8, num_key_value_heads=4, head_dim=256),
    "gemma-2-9b": _shape(_GEMMA2, "google/gemma-2-9b", 3584, 14_336, 42, 16, num_key_value_heads=8, head_dim=256),
    "gemma-2-27b": _shape(_GEMMA2, "google/gemma-2-27b", 4608, 36_864, 46, 32, num_key_value_heads=16, head_dim=128),
    "qwen2.5-0.5b": _shape(
        _QWEN25,
        *("Qwen/Qwen2.5-0.5B", 896, 4864, 24, 14),
        num_key_value_heads=2,
        vocab_size=151_936,
        tie_word_embeddings=True,
    ),
    "qwen2.5-1.5b": _shape(
        _QWEN25,
        *("Qwen/Qwen2.5-1.5B", 1536, 8960, 28, 12),
        num_key_value_heads=2,
        vocab_size=151_936,
        tie_word_embeddings=True,
    ),
    "qwen2.5-3b": _shape(
        _QWEN25,
        *("Qwen/Qwen2.5-3B", 2048, 11_008, 36, 16),
        num_key_value_heads=2,
        vocab_size=151_936,
        tie_word_embeddings=True,
    ),
    "qwen2.5-7b": _shape(_QWEN25, "Qwen/Qwen2.5-7B", 3584, 18_944, 28, 28, num_key_value_heads=4),
    "qwen2.5-14b": _shape(_QWEN25, "Qwen/Qwen2.5-14B", 5120, 13_824, 48, 40, num_key_value_heads=8),
    "qwen2.5-32b": _shape(_QWEN25, "Qwen/Qwen2.5-32B", 5120, 27_648, 64, 40, num_key_value_heads=8),
    "qwen2.5-72b": _shape(_QWEN25, "Qwen/Qwen2.5-72B", 8192, 29_568, 80, 64, num_key_value_heads=8),
    "qwen3-0.6b": _shape(_QWEN3, "Qwen/Qwen3-0.6B", 1024, 3072, 28, 16, tie_word_embeddings=True),
    "qwen3-1.7b": _shape(_QWEN3, "Qwen/Qwen3-1.7B", 2048, 6144, 28, 16, tie_word_embeddings=True),
    "qwen3-4b": _shape(_QWEN3, "Qwen/Qwen3-4B", 2560, 9728, 36, 32, tie_word_embeddings=True),
    "qwen3-8b": _shape(_QWEN3, "Qwen/Qwen3-8B", 4096, 12_288, 36, 32, tie_word_embeddings=False),
    "qwen3-14b": _shape(_QWEN3, "Qwen/Qwen3-14B", 5120, 17_408, 40, 40, tie_word_embeddings=False),
    "qwen3-32b": _shape(_QWEN3, "Qwen/Qwen3-32B", 5120, 25_600, 64, 64, tie_word_embeddings=False),
    "qwen3-30b-a3b": _shape(_QWEN3_MOE, "Qwen/Qwen3-30B-A3B", 2048, 6144, 48, 32, moe_intermediate_size=768),
    "qwen3-235b-a22b": _shape(_QWEN3_MOE, "Qwen/Qwen3-235B-A22B", 4096, 12_288, 94, 64, moe_intermediate_size=1536),
}
"""Name -> (the hub id whose config.json it is, its keys)."""

TWINS: Mapping[str, str] = {"smollm2-135m-instruct": "smollm2-135m"}
"""Names of the catalogue whose files may not be here -> the same shape in the table."""


@dataclass(frozen=True, slots=True)
class FoundConfig:
    """FoundConfig(config, "runs/mine/sft/model/config.json"); `said` is where the shape was read."""

    config: PreTrainedConfig
    said: str


def config_of(name: str) -> FoundConfig:
    """The shape of a model: by catalogue name, folder, name of the table, or hub id in the hub's cache.

    No weight is read, nothing is fetched, and a folder's own Python files are not run.

    Raises:
        ModelError: nothing here has this name, the nearest is given; or there is no config.json that can be read.
    """
    path = Path(name).expanduser()
    if name in CATALOGUE:
        folder = folder_of(name)
        return _in_folder(folder) if (folder / "config.json").is_file() else _in_table(TWINS[name])
    if path.is_dir():
        return _in_folder(path)
    if name.lower() in ARCHITECTURES:
        return _in_table(name.lower())
    if looks_like_hub_id(name):
        return _in_cache(name)
    near = nearest(name, [*ARCHITECTURES, *CATALOGUE])
    raise ModelError(
        f"there is no model `{name}` to plan for",
        expected="a catalogue name, a folder, a hub id that is in the cache, or one of " + ", ".join(ARCHITECTURES),
        remedy=did_you_mean(near) if near else "give a folder with a config.json, or a name of the table",
    )


def _in_table(name: str) -> FoundConfig:
    hub, keys = ARCHITECTURES[name]
    keys = {"pad_token_id": 0, **keys}  # some classes take a default beyond a small vocabulary
    config = AutoConfig.for_model(**keys)
    return FoundConfig(config, f"the table of published architectures: {hub}")


def _in_folder(folder: Path) -> FoundConfig:
    if (folder / ADAPTER_CONFIG).is_file():
        base = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
        if not base:
            raise ModelError(
                "the adapter does not name its base",
                where=folder / ADAPTER_CONFIG,
                remedy="plan with the base model's folder: `model=FOLDER`",
            )
        return config_of(str(base))
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            "the folder has no config.json that can be read",
            where=folder,
            found=str(error).splitlines()[0],
            expected="config.json of an architecture that transformers has",
            remedy="give the folder of a whole model; of a GGUF file, the shape of its original",
        ) from error
    return FoundConfig(config, str(folder / "config.json"))


def _in_cache(hub_id: str) -> FoundConfig:
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(hub_id, "config.json")
    if isinstance(cached, str):
        return _in_folder(Path(cached).parent)
    same = [name for name, (hub, _) in ARCHITECTURES.items() if hub_id.lower().startswith(hub.lower())]
    known = max(same, key=len, default=None)
    raise ModelError(
        "the model's config.json is not on this machine, and a plan fetches nothing",
        where=hub_id,
        found="nothing in the hub's cache",
        remedy=f"write `model={known}`: the same shape stands in the table"
        if known
        else "fetch its config.json once (`hf download ID config.json`), or write a model of the same shape: "
        + ", ".join(ARCHITECTURES),
    )
