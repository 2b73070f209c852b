"""Commands of vLLM: ranks that it takes, adapters that it does not compute, paths that a shell reads as one word."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from posttrain.runs.vllm_commands import serve_adapter, serve_model

LORA: dict[str, Any] = {
    "peft_type": "LORA",
    "r": 16,
    "bias": "none",
    "init_lora_weights": True,
    "modules_to_save": None,
}


@pytest.mark.parametrize(("rank", "room"), [(1, 8), (8, 8), (12, 16), (16, 16), (33, 64), (129, 256), (512, 512)])
def test_the_room_for_a_rank_is_one_of_vllm_s_own(rank: int, room: int) -> None:
    command = serve_adapter("ada/base", "out", {**LORA, "r": rank}).command
    assert command == f"vllm serve ada/base --enable-lora --max-lora-rank {room} --lora-modules mine=out"


def test_the_largest_rank_of_a_layer_decides() -> None:
    command = serve_adapter("ada/base", "out", {**LORA, "rank_pattern": {"q_proj": 40}}).command
    assert command is not None and "--max-lora-rank 64 " in command


def test_an_adapter_s_own_template_and_stops_are_named() -> None:
    files = {"chat_template.jinja", "generation_config.json", "adapter_model.safetensors"}
    command = serve_adapter("a b", "my out", LORA, files).command
    assert command is not None
    assert shlex.split(command)[2:] == [
        *("a b", "--enable-lora", "--max-lora-rank", "16", "--lora-modules", "mine=my out"),
        *("--chat-template", "my out/chat_template.jinja", "--generation-config", "my out"),
    ]


@pytest.mark.parametrize(("change", "why"), [
    ({"peft_type": "IA3"}, "IA3"),
    ({"peft_type": "ADALORA"}, "ADALORA"),
    ({"use_dora": True}, "DoRA"),
    ({"init_lora_weights": "pissa"}, "pissa"),
    ({"bias": "lora_only"}, "biases"),
    ({"r": 513}, "rank of 513"),
    ({"modules_to_save": ["lm_head"]}, "whole modules"),
    ({"trainable_token_indices": {"embed_tokens": [3]}}, "rows of the vocabulary"),
])  # fmt: skip
def test_what_vllm_does_not_compute_has_no_command(change: dict[str, Any], why: str) -> None:
    served = serve_adapter("ada/base", "out", {**LORA, **change})
    assert served.command is None and served.why_not is not None
    assert why in served.why_not and "posttrain export --to merged" in served.why_not


def test_fp32_is_served_as_such_and_a_path_is_one_word() -> None:
    assert serve_model("out") == serve_model("out", dtype="bfloat16") == "vllm serve out"
    assert serve_model("my out", dtype="float32") == "vllm serve 'my out' --dtype float32"
