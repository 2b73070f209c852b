"""Two folders whose configs differ only in fields that must not matter train alike: same weights, same gradient.

A model's config has fields that no formula of a method knows of and that change a gradient all the same: the pad
token's id (its embedding gets none), dropout, layer drop, a router's noise, flags for caches and further outputs.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from peft import LoraConfig, TrainableTokensConfig, get_peft_model
from torch import Tensor, nn

from posttrain.data.trees import collate
from posttrain.models.tree.every_token import count_every_token
from posttrain.models.tree.heads import ScoreModel, with_head
from posttrain.models.tree.logprobs import Policy
from posttrain.models.tree.value import value_model
from tests.families import VOCAB, family_config, family_model, noisy_config
from tests.fixtures import make_tree, random_trees

FAMILIES = (
    *("llama", "gpt2", "opt", "bloom", "gemma", "gemma2", "gemma3_text", "mistral", "qwen2", "qwen3", "phi", "phi3"),
    *("gpt_neox", "gpt_bigcode", "starcoder2", "stablelm", "falcon", "mpt", "olmo2", "cohere", "granite", "glm4"),
    *("bert", "bert-generation", "electra", "xglm", "biogpt", "bart", "mbart", "pegasus", "marian", "blenderbot"),
    *(
        "mixtral",
        "qwen2_moe",
        "qwen3_moe",
        "olmoe",
        "granitemoe",
        "phimoe",
        "gpt_oss",
        "jetmoe",
        "dbrx",
        "ernie4_5_moe",
    ),
    *("mamba", "rwkv", "doge", "smollm3", "exaone4", "arcee"),
)
STOP = 2
"""The token that ends every branch below and stands inside one prompt; also the pad token, in one of two configs."""
TREES = [
    make_tree([1, 70, STOP, 71], [52, 9, STOP], [53, 54, 9, 9, STOP]),
    make_tree([1, 60], [STOP, 55, STOP]),
    *random_trees(1, vocab=VOCAB, branches=2),
]


def gradient(policy: Any, path: str = "padded") -> dict[str, Tensor]:
    values, _ = policy.compared(collate(TREES), path)
    named = [(name, p) for name, p in policy.model.named_parameters() if p.requires_grad]
    parts = torch.autograd.grad(values.sum(), [p for _, p in named], allow_unused=True, materialize_grads=True)
    return {name: part for (name, _), part in zip(named, parts, strict=True)}


@cache
def plain_gradient(family: str) -> dict[str, Tensor]:
    """Of the family's model as it is, which many tests compare with."""
    return gradient(Policy(family_model(family), "padded"))


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, expected in one.items():
        torch.testing.assert_close(other[name], expected, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(
    "family", [name for name in FAMILIES if name != "xglm"]
)  # blanks that row of its position table
def test_the_pad_id_changes_no_gradient(family: str) -> None:
    padded = gradient(Policy(family_model(family, pad_token_id=STOP), "padded"))
    assert_equal(plain_gradient(family), padded)
    model = family_model(family)
    tokens = model.get_input_embeddings().weight.shape
    embeddings = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    assert not any(m.max_norm or m.scale_grad_by_freq for m in embeddings)  # torch's other two ways to bend it
    rows = [part for part in padded.values() if part.shape == tokens]
    assert any(part[STOP].any() for part in rows)  # the stop token's own embedding moves


@pytest.mark.parametrize("family", FAMILIES)
def test_noise_in_the_config_changes_no_gradient(family: str) -> None:
    plain = plain_gradient(family)
    if family == "phimoe":  # of its routing, in eval mode too: no noise
        plain = gradient(Policy(family_model(family, router_jitter_noise=0.1), "padded"))
    assert_equal(plain, gradient(Policy(family_model(family, noisy_config(family)), "padded")))


FLAGS: tuple[dict[str, Any], ...] = (
    {"use_cache": False},
    {"output_router_logits": True},
    {"output_hidden_states": True},
    {"output_attentions": True},
    {"gradient_checkpointing": True},
    {"eos_token_id": 7, "bos_token_id": 8},
)


@pytest.mark.parametrize("path", ["padded", "tree"])
@pytest.mark.parametrize("flags", FLAGS, ids=lambda flags: next(iter(flags)))
@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "qwen3_moe", "gemma2"])
def test_flags_of_the_config_change_no_gradient(family: str, flags: dict[str, Any], path: str) -> None:
    config = family_config(family)
    for name, value in flags.items():
        setattr(config, name, value)
    assert_equal(
        plain_gradient(family),
        gradient(Policy(family_model(family, config), path)),  # type: ignore[arg-type]
    )


# ---------------------------------------------------------------- whatever trains


def models_with_pad() -> tuple[Any, Any]:
    return family_model("llama"), family_model("llama", pad_token_id=STOP)


@pytest.mark.parametrize("path", ["padded", "tree"])
def test_on_both_paths(path: str) -> None:
    assert_equal(*(gradient(Policy(model, "tree"), path) for model in models_with_pad()))


def test_tied_embeddings() -> None:
    tied = (family_model("llama", tie_word_embeddings=True, pad_token_id=pad) for pad in (None, STOP))
    assert_equal(*(gradient(Policy(model)) for model in tied))


def test_reward_models_and_critics() -> None:
    heads = []
    for pad, model in zip((None, STOP), models_with_pad(), strict=True):
        scorer = with_head(model, init="normal", pad_token_id=pad)
        heads.append(gradient(ScoreModel(scorer)))
        assert scorer.config.pad_token_id == pad  # which other tools find the last token by
    assert_equal(*heads)
    critics = []
    for model in models_with_pad():
        critic = value_model(Policy(model))
        nn.init.ones_(critic.model.score.weight)
        critics.append(gradient(critic))
    assert_equal(*critics)


def adapters() -> list[Any]:
    saved = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens"], init_lora_weights=False)
    low_rank = LoraConfig(r=2, target_modules=["embed_tokens", "q_proj"], init_lora_weights=False)
    some = TrainableTokensConfig(token_indices=[STOP, 9], target_modules=["embed_tokens"], init_weights=False)
    return [saved, low_rank, some]


@pytest.mark.parametrize("config", adapters(), ids=["modules_to_save", "lora on embeddings", "trainable tokens"])
def test_adapters_of_embeddings(config: Any) -> None:
    found = []
    for model in models_with_pad():
        torch.manual_seed(0)
        found.append(gradient(Policy(get_peft_model(model, config))))
    assert_equal(*found)
    moved = [part for name, part in found[1].items() if "embed" in name or "token" in name]
    assert moved and all(part.any() for part in moved)


def test_the_config_that_is_exported_stays() -> None:
    model = family_model("llama", pad_token_id=STOP)
    Policy(model)
    assert model.config.pad_token_id == STOP and model.model.embed_tokens.padding_idx is None


def test_an_embedding_that_counts_from_its_pad_id_keeps_it() -> None:
    class Positions(nn.Embedding):
        def forward(self, length: int) -> Tensor:
            return super().forward(torch.arange(length) + self.padding_idx)

    positions, words = Positions(8, 4, padding_idx=1), nn.Embedding(8, 4, padding_idx=1)
    count_every_token(nn.ModuleList([positions, words]))
    assert positions.padding_idx == 1 and words.padding_idx is None
