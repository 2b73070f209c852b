"""The command by which vLLM serves what was trained, or why it cannot: of a folder, or of an adapter beside its base.

    serve_model("runs/mine/dpo/model")                  # "vllm serve runs/mine/dpo/model"
    serve_adapter("ada/base", "out", config, files)     # "vllm serve ada/base --enable-lora --max-lora-rank 16 ..."

Rules of vLLM 0.32, each tried on a server (tests/vllm/test_exports.py) or read in its `lora/peft_helper.py`.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What `--max-lora-rank` may be: any other number ends the server before it starts."""
PLAIN_STARTS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
"""`init_lora_weights` that leave the base as it is; the others change its weights when `peft` loads the adapter."""
UNSERVED: Mapping[str, str] = {
    "use_dora": "DoRA",
    "lora_bias": "the bias of a LoRA",
    "alora_invocation_tokens": "activated LoRA",
    "layer_replication": "replicated layers",
    "use_bdlora": "block-diagonal LoRA",
    "use_qalora": "QALoRA",
    "modules_to_save": "whole modules trained beside an adapter",
    "trainable_token_indices": "rows of the vocabulary trained beside an adapter",
}
"""Keys of an adapter_config.json, and what they ask."""


@dataclass(frozen=True, slots=True)
class Served:
    """Served("vllm serve out", None); Served(None, "vLLM serves no DoRA")"""

    command: str | None
    why_not: str | None = None


def serve_model(name: str, *, dtype: str | None = None) -> str:
    """A whole model. The template, the stops and the proposed sampling are read from its folder.

    Args:
        dtype: of the weights in the folder. vLLM rounds fp32 to bf16 where nobody says otherwise.
    """
    return f"vllm serve {shlex.quote(name)}" + (" --dtype float32" if dtype == "float32" else "")


def serve_adapter(base: str, name: str, config: Mapping[str, Any], files: Collection[str] = ()) -> Served:
    """An adapter, under the name `mine`, beside its base.

    Args:
        config: its adapter_config.json.
        files: names in its folder, where `name` is one: vLLM reads templates and stops of the base's folder alone, so
            those that the adapter was trained with are named.
    """
    if (why := not_served(config)) is not None:
        return Served(None, f"vLLM serves no {why}: fold the adapter in with `posttrain export --to merged`")
    words = ["vllm", "serve", base, "--enable-lora", "--max-lora-rank", str(_room(config))]
    words += ["--lora-modules", f"mine={name}"]
    if "chat_template.jinja" in files:
        words += ["--chat-template", f"{name}/chat_template.jinja"]
    if "generation_config.json" in files:
        words += ["--generation-config", name]
    return Served(shlex.join(words))


def not_served(config: Mapping[str, Any]) -> str | None:
    """What of an adapter vLLM does not compute, in words; None where it serves it."""
    if (kind := str(config.get("peft_type"))) != "LORA":
        return f"adapters of the kind {kind}"
    if (start := config.get("init_lora_weights", True)) not in (True, False, None, *PLAIN_STARTS):
        return f"adapter that began as {start}"
    if config.get("bias", "none") != "none":
        return "biases trained beside an adapter"
    if (rank := _rank(config)) > RANKS[-1]:
        return f"rank of {rank} (the largest is {RANKS[-1]})"
    return next((text for key, text in UNSERVED.items() if config.get(key)), None)


def _rank(config: Mapping[str, Any]) -> int:
    """The largest of any layer."""
    return max([int(config.get("r") or 1), *(int(rank) for rank in (config.get("rank_pattern") or {}).values())])


def _room(config: Mapping[str, Any]) -> int:
    """The least that vLLM takes for the adapter's rank: 12 -> 16."""
    return next(rank for rank in RANKS if rank >= _rank(config))
