"""Merging whole models: the bytes that are written, what is read for them, and that nothing half lies under a name."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from posttrain.config.adapters import LoRA
from posttrain.config.merging import merge_settings
from posttrain.errors import ConfigError, ExportError, ModelError
from posttrain.models.adapters.folding import merged_copy
from posttrain.models.adapters.kinds import add_adapter
from posttrain.models.folders.loading import load
from posttrain.models.folders.manifest import MANIFEST, verify_manifest
from posttrain.models.folders.shard_files import ShardWriter
from posttrain.models.merging import inputs, run, stream
from posttrain.models.merging.run import merge_models, require_room
from posttrain.models.merging.tensors import entries_of, read_tensor
from tests.adapters import disturb, save_alone
from tests.fixtures import byte_tokenizer, tiny_model
from tests.read_back import read_in_process

TOKENIZER = byte_tokenizer("CHATML", pad=None)


def save(folder: Path, seed: int, *, dtype: torch.dtype = torch.float32, arch: str = "llama", **config: Any) -> Path:
    model = tiny_model(arch, vocab=len(TOKENIZER), seed=seed, **config).to(dtype)
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: read_tensor(entry) for name, entry in entries_of(folder).items()}


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    return save(folder / "a", 1), save(folder / "b", 2), save(folder / "base", 3)


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Any:
    yield from read_in_process(monkeypatch)


# ---------------------------------------------------------------- the numbers


def test_a_linear_merge_is_torchs_sum_bit_for_bit(three: tuple[Path, Path, Path], tmp_path: Path, faults: Any) -> None:
    a, b, _ = three
    settings = merge_settings("linear", [{"model": a, "weight": 0.25}, {"model": b, "weight": 0.75}])
    report = merge_models(settings, tmp_path / "out")
    ours, theirs = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    merged = weights(tmp_path / "out")
    assert merged.keys() == ours.keys() and report.tensors == report.compared == len(ours)
    for name, tensor in merged.items():
        assert torch.equal(tensor, 0.25 * ours[name] + 0.75 * theirs[name]), name


def test_shards_and_their_index_load_as_the_single_file(
    three: tuple[Path, Path, Path], tmp_path: Path, faults: Any
) -> None:
    settings = merge_settings("linear", list(three[:2]))
    merge_models(settings, tmp_path / "whole")
    report = merge_models(settings, tmp_path / "sharded", shard_bytes=20_000)
    index = json.loads((tmp_path / "sharded" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2 and set(index["weight_map"].values()) <= set(report.files)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole").state_dict()
    parts = AutoModelForCausalLM.from_pretrained(tmp_path / "sharded").state_dict()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    # And as an input.
    again = merge_models(merge_settings("passthrough", [tmp_path / "sharded"]), tmp_path / "again")
    assert again.files["model.safetensors"]["sha256"] == _sha256(tmp_path / "whole" / "model.safetensors")


def _sha256(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(
    three: tuple[Path, Path, Path], tmp_path: Path, faults: Any
) -> None:
    a, b, base = three

    def merged(name: str, seed: int) -> bytes:
        settings = merge_settings("dare_ties", [a, b], base=base, seed=seed)
        merge_models(settings, tmp_path / name)
        return (tmp_path / name / "model.safetensors").read_bytes()

    first = merged("first", 0)
    assert first == merged("again", 0)
    assert first != merged("other", 1)


def test_bf16_is_computed_in_fp32_and_rounded_once(tmp_path: Path, faults: Any) -> None:
    a, b = (save(tmp_path / name, seed, dtype=torch.bfloat16) for name, seed in (("a", 1), ("b", 2)))
    report = merge_models(merge_settings("linear", [a, b]), tmp_path / "out")
    ours, theirs, merged = weights(a), weights(b), weights(tmp_path / "out")
    assert (
        report.dtype == "bfloat16" and json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    )
    for name, tensor in merged.items():
        assert torch.equal(tensor, (ours[name].float() * 0.5 + theirs[name].float() * 0.5).bfloat16()), name


def test_a_tied_model_stays_tied(tmp_path: Path, faults: Any) -> None:
    a, b = (save(tmp_path / name, seed, tie_word_embeddings=True) for name, seed in (("a", 1), ("b", 2)))
    # As some tools write it: the same numbers twice.
    stored = load_file(b / "model.safetensors")
    save_file(
        {**stored, "lm_head.weight": stored["model.embed_tokens.weight"].clone()},
        b / "model.safetensors",
        {"format": "pt"},
    )
    merge_models(merge_settings("linear", [a, b]), tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert "lm_head.weight" not in entries_of(tmp_path / "out")
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_tied_model_with_two_ends_is_refused(tmp_path: Path) -> None:
    a, b = (save(tmp_path / name, seed, tie_word_embeddings=True) for name, seed in (("a", 1), ("b", 2)))
    stored = load_file(b / "model.safetensors")
    save_file(
        {**stored, "lm_head.weight": stored["model.embed_tokens.weight"] + 1}, b / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(ModelError, match="the files hold two tensors"):
        merge_models(merge_settings("linear", [a, b]), tmp_path / "out")


def test_experts_are_merged_by_their_files_names(tmp_path: Path, faults: Any) -> None:
    """`transformers` stacks experts when it reads them: they have other names in memory."""
    a, b = (save(tmp_path / name, seed, arch="qwen3_moe") for name, seed in (("a", 1), ("b", 2)))
    report = merge_models(merge_settings("linear", [a, b]), tmp_path / "out")
    states = [AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (a, b, tmp_path / "out")]
    assert all(torch.allclose(states[2][name], (states[0][name] + states[1][name]) / 2) for name in states[0])
    assert 0 < report.compared <= report.tensors


# ---------------------------------------------------------------- what is read


def test_adapters_are_folded_before_they_are_merged_and_their_base_is_found(
    three: tuple[Path, Path, Path], tmp_path: Path, faults: Any
) -> None:
    base = three[2]
    folders = []
    for name, size in (("one", 0.1), ("two", 0.2)):
        model = disturb(add_adapter(load(base).model, LoRA(rank=2)), size)
        folders.append(save_alone(model, tmp_path / name, base, TOKENIZER))
    lines: list[str] = []
    settings = merge_settings(
        "task_arithmetic", [{"model": folders[0], "weight": 1.0}, {"model": folders[1], "weight": -0.5}]
    )
    report = merge_models(settings, tmp_path / "out", say=lines.append)
    wholes = [merged_copy(load(folder).model).state_dict() for folder in folders]
    start, merged = load(base).model.state_dict(), weights(tmp_path / "out")
    for name, tensor in merged.items():
        expected = start[name] + (wholes[0][name] - start[name]) - 0.5 * (wholes[1][name] - start[name])
        assert torch.allclose(tensor, expected, atol=1e-6), name
    assert report.base == str(base) and any("an adapter of kind lora" in line for line in lines)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "out", "two"]  # nothing that was converted stays


def test_pickled_weights_are_converted(three: tuple[Path, Path, Path], tmp_path: Path, faults: Any) -> None:
    a, b, _ = three
    pickled = save(tmp_path / "pickled", 1)
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    merge_models(merge_settings("linear", [pickled, b]), tmp_path / "out")
    merge_models(merge_settings("linear", [a, b]), tmp_path / "other")
    ours, theirs = weights(tmp_path / "out"), weights(tmp_path / "other")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_nan_is_named_and_leaves_nothing(three: tuple[Path, Path, Path], tmp_path: Path) -> None:
    a = three[0]
    bad = save(tmp_path / "bad", 2)
    stored = load_file(bad / "model.safetensors")
    stored["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(stored, bad / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"`model.layers.1.mlp.up_proj.weight` of `.*bad` is not finite") as caught:
        merge_models(merge_settings("linear", [a, bad]), tmp_path / "out")
    assert str(caught.value.found).startswith("1 of ")
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]


def test_a_merge_beyond_fp16_is_refused(three: tuple[Path, Path, Path], tmp_path: Path) -> None:
    a, b, base = three
    settings = merge_settings("task_arithmetic", [a, b], base=base, weight=1e6, dtype="float16")
    with pytest.raises(ModelError, match="is not finite once it is merged by `task_arithmetic`"):
        merge_models(settings, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_disk_is_asked_before_a_byte_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run.shutil, "disk_usage", lambda path: os.statvfs_result([0] * 10) and _Usage())
    with pytest.raises(ExportError, match="no room for the merged model"):
        require_room(tmp_path / "not" / "there", 10**9)


class _Usage:
    free = 10**8


# ---------------------------------------------------------------- read back, whole or not at all


def test_other_weights_on_the_disk_are_noticed(
    three: tuple[Path, Path, Path], tmp_path: Path, faults: list[Callable[[Path], None]]
) -> None:
    def flip(folder: Path) -> None:
        stored = load_file(folder / "model.safetensors")
        stored["model.norm.weight"][0] += 1e-3
        save_file(stored, folder / "model.safetensors", {"format": "pt"})

    faults.append(flip)
    with pytest.raises(ExportError, match="other weights than were computed") as caught:
        merge_models(merge_settings("linear", list(three[:2])), tmp_path / "out")
    assert "model.norm.weight" in str(caught.value.found)
    assert not list(tmp_path.iterdir())


def test_the_folder_says_what_was_merged(three: tuple[Path, Path, Path], tmp_path: Path, faults: Any) -> None:
    a, b, base = three
    merge_models(merge_settings("ties", [a, b], base=base, density=0.3), tmp_path / "out")
    manifest = verify_manifest(tmp_path / "out")
    assert manifest is not None and manifest["base"]["name"] == str(base)
    said = manifest["training"]["merged"]
    assert said["kind"] == "ties" and said["settings"]["density"] == 0.3
    assert [model["name"] for model in said["models"]] == [str(a), str(b)]
    again = merge_models(
        merge_settings("ties", [a, b], base=base, density=0.3), tmp_path / "out"
    )  # over an earlier one
    assert again.text and (tmp_path / "out" / MANIFEST).is_file()


KILLED = """
import os, sys, time
from posttrain.config.merging import merge_settings
from posttrain.models.merging import stream
from posttrain.models.merging.run import merge_models
write = stream.ShardWriter.write_blocks
def slow(self, name, blocks):
    write(self, name, blocks)
    print(name, flush=True)
    time.sleep(60 if len(self.checksums) == 5 else 0)
