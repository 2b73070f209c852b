"""Names to shapes: cards, published architectures, meshes, rows, and what is counted of a model."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoConfig

from posttrain.config.adapters import IA3, AdaLoRA, AdapterSettings, LoRA, PromptTuning, QLoRA
from posttrain.config.stages import DPO, SFT, Preference, Reward
from posttrain.errors import ConfigError, ModelError, UnknownKeyError
from posttrain.planning.architectures import config_of
from posttrain.planning.cards import CARDS, card_named, this_cpu
from posttrain.planning.mesh import Mesh, mesh_of
from posttrain.planning.rows import Shape, rows_of
from posttrain.planning.skeleton import facts_of, is_sparse
from posttrain.rollout.native import NativeEngine

TINY = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}


# ---------------------------------------------------------------- architectures

PUBLISHED = {
    "smollm2-135m": 134_515_008,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "mistral-7b": 7_248_023_552,
    "gemma-2-2b": 2_614_341_888,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-8b": 8_190_735_360,
    "qwen3-30b-a3b": 30_532_122_624,
}
"""As the models' pages on the hub count their tensors."""


@pytest.mark.parametrize(("name", "parameters"), PUBLISHED.items())
def test_a_published_shape_has_its_published_size(name: str, parameters: int) -> None:
    assert facts_of(config_of(name).config, None, "policy").total == parameters


def test_a_mixture_of_experts_meets_a_token_with_few() -> None:
    """Qwen3-30B-A3B: 3.35 billion of 30.5, its page says 3.3."""
    config = config_of("qwen3-30b-a3b").config
    assert is_sparse(config) and not is_sparse(config_of("qwen3-8b").config)
    assert facts_of(config, None, "policy").active == pytest.approx(3.3e9, rel=0.03)


def test_what_is_found_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert config_of("embedded").said.endswith("embedded/model/config.json")
    assert config_of("QWEN3-8B").said == "the table of published architectures: Qwen/Qwen3-8B"
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path))  # the catalogue's model is not here, its twin's shape is
    assert config_of("smollm2-135m-instruct").said.endswith("HuggingFaceTB/SmolLM2-135M")
    AutoConfig.for_model(**TINY).save_pretrained(tmp_path / "mine")
    assert config_of(str(tmp_path / "mine")).config.hidden_size == 8


def test_an_adapter_s_folder_has_the_shape_of_its_base(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "qwen3-0.6b"}')
    assert config_of(str(tmp_path)).config.hidden_size == 1024
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="does not name its base"):
        config_of(str(tmp_path))


def test_names_that_nothing_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(ModelError, match="did you mean `qwen3-8b`"):
        config_of("qwen3-9b")
    with pytest.raises(ModelError, match="write `model=qwen3-8b`"):
        config_of("Qwen/Qwen3-8B")
    with pytest.raises(ModelError, match="fetches nothing"):
        config_of("some/model")
    with pytest.raises(ModelError, match="has no config"):
        config_of(str(tmp_path))


# ---------------------------------------------------------------- counts


def test_a_tiny_llama_counted_by_hand() -> None:
    """A layer: q 8x8, k and v 8x4, o 8x8, three of 8x12, two norms of 8: 64 + 32 + 32 + 64 + 288 + 16 = 496."""
    untied = facts_of(AutoConfig.for_model(**TINY, tie_word_embeddings=False), None, "policy")
    assert (untied.layer, untied.layers, untied.root) == (496, 3, 800 + 800 + 8)
    assert untied.total == untied.trained == untied.active == 3 * 496 + 1608
    assert untied.multiplied == 3 * 480 and untied.projection == 800 and untied.largest == 800
    assert untied.kv_values() == 2 * 3 * 2 * 2
    tied = facts_of(AutoConfig.for_model(**TINY, tie_word_embeddings=True), None, "policy")
    assert tied.total == untied.total - 800 and tied.projection == 800
    reward = facts_of(AutoConfig.for_model(**TINY, tie_word_embeddings=False), None, "reward")
    assert reward.total == untied.total - 800 + 8 and reward.projection == 0


LOW = sum(2 * (a + b) for a, b in ((8, 8), (8, 4), (8, 4), (8, 8), (8, 12), (8, 12), (12, 8)))


