"""A rank that no layer can have, and an adapter that no memory holds, are refused before they are made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.config import SFT
from posttrain.config.adapters import AdaLoRA, LoRA, QLoRA
from posttrain.errors import ConfigError, MemoryLimitError
from posttrain.models.adapters import kinds, size
from posttrain.models.adapters.kinds import add_adapter
from posttrain.models.adapters.size import require_room, require_size
from posttrain.runs.progress import Progress
from posttrain.training.checks import before_loading
from posttrain.training.stages import policy
from tests.fixtures import tiny_model


def never(*_: Any) -> Any:
    raise AssertionError("the adapter was made")


@pytest.mark.parametrize(
    ("adapter", "key"), [(LoRA(rank=1_000_000), "rank"), (AdaLoRA(rank=5, initial_rank=5_000), "initial_rank")]
)
def test_a_rank_above_a_layers_is_refused_by_name(adapter: Any, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "get_peft_model", never)
    with pytest.raises(ConfigError, match="higher than the rank that a layer can have") as caught:
        add_adapter(tiny_model(), adapter)
    assert caught.value.where == f"adapter.{key}" and "proj is " in str(caught.value.found)
    assert f"write `{key}: " in caught.value.remedy


def test_the_highest_rank_that_a_layer_has_is_taken() -> None:
    model = tiny_model()
    smallest = min(min(m.weight.shape) for n, m in model.named_modules() if n.endswith("k_proj"))
    assert add_adapter(model, LoRA(rank=smallest, targets=["k_proj"])).peft_config["default"].r == smallest
    with pytest.raises(ConfigError):
        add_adapter(tiny_model(), LoRA(rank=smallest + 1, targets=["k_proj"]))


def test_the_few_outputs_of_a_head_or_a_router_limit_no_other_layer() -> None:
    model = tiny_model()
    widest = max(min(m.weight.shape) for n, m in model.named_modules() if n.endswith("_proj"))
    model.score = torch.nn.Linear(32, 1)
    require_size(model, LoRA(rank=min(16, widest)))
    with pytest.raises(ConfigError, match="higher than the rank"):
        require_size(model, LoRA(rank=2, targets=["score"]))


def test_a_head_that_was_named_limits_those_beside_it() -> None:
    model = tiny_model()
    model.score = torch.nn.Linear(32, 1)
    with pytest.raises(ConfigError, match="higher than the rank") as caught:
        require_size(model, LoRA(rank=2, targets=["score", "k_proj"]))
    assert "score is 1 x 32" in str(caught.value.found)


def test_every_kind_of_layer_has_its_own_sides() -> None:
    model = tiny_model("gpt2")
    sides = {"c_attn": (32, 96), "wte": (97, 32)}  # a Conv1D keeps its weight the other way round
    for name, both in sides.items():
        require_size(model, LoRA(rank=32, targets=[name]))
        with pytest.raises(ConfigError) as caught:
            require_size(model, LoRA(rank=33, targets=[name]))
        assert f"{name} is {both[0]} x {both[1]}" in str(caught.value.found)


def test_the_free_memory_is_asked_before_an_adapter_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "get_peft_model", never)
    monkeypatch.setattr(size, "available_bytes", lambda _: 1000)
    with pytest.raises(MemoryLimitError, match="the free memory does not hold the adapter"):
        add_adapter(tiny_model(), LoRA(rank=4))


def test_a_model_without_a_layer_is_left_to_peft() -> None:
    class Bare(torch.nn.Module):
        def get_output_embeddings(self) -> None:
            return None

    require_size(Bare(), LoRA(rank=4))


def test_an_adapter_larger_than_the_memory_is_refused_with_its_parts() -> None:
    sides = {"a": (1000, 500), "b": (1000, 500)}
    require_room(sides, 10, 480_000)  # 10 * 1500 * 2 parameters, 16 bytes each
    with pytest.raises(MemoryLimitError) as caught:
        require_room(sides, 10, 479_999)
    shown = str(caught.value)
    assert "30,000 parameters at rank 10 on 2 layers" in shown and "Adam moments" in shown and "gradients" in shown


def test_a_model_larger_than_the_memory_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path)
    parameters = before_loading.parameters_in(tmp_path)
    assert parameters == sum(p.numel() for p in model.parameters())
    device = torch.device("cpu")
    monkeypatch.setattr(before_loading, "available_bytes", lambda _: 4 * parameters)
    before_loading.require_room(tmp_path, LoRA(), device)
    with pytest.raises(MemoryLimitError) as caught:
        before_loading.require_room(tmp_path, None, device)
    assert "Adam moments" in str(caught.value) and "adapter: {rank: 16}" in caught.value.remedy
    # Four bits a weight, and nothing of the weights trains.
    monkeypatch.setattr(before_loading, "available_bytes", lambda _: parameters // 2)
    before_loading.require_room(tmp_path, QLoRA(bits=4), device)
    with pytest.raises(MemoryLimitError):
        before_loading.require_room(tmp_path, QLoRA(bits=8), device)
    # Whoever loads a torn file names it.
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    assert before_loading.parameters_in(tmp_path) == 0


def test_a_stage_asks_before_it_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_model().save_pretrained(tmp_path)
    monkeypatch.setattr(before_loading, "available_bytes", lambda _: 1000)
    monkeypatch.setattr(policy, "load", never)
    with pytest.raises(MemoryLimitError, match="the machine's memory does not hold the model"):
        policy.load_policy(SFT(), tmp_path, torch.device("cpu"), 0, Progress())