stream.ShardWriter.write_blocks = slow
merge_models(merge_settings("linear", sys.argv[1:3]), sys.argv[3])
"""


def test_a_kill_in_the_middle_leaves_nothing_under_the_name(
    three: tuple[Path, Path, Path], tmp_path: Path, faults: Any
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, str(three[0]), str(three[1]), str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(5):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not out.exists() and len(list(tmp_path.iterdir())) == 1  # the half of it, under a temporary name
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    merge_models(merge_settings("linear", list(three[:2])), out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # the next merge sweeps it


def test_a_failed_write_lets_go_of_its_file(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, {"a": ((2,), torch.float32), "b": ((2,), torch.float32)})
    writer.write("a", torch.ones(2))
    with pytest.raises(AssertionError):  # not what was announced
        writer.write("b", torch.ones(3))
    writer.abandon()


def test_a_whole_number_that_differs_is_refused(three: tuple[Path, Path, Path], tmp_path: Path) -> None:
    folders = []
    for name, value in (("a", 1), ("b", 2)):
        folder = save(tmp_path / name, value)
        stored = load_file(folder / "model.safetensors")
        save_file({**stored, "mask": torch.full((3,), value)}, folder / "model.safetensors", {"format": "pt"})
        folders.append(folder)
    with pytest.raises(ConfigError, match="`mask` holds whole numbers"):
        merge_models(merge_settings("linear", folders), tmp_path / "out")


def test_blocks_of_rows_give_the_same_bits(
    three: tuple[Path, Path, Path], tmp_path: Path, faults: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, base = three
    read: list[int] = []
    monkeypatch.setattr(inputs, "read_tensor", lambda entry: read.append(entry.size) or read_tensor(entry))
    for kind in stream.ENTRYWISE - {"passthrough"}:
        options = {"base": base} if kind == "task_arithmetic" else {}
        settings = merge_settings(kind, [{"model": a, "weight": 0.3}, b], dtype="bfloat16", **options)
        merge_models(settings, tmp_path / kind)
        read.clear()
        with monkeypatch.context() as patched:
            patched.setattr(stream, "BLOCK_BYTES", 1000)
            report = merge_models(settings, tmp_path / f"{kind} in blocks")
        assert max(read) <= 1200  # rounded up to whole rows
        assert report.files["model.safetensors"]["sha256"] == _sha256(tmp_path / kind / "model.safetensors")
