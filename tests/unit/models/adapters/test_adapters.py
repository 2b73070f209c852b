"""LoRA: the right modules, refused names, and whether an adapter is still what it was at its start."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from posttrain.errors import ConfigError, ModelError
from posttrain.models.adapters.kinds import LoRA, add_adapter, is_fresh, matching_modules, trainable_parameters
from tests.fixtures import tiny_model

LINEAR = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def last_names(modules: dict[str, Any]) -> set[str]:
    return {name.rsplit(".", 1)[-1] for name in modules}


def set_b(model: PeftModel, value: float) -> None:
    """Fill the factors that start at zero: B of linear layers, A of embeddings."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "lora_embedding_A" in name:
                parameter.fill_(value)


# ---------------------------------------------------------------- targets


def test_all_linear_leaves_the_output_projection_alone() -> None:
    model = tiny_model("llama")
    assert last_names(matching_modules(model, "all-linear")) == LINEAR
    adapted = add_adapter(model, LoRA(rank=2))
    trainable = {name.split(".lora_")[0] for name, p in adapted.named_parameters() if p.requires_grad}
    assert last_names(dict.fromkeys(trainable)) == LINEAR


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["q_proj", "v_proj"], {"q_proj", "v_proj"}),
        ("down_proj", {"down_proj"}),
        (r".*layers\.1\.mlp\.(up|gate)_proj", {"up_proj", "gate_proj"}),
        (["embed_tokens", "lm_head"], {"embed_tokens", "lm_head"}),
    ],
)
def test_targets_are_names_or_an_expression(targets: Any, expected: set[str]) -> None:
    model = tiny_model("llama")
    found = matching_modules(model, targets)
    assert last_names(found) == expected
    adapted = add_adapter(model, LoRA(rank=2, targets=targets))
    wrapped = {name.split(".lora_")[0].removeprefix("base_model.model.") for name, _ in adapted.named_parameters()}
    assert set(found) == wrapped & set(found)
    assert trainable_parameters(adapted).trainable > 0


def test_a_name_that_matches_nothing_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        add_adapter(tiny_model("gpt2"), LoRA(targets=["c_attn", "q_proj", "c_prj"]))
    text = str(caught.value)
    assert "'q_proj', 'c_prj'" in text and "c_proj" in text and "c_attn" not in text.split("expected")[0]


def test_an_expression_that_matches_nothing_or_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="no module of this model"):
        matching_modules(tiny_model("llama"), r".*\.query")
    with pytest.raises(ConfigError, match="not a regular expression"):
        matching_modules(tiny_model("llama"), r"(q_proj")


def test_layers_of_gpt2_store_their_weights_transposed_and_are_adapted_all_the_same() -> None:
    model = tiny_model("gpt2")
    ids = torch.tensor([[3, 5, 8]])
    before = model(ids).logits
    adapted = add_adapter(model, LoRA(rank=2))
    assert torch.equal(adapted(ids).logits, before)
    set_b(adapted, 0.1)
    assert not torch.allclose(adapted(ids).logits, before)


@pytest.mark.parametrize(
    "wrong", [{"rank": 0}, {"alpha": 0}, {"dropout": 1.0}, {"targets": []}, {"init": "zeros"}], ids=str
)
def test_values_out_of_range_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"LoRA: `{next(iter(wrong))}` has a "):
        LoRA(**wrong)


# ---------------------------------------------------------------- adding


def test_the_count_of_trainable_parameters_is_the_one_worked_out_by_hand() -> None:
    # q_proj of 2 layers, 32 -> 32: A 3 x 32 and B 32 x 3 each.
    model = tiny_model("llama")
    total = sum(p.numel() for p in model.parameters())
    count = trainable_parameters(add_adapter(model, LoRA(rank=3, targets=["q_proj"])))
    assert (count.trainable, count.total) == (2 * 2 * 3 * 32, total + 2 * 2 * 3 * 32)
    assert str(count).startswith("384 of ")


@pytest.mark.parametrize(("rslora", "scale"), [(False, 8.0), (True, 16.0)])
def test_the_scale_is_alpha_over_rank_or_over_its_root(rslora: bool, scale: float) -> None:
    adapted = add_adapter(tiny_model("llama"), LoRA(rank=4, alpha=32, targets=["q_proj"], rslora=rslora))
    layer = adapted.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    assert layer.scaling["default"] == scale


def test_an_adapter_has_a_random_stream_of_its_own() -> None:
    state = torch.get_rng_state()
    weights = [
        torch.cat(
            [p.flatten() for n, p in add_adapter(tiny_model(), LoRA(), seed=seed).named_parameters() if "lora_A" in n]
        )
        for seed in (0, 0, 1)
    ]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_a_second_adapter_is_refused() -> None:
    with pytest.raises(ModelError, match="carries an adapter already"):
        add_adapter(add_adapter(tiny_model(), LoRA()), LoRA())


# ---------------------------------------------------------------- fresh or not


@pytest.mark.parametrize(
    "lora",
    [
        LoRA(),
        LoRA(init="gaussian"),
        LoRA(dora=True),
        LoRA(rslora=True),
        LoRA(dropout=0.1),
        LoRA(targets="embed_tokens"),
    ],
    ids=lambda lora: str(lora)[:60],
)
def test_fresh_until_it_has_learnt_something(lora: LoRA) -> None:
    model = tiny_model()
    ids = torch.tensor([[3, 5, 8]])
    before = model(ids).logits
    adapted = add_adapter(model, lora)
    assert is_fresh(adapted)
    torch.testing.assert_close(adapted(ids).logits, before)
    set_b(adapted, 1e-6)
    assert not is_fresh(adapted)


def with_bias(model: Any) -> PeftModel:
    return get_peft_model(model, LoraConfig(target_modules=["q_proj"], bias="all", task_type="CAUSAL_LM"))


def with_copied_norm(model: Any) -> PeftModel:
    config = LoraConfig(target_modules=["q_proj"], modules_to_save=["norm"], task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def with_trained_copy(model: Any) -> PeftModel:
    adapted = with_copied_norm(model)
    with torch.no_grad():
        adapted.get_submodule("base_model.model.model.norm.modules_to_save.default").weight.add_(1e-3)
    return adapted


def with_trained_magnitude(model: Any) -> PeftModel:
    adapted = add_adapter(model, LoRA(dora=True))
    with torch.no_grad():
        next(p for n, p in adapted.named_parameters() if "magnitude" in n).mul_(1.01)
    return adapted


def merged_in_place(model: Any) -> PeftModel:
    adapted = add_adapter(model, LoRA())
    adapted.merge_adapter()
    return adapted


@pytest.mark.parametrize(
    ("make", "fresh"),
    [
        (with_copied_norm, True),
        (with_trained_copy, False),
        (with_bias, False),
        (with_trained_magnitude, False),
        (merged_in_place, False),
        (lambda model: model, False),
    ],
)
def test_what_else_the_start_may_consist_of(make: Callable[[Any], Any], fresh: bool) -> None:
    model = tiny_model("qwen2")  # has biases to train
    assert is_fresh(make(model)) is fresh
