"""A folder that ranks read in slices is the model that one process reads, and no process reads it whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.config.adapters import QLoRA
from posttrain.errors import ConfigError, ModelError
from posttrain.models.adapters.kinds import add_adapter
from posttrain.models.folders.loading import load
from posttrain.models.reward.folders import load_reward_folder
from posttrain.models.tree.heads import with_head
from tests.adapters import EVERY
from tests.families import family_model
from tests.fixtures import byte_tokenizer
from tests.ranks import ranks
from tests.unit.models.sharding.scenes import Scene, loaded_in_parts, peak_of_loading, reward_in_parts, sharding

TIED = {"tie_word_embeddings": True}


def save(folder: Path, family: str = "llama", **fields: Any) -> Path:
    tokenizer = byte_tokenizer()
    model = family_model(family, vocab_size=len(tokenizer), **fields)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def check(folder: Path, adapter: str | None, scene: Scene, note: str | None = None) -> None:
    alone = loaded_in_parts(folder, adapter, Scene(shard=1))
    for found in ranks(scene.ranks).run(loaded_in_parts, folder, adapter, scene):
        assert found.fingerprint == alone.fingerprint
        assert list(found.tensors) == list(alone.tensors)
        assert all(torch.equal(found.tensors[name], tensor) for name, tensor in alone.tensors.items())
        # Those that no file holds too, such as the angles of a rotary embedding.
        assert list(found.buffers) == list(alone.buffers)
        assert all(torch.equal(found.buffers[name], buffer) for name, buffer in alone.buffers.items())
        assert found.settings == alone.settings and found.fresh == alone.fresh
        torch.testing.assert_close(found.logprobs_N, alone.logprobs_N, rtol=0, atol=1e-5)
        in_slices = not any("reads the whole model" in notice for notice in found.notices)
        assert in_slices == (note is None)
        assert in_slices or any(note in notice for notice in found.notices if note)


@pytest.mark.parametrize(
    ("family", "fields", "scene"),
    [
        ("llama", TIED, Scene(shard=4)),
        ("llama", {}, Scene(replicate=2)),
        ("qwen3_moe", {}, Scene()),  # one tensor for each expert in the file, one for all in the model
        ("gpt2", {}, Scene(shard=4)),
        ("gemma2", {}, Scene()),
    ],
)
def test_slices_are_the_whole_model(tmp_path: Path, family: str, fields: dict[str, Any], scene: Scene) -> None:
    check(save(tmp_path / "model", family, **fields), None, scene)


@pytest.mark.parametrize(
    ("adapter", "note"),
    [("lora", None), ("ia3", None), ("oft", None), ("bottleneck", None), ("dora", "norms"), ("prompt", "virtual")],
)
def test_a_fresh_adapter_on_slices(tmp_path: Path, adapter: str, note: str | None) -> None:
    """Where an adapter needs whole weights to begin with, each process reads them, and says so."""
    check(save(tmp_path / "model"), adapter, Scene(), note)


def test_a_sharded_file_and_an_adapters_folder(tmp_path: Path) -> None:
    base = save(tmp_path / "base")
    family_model("llama", vocab_size=len(byte_tokenizer())).save_pretrained(base, max_shard_size="30KB")
    (base / "model.safetensors").unlink(missing_ok=True)
    assert len(list(base.glob("*.safetensors"))) > 1
    check(base, None, Scene())
    adapted = add_adapter(load(base).model, EVERY["lora"])
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    config = tmp_path / "adapter" / "adapter_config.json"
    settings = json.loads(config.read_text())
    config.write_text(json.dumps({**settings, "base_model_name_or_path": str(base)}))
    check(tmp_path / "adapter", None, Scene(), "held against its base")


def test_a_reward_models_folder(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    model = with_head(family_model("llama", vocab_size=len(tokenizer)), init="normal", pad_token_id=0)
    model.save_pretrained(tmp_path / "reward")
    tokenizer.save_pretrained(tmp_path / "reward")
    alone = load_reward_folder(tmp_path / "reward").loaded
    for fingerprint, placed in ranks(2).run(reward_in_parts, tmp_path / "reward"):
        assert fingerprint == alone.fingerprint and placed


def test_no_process_reads_the_whole_model(tmp_path: Path) -> None:
    """By the largest resident set: of 90 MB each of four ranks keeps a quarter, beside the quarter of the file that it
    has mapped and what is gathered for the fingerprint, one tensor at a time. Read whole, it would be twice the size.
    """
    sizes = {"hidden_size": 256, "intermediate_size": 2048, "num_hidden_layers": 14, "head_dim": 64}
    folder = save(tmp_path / "model", **sizes)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert size > 90e6
    for taken in ranks(4).run(peak_of_loading, folder, save(tmp_path / "small")):
        assert taken < 0.8 * size


def test_what_is_quantised_is_refused_before_it_loads(tmp_path: Path) -> None:
    folder = save(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "awq"}}))
    for error in ranks(2).outcomes(loaded_in_parts, folder, None, Scene()):
        assert isinstance(error, ModelError) and "quantization_config: awq" in str(error)


def test_qlora_is_refused_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posttrain.models.folders.loading.require_quantisation", lambda device: None)
    spread = sharding(Scene(shard=1))
    assert spread is None
    from posttrain.models.folders import loading
    from posttrain.models.folders.source import resolve

    with pytest.raises(ConfigError, match="qlora with a mesh"):
        loading._require_shardable(resolve(save(tmp_path / "model")), QLoRA())
