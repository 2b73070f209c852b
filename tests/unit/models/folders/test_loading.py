"""Names, folders and hub ids become models; what is torn, altered, missing or made up is refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from posttrain.config.adapters import Continue
from posttrain.errors import ConfigError, ModelError
from posttrain.models.adapters.kinds import LoRA, add_adapter, is_fresh
from posttrain.models.folders.fingerprint import base_fingerprint, weights_fingerprint
from posttrain.models.folders.loading import load
from posttrain.models.folders.manifest import MANIFEST, write_manifest
from posttrain.models.folders.source import resolve
from posttrain.models.tree.logprobs import Policy
from posttrain.training.objectives import algorithm
from posttrain.training.step import accumulate
from tests.fixtures import byte_tokenizer, make_tree, tiny_model


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return byte_tokenizer("CHATML", pad=None)


@pytest.fixture(scope="module")
def original(tokenizer: Any) -> Any:
    return tiny_model("llama", vocab=len(tokenizer))


@pytest.fixture
def folder(tmp_path: Path, original: Any, tokenizer: Any) -> Path:
    """A model folder as any training tool leaves it."""
    path = tmp_path / "model"
    original.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(path: Path, *, drop: tuple[str, ...] = (), add: dict[str, torch.Tensor] | None = None) -> None:
    weights = {name: tensor for name, tensor in load_file(path).items() if name not in drop}
    save_file({**weights, **(add or {})}, path, metadata={"format": "pt"})


def message(action: Any) -> str:
    with pytest.raises(ModelError) as caught:
        action()
    return str(caught.value)


# ---------------------------------------------------------------- what loads


def test_a_folder_gives_the_same_model_twice(folder: Path, original: Any) -> None:
    first, second = load(folder), load(str(folder))
    ids = torch.tensor([[5, 9, 70, 3]])
    assert torch.equal(first.model(ids).logits, original(ids).logits)
    assert first.fingerprint == second.fingerprint == weights_fingerprint(original)
    assert first.source.kind == "folder" and first.source.layout == "model"
    assert not first.model.training
    assert next(first.model.parameters()).dtype == torch.float32


def test_half_precision_folders_are_loaded_as_fp32_masters(folder: Path, original: Any) -> None:
    half = tiny_model("llama", vocab=original.config.vocab_size, dtype=torch.bfloat16)
    half.save_pretrained(folder)
    assert load(folder).model.dtype == torch.float32
    assert load(folder, dtype=torch.bfloat16).model.dtype == torch.bfloat16


def test_a_missing_pad_token_stays_missing(folder: Path, tokenizer: Any) -> None:
    loaded = load(folder)
    assert loaded.tokenizer.pad_token is None
    assert len(loaded.tokenizer) == len(tokenizer) == loaded.model.config.vocab_size
    assert loaded.tokenizer("pad me").input_ids == tokenizer("pad me").input_ids


@pytest.mark.parametrize("adapter", [None, LoRA(rank=2, targets=["embed_tokens", "q_proj"])])
def test_two_folders_that_differ_in_the_pad_id_alone_train_alike(folder: Path, tokenizer: Any, adapter: Any) -> None:
    """One step; the pad token of the second folder ends every answer, as in many published models."""
    stop = tokenizer.eos_token_id
    trees = [make_tree([5, 6, stop], [7, 8, stop]), make_tree([9], [stop, 3, stop])]
    trained = []
    for pad in (None, stop):
        edit_json(folder / "config.json", pad_token_id=pad)
        model = load(folder, adapter=adapter).model
        accumulate(Policy(model), None, algorithm("sft"), trees, 1000, step=0)
        trained.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        assert model.config.pad_token_id == pad
    assert trained[0].keys() == trained[1].keys()
    for name, gradient in trained[0].items():
        torch.testing.assert_close(trained[1][name], gradient)
    if adapter is None:
        assert trained[1]["model.embed_tokens.weight"][stop].any()


def test_a_loop_of_the_users_own_trains_the_pad_token_too(folder: Path, tokenizer: Any) -> None:
    edit_json(folder / "config.json", pad_token_id=tokenizer.eos_token_id)
    assert load(folder).model.get_input_embeddings().padding_idx is None


def test_a_fresh_adapter_counts_in_the_fingerprint_and_not_in_the_logits(folder: Path, original: Any) -> None:
    adapted = load(folder, adapter=LoRA(rank=2))
    ids = torch.tensor([[5, 9, 70]])
    assert torch.equal(adapted.model(ids).logits, original(ids).logits)
    assert is_fresh(adapted.model)
    assert adapted.fingerprint != weights_fingerprint(original) == base_fingerprint(adapted.model)
    assert load(folder, adapter=LoRA(rank=2, alpha=7)).fingerprint != adapted.fingerprint


def test_a_model_of_the_hub_is_taken_from_the_local_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "hub"
    repository = cache / "models--someone--tiny"
    shutil.copytree(folder, repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    loaded = load("someone/tiny")
    assert loaded.source.kind == "hub" and loaded.source.loadable_name == "someone/tiny"


# ---------------------------------------------------------------- names that mean nothing


def test_a_mistyped_catalogue_name_is_answered_with_the_nearest() -> None:
    text = message(lambda: load("smolm2-135m-instruct"))
    assert "did you mean `smollm2-135m-instruct`?" in text and "embedded" in text


def test_a_mistyped_path_is_answered_with_its_neighbour(folder: Path) -> None:
    assert str(folder) in message(lambda: load(folder.parent / "modle"))


def test_a_hub_that_does_not_answer_is_said() -> None:
    text = message(lambda: load("someone/not-in-any-cache"))
    assert text.startswith("someone/not-in-any-cache: the model could not be taken from the hub")
    assert "posttrain models list" in text


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    text = message(lambda: load(tmp_path))
    assert "holds no model" in text and "notes.txt" in text


# ---------------------------------------------------------------- torn, altered and mismatched folders


def test_a_torn_weight_file_is_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    assert "model.safetensors: the weight file is torn" in message(lambda: load(folder))


def test_a_missing_shard_is_named(folder: Path, original: Any) -> None:
    (folder / "model.safetensors").unlink()
    original.save_pretrained(folder, max_shard_size="20KB")
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    assert shard.name in message(lambda: load(folder))


def test_weights_that_would_start_at_random_are_refused_by_name(folder: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    edit_weights(folder / "model.safetensors", drop=(name,))
    text = message(lambda: load(folder))
    assert "would start at random" in text and name in text


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.q_proj.bias", "model.layers.1.mlp.up_proj.lora_A.weight"])
def test_weights_of_a_layer_that_the_config_drops_are_refused(folder: Path, name: str) -> None:
    edit_weights(folder / "model.safetensors", add={name: torch.ones(32)})
    text = message(lambda: load(folder))
    assert "config.json leaves out" in text and name in text


def test_weights_of_another_head_are_left_and_said(folder: Path) -> None:
    edit_weights(folder / "model.safetensors", add={"score.weight": torch.ones(1, 32)})
    assert load(folder).notices == ("not used by the language model: score.weight",)


def test_weights_and_config_that_disagree_in_shape_are_refused(folder: Path) -> None:
    edit_json(folder / "config.json", intermediate_size=40)
    assert "cannot load this folder" in message(lambda: load(folder))


def test_a_missing_tokenizer_is_refused(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    assert "holds no tokenizer" in message(lambda: load(folder))


def test_tokens_without_an_embedding_are_named(folder: Path) -> None:
    byte_tokenizer("CHATML", pad=None, specials=("<a>", "<b>")).save_pretrained(folder)
    text = message(lambda: load(folder))
    assert "more tokens than the model has embeddings" in text and "ids up to" in text


def test_more_embeddings_than_tokens_is_fine(folder: Path, tokenizer: Any) -> None:
    tiny_model("llama", vocab=len(tokenizer) + 61).save_pretrained(folder)
    assert load(folder).model.config.vocab_size == len(tokenizer) + 61


def test_a_folder_with_a_manifest_must_be_as_it_was_saved(folder: Path) -> None:
    write_manifest(folder, {"kind": "model"})
    (folder / "README.md").write_text("Notes may be added.")
    load(folder)
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    (folder / "chat_template_other.jinja").write_text("{{ messages }}")
    (folder / "generation_config.json").unlink()
    text = message(lambda: load(folder))
    for fault in (
        "model.safetensors has another content",
        "chat_template_other.jinja was added",
        "generation_config.json is missing",
    ):
        assert fault in text
    assert "README" not in text and f"delete {MANIFEST}" in text


def test_a_torn_manifest_is_refused(folder: Path) -> None:
    write_manifest(folder, {"kind": "model"})
    path = folder / MANIFEST
    path.write_text(path.read_text()[:-20])
    assert "the manifest is torn" in message(lambda: load(folder))


# ---------------------------------------------------------------- adapter folders


@pytest.fixture
def adapter_folder(tmp_path: Path, folder: Path, original: Any) -> Path:
    model = add_adapter(load(folder).model, LoRA(rank=2, targets=["q_proj", "v_proj"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    path = tmp_path / "adapter"
    model.save_pretrained(path)
    edit_json(path / "adapter_config.json", base_model_name_or_path=str(folder))
    return path


def test_an_adapter_folder_brings_its_base_and_goes_on_training(adapter_folder: Path, folder: Path) -> None:
    loaded = load(adapter_folder)
    assert loaded.source.layout == "adapter" and loaded.base.folder == folder
    trainable = {name for name, parameter in loaded.model.named_parameters() if parameter.requires_grad}
    assert trainable and all("lora_" in name for name in trainable)
    assert not is_fresh(loaded.model)
    assert loaded.tokenizer("x").input_ids == load(folder).tokenizer("x").input_ids


def test_a_second_adapter_is_put_over_the_first_folded_into_the_weights(adapter_folder: Path) -> None:
    ids = torch.tensor([[3, 5, 8]])
    first = load(adapter_folder)
    second = load(adapter_folder, adapter=LoRA(rank=3))
    torch.testing.assert_close(second.model(ids).logits, first.model(ids).logits, atol=1e-5, rtol=0)
    assert is_fresh(second.model) and second.base.layout == "adapter"
    assert any("folded into the weights" in notice for notice in second.notices)


def test_there_must_be_an_adapter_to_go_on_with(adapter_folder: Path, folder: Path) -> None:
    assert load(adapter_folder, adapter=Continue()).fingerprint == load(adapter_folder).fingerprint
    with pytest.raises(ConfigError, match="no adapter to go on with"):
        load(folder, adapter=Continue())


def test_an_adapter_whose_base_is_gone_is_refused(adapter_folder: Path, folder: Path) -> None:
    shutil.rmtree(folder)
    assert "the model under the adapter cannot be found" in message(lambda: load(adapter_folder))


def test_an_adapter_on_other_base_weights_is_refused(adapter_folder: Path, folder: Path, original: Any) -> None:
    base = {"name": "original", "fingerprint": weights_fingerprint(original), "dtype": "torch.float32"}
    write_manifest(adapter_folder, {"kind": "adapter", "base": base})
    load(adapter_folder)
    tiny_model("llama", vocab=original.config.vocab_size, seed=1).save_pretrained(folder)
    assert "trained on other base weights" in message(lambda: load(adapter_folder))


def test_an_adapter_file_that_lacks_a_matrix_is_refused(adapter_folder: Path) -> None:
    path = adapter_folder / "adapter_model.safetensors"
    name = next(name for name in load_file(path) if "layers.1" in name and "lora_B" in name)
    edit_weights(path, drop=(name,))
    text = message(lambda: load(adapter_folder))
    assert "disagree" in text and name in text


def test_resolve_loads_nothing(folder: Path) -> None:
    (folder / "model.safetensors").touch()
    source = resolve(folder)
    assert (source.kind, source.layout, source.folder) == ("folder", "model", folder)
