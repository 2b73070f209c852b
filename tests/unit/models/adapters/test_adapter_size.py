"""A rank that no layer can have, and an adapter that no memory holds, are refused before they are made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.config.adapters import AdaLoRA, LoRA
from posttrain.errors import ConfigError, MemoryLimitError
from posttrain.models.adapters import kinds
from posttrain.models.adapters.kinds import add_adapter
from posttrain.models.adapters.size import require_room, require_size
from posttrain.training.checks import before_loading
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
