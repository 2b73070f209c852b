"""Weight files before anything is loaded: all shards there, all of them open, and keys named without a wall of text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from posttrain.errors import ModelError
from posttrain.models.folders.weight_files import GET_AGAIN, abbreviated, check_weight_files, weight_keys


def shard(path: Path, *keys: str) -> None:
    save_file({key: torch.zeros(4) for key in keys}, path)


def test_keys_of_a_header(tmp_path: Path) -> None:
    shard(tmp_path / "model.safetensors", "b", "a")
    assert weight_keys(tmp_path / "model.safetensors") == {"a", "b"}


@pytest.mark.parametrize("kept", [0, 4, -1])
def test_a_cut_file_is_torn_and_named(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "model.safetensors"
    shard(path, "a")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ModelError, match="torn") as caught:
        weight_keys(path)
    assert caught.value.where == path and caught.value.remedy == GET_AGAIN


def test_shards_are_those_of_the_index(tmp_path: Path) -> None:
    """A shard that the index names must be there; a file that it does not name is nobody's."""
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    shard(tmp_path / "one.safetensors", "a")
    (tmp_path / "other.safetensors").write_bytes(b"torn")
    with pytest.raises(ModelError, match="weights are missing") as caught:
        check_weight_files(tmp_path)
    assert caught.value.found == "no two.safetensors"
    shard(tmp_path / "two.safetensors", "b")
    check_weight_files(tmp_path)


@pytest.mark.parametrize("text", ["{", "{}", '{"weight_map": '])
def test_an_index_that_does_not_read_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelError, match="list of shards") as caught:
        check_weight_files(tmp_path)
    assert caught.value.where == tmp_path / "model.safetensors.index.json"


def test_no_weights_at_all(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="weights are missing") as caught:
        check_weight_files(tmp_path)
    assert caught.value.found == "no *.safetensors"
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    check_weight_files(tmp_path)


def test_five_keys_and_how_many_more() -> None:
    assert abbreviated([]) == ""
    assert abbreviated("ba") == "a, b"
    assert abbreviated("edcba") == "a, b, c, d, e"
    assert abbreviated("gfedcba") == "a, b, c, d, e and 2 more"