@pytest.mark.parametrize(
    ("adapter", "trained"),
    [
        (LoRA(rank=2), 3 * LOW),
        (QLoRA(rank=2), 3 * LOW),
        (LoRA(rank=2, dora=True), 3 * (LOW + 8 + 4 + 4 + 8 + 12 + 12 + 8)),
        (AdaLoRA(rank=1, initial_rank=2), 3 * (LOW + 7 * 2)),
        (IA3(), 3 * (4 + 4 + 12)),
        (PromptTuning(tokens=5), 5 * 8),
    ],
    ids=lambda value: getattr(value, "kind", None),
)
def test_what_trains_of_an_adapter(adapter: AdapterSettings, trained: int) -> None:
    facts = facts_of(AutoConfig.for_model(**TINY), adapter, "policy")
    assert facts.trained == trained and facts.virtual == adapter.virtual_tokens
    assert facts.quantised == 3 * 480


def test_a_target_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="no module of this model has this name"):
        facts_of(AutoConfig.for_model(**TINY), LoRA(targets=["qproj"]), "policy")


# ---------------------------------------------------------------- cards and meshes


def test_every_card_is_whole() -> None:
    for name, card in CARDS.items():
        assert card.name == name and card.source and (card.fp32 < card.peak("bf16") or name == "t4")
        assert 1e9 < card.memory < 1e12 and 1e11 < card.bandwidth < 1e13 and card.link < card.bandwidth
    assert card_named("H100-80GB").peak("bf16") == 989e12 and card_named("t4").peak("bf16") == 8.1e12
    with pytest.raises(UnknownKeyError, match="h100-80gb"):
        card_named("h100-80")


def test_this_machine_is_a_card_too() -> None:
    cpu = this_cpu()
    assert cpu.device == "cpu" and 1e8 < cpu.fp32 < 1e14 and 1e8 < cpu.bandwidth < 1e13 and cpu.bf16 is None


@pytest.mark.parametrize(
    ("options", "mesh"),
    [
        ({}, Mesh()),
        ({"gpus": 8}, Mesh(8, 1, 1)),
        ({"gpus": 64, "nodes": 8}, Mesh(8, 8, 8)),
        ({"nodes": 2}, Mesh(1, 2, 2)),
        ({"gpus": 4, "device": "cpu"}, Mesh(1, 4, 1)),
        ({"text": "shard=8,replicate=4", "nodes": 4}, Mesh(8, 4, 4)),
        ({"text": "replicate=2", "gpus": 8}, Mesh(4, 2, 1)),
        ({"text": " shard=16 ", "gpus": 16, "nodes": 2}, Mesh(16, 1, 2)),
    ],
)
def test_a_mesh(options: dict[str, object], mesh: Mesh) -> None:
    assert mesh_of(**options) == mesh  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gpus": 10, "nodes": 4}, "--gpus 12"),
        ({"gpus": 0}, "less than one card"),
        ({"text": "shard=3", "gpus": 8}, "does not divide"),
        ({"text": "shard=3,replicate=3", "gpus": 8}, "3 x 3 = 9"),
        ({"text": "shards=8"}, "cannot be read"),
        ({"text": "shard=8,shard=4"}, "cannot be read"),
        ({"text": "shard=0"}, "cannot be read"),
    ],
)
def test_a_mesh_that_is_none(options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        mesh_of(**options)  # type: ignore[arg-type]


# ---------------------------------------------------------------- rows


def test_the_keys_that_a_tree_s_tokens_see() -> None:
    """A prompt of 2: 1 + 2. An answer of 1 sees both and itself: 3. One of 2: 3 + 4."""
    assert Shape(2, (1,)).pairs == 3 + 3
    assert Shape(2, (1, 2)).pairs == 3 + 3 + 7 and Shape(2, (1, 2)).tokens == 5
    assert Shape(2, (1, 2)).tree().num_tokens == 5


def test_where_no_rows_are_max_length_is_taken() -> None:
    assert rows_of(SFT(max_length=1000)).longest == Shape(500, (500,))
    assert rows_of(DPO(max_length=1000)).longest == Shape(500, (500, 500))
    assert rows_of(Reward(max_length=1000)).longest == Shape(500, (500, 500))
    assert rows_of(Preference("kto", max_length=10)).longest.responses == (5, 5)
    assert rows_of(SFT(max_length=None)).longest.tokens == 2048
    asked = rows_of(SFT(max_length=1000), tokens=300)
    assert asked.longest == Shape(150, (150,)) and asked.said.startswith("--tokens")
    assert "max_length" in rows_of(SFT()).said
    with pytest.raises(ConfigError):
        rows_of(SFT(), tokens=1)


def test_what_the_plan_repeats_of_the_engine_is_the_engine_s() -> None:
    """Defaults that stand in a signature, which no import carries."""
    import inspect

    from posttrain.planning.memory import PREFILL_TOKENS

    assert inspect.signature(NativeEngine).parameters["prefill_tokens"].default == PREFILL_TOKENS
