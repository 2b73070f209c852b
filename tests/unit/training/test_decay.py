"""Weight decay pulls maps to zero and nothing else, whatever the shape of a parameter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from posttrain.config.adapters import AdaLoRA, LoRA
from posttrain.config.settings import OptimizerSettings, Schedule
from posttrain.models.adapters.kinds import add_adapter
from posttrain.models.tree.heads import with_head
from posttrain.training.decay import decays
from posttrain.training.optimizer import Optimizer
from tests.adapters import EVERY
from tests.fixtures import tiny_model

TINY = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def _trained(model: nn.Module) -> tuple[set[str], set[str]]:
    """(decayed, not decayed): the last word but `default` and `weight` of the parameters that train."""
    names: tuple[set[str], set[str]] = (set(), set())
    decayed = decays(model)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            words = [word for word in name.split(".") if word not in ("default", "weight") and not word.isdigit()]
            names[name not in decayed].add(words[-1])
    return names


KINDS = {
    "lora": ({"lora_A", "lora_B"}, set()),
    "dora": ({"lora_A", "lora_B"}, {"lora_magnitude_vector"}),
    "rslora": ({"lora_A", "lora_B"}, set()),
    "adalora": ({"lora_A", "lora_B"}, {"lora_E"}),
    "ia3": (set(), {"ia3_l"}),
    "oft": ({"oft_R"}, set()),
    "bottleneck": ({"bottleneck_down", "bottleneck_up"}, {"bias"}),
    "prefix": (set(), {"embedding"}),
    "prefix projected": ({"transform"}, {"embedding", "bias"}),
    "prompt": (set(), {"embedding"}),
    "p_tuning": ({"mlp_head"}, {"embedding", "bias"}),
}


@pytest.mark.parametrize("kind", EVERY)
def test_of_every_adapter(kind: str) -> None:
    decayed, kept = _trained(add_adapter(tiny_model(vocab=97), EVERY[kind]))
    if kind == "p_tuning lstm":
        assert {word.partition("_")[0] for word in kept} == {"bias", "embedding"}
        assert {word.partition("_")[0] for word in decayed} == {"weight", "mlp"}
    else:
        assert (decayed, kept) == KINDS[kind]


def test_a_factor_of_rank_one_is_a_map() -> None:
    for adapter in (LoRA(rank=1, targets=("embed_tokens", "q_proj")), AdaLoRA(rank=1, initial_rank=2)):
        model = add_adapter(tiny_model(vocab=97), adapter)
        decayed, kept = _trained(model)
        assert decayed and all("lora_" in word and word[-1] in "AB" for word in decayed)
        assert kept <= {"lora_E"}


FULL: dict[str, tuple[dict[str, Any], set[str]]] = {
    "gpt2": ({"n_embd": 32, "n_layer": 1, "n_head": 4, "vocab_size": 97}, set()),
    "llama": (TINY, set()),
    "cohere": ({**TINY, "use_qk_norm": True}, set()),  # norms of shape [heads, width]
    "gpt_oss": ({**TINY, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}, {"gate_up_proj", "router"}),
    "qwen3_moe": (
        {**TINY, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8},
        {"gate_up_proj", "down_proj", "gate"},
    ),
    "mamba": ({"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 1, "state_size": 4}, {"conv1d", "x_proj"}),
    "rwkv": ({"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2}, {"receptance"}),
}
NEVER = ("bias", "norm", "ln_", "embed", "wte", "wpe", "A_log", "sinks", "time_mix", "time_decay", "time_first", ".D")


@pytest.mark.parametrize("family", FULL)
def test_of_a_whole_model(family: str) -> None:
    settings, maps = FULL[family]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings))
    decayed = decays(model)
    wrong = [name for name in decayed if any(word in name for word in NEVER)]
    assert wrong == []
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2 and not any(word in name for word in NEVER):
            assert name in decayed
    assert maps <= _trained(model)[0]


def test_a_tied_head_goes_with_its_embedding_and_an_untied_one_decays() -> None:
    for tied in (True, False):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **TINY, tie_word_embeddings=tied))
        assert ("lm_head.weight" in decays(model)) is not tied
        assert "model.embed_tokens.weight" not in decays(model)


def test_a_reward_head_of_one_row_is_a_map() -> None:
    model: Any = with_head(tiny_model(vocab=97), ("reward",), seed=0)
    assert model.score.weight.shape[0] == 1
    assert "score.weight" in decays(model)


def test_a_mark_on_a_parameter_is_honoured() -> None:
    layer = nn.Linear(4, 4)
    assert decays(layer) == {"weight"}
    layer.weight._no_weight_decay = True  # type: ignore[assignment]
    assert decays(layer) == frozenset()


@pytest.mark.parametrize("kind", ["ia3", "adalora", "dora", "lora"])
def test_without_a_gradient_only_maps_move(kind: str) -> None:
    """100 updates at weight decay 0.1 pulled IA3's vectors from 1 to 0.97, though no gradient asked for it."""
    model = add_adapter(tiny_model(vocab=97), EVERY[kind])
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, p in trained.items():
            if "lora_E" in name:
                p.fill_(0.5)
    before = {name: p.detach().clone() for name, p in trained.items()}
    optimizer = Optimizer(
        model,
        OptimizerSettings(weight_decay=0.1),
        learning_rate=3e-3,
        schedule=Schedule(kind="constant", warmup_ratio=0.0),
        steps=100,
    )
    for step in range(20):
        for p in trained.values():
            p.grad = torch.zeros_like(p)
        optimizer.step(step)
    for name, p in trained.items():
        expected = (
            before[name] * (1 - 3e-3 * 0.1) ** 20 if any(f in name for f in ("lora_A", "lora_B")) else before[name]
        )
        torch.testing.assert_close(p.detach(), expected, rtol=1e-5, atol=1e-8)
