"""What ranks that share a model save is the folder that one process saves of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from posttrain.errors import ExportError, SourceError
from posttrain.models.folders import readback
from posttrain.models.folders.export_files import ExportSettings
from posttrain.models.folders.loading import load
from tests.families import family_model
from tests.fixtures import byte_tokenizer
from tests.rank_exports import Save, Saved, full, held, save, save_for_real, save_reward
from tests.ranks import ranks

STATED = ("config.json", "generation_config.json", "tokenizer.json", "adapter_config.json", "posttrain_speech.json")


def start(folder: Path, family: str, **fields: object) -> Path:
    tokenizer = byte_tokenizer("CHATML", pad=None)
    family_model(family, vocab_size=len(tokenizer), **fields).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def stated(path: Path) -> dict[str, object]:
    """A set is written in any order."""
    said = json.loads(path.read_text())
    return {key: sorted(value) if key == "target_modules" and value else value for key, value in said.items()}


def compare(asked: Save, alone: Save, size: int = 2, tolerance: float = 0.0) -> Saved:
    """Every rank has the same report; the two folders hold the same."""
    found = ranks(size).run(save, asked)
    one = save(alone)
    for of_rank in found:
        assert of_rank.fingerprint == one.fingerprint
        assert of_rank.report.folder == asked.out and of_rank.report.merged == one.report.merged
        assert of_rank.report.files == found[0].report.files
        assert all(torch.equal(of_rank.after[name], tensor) for name, tensor in of_rank.before.items())
        assert all(torch.equal(of_rank.after[name], tensor) for name, tensor in one.after.items())
    ours, theirs = tensors(asked.out), tensors(alone.out)
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=tolerance, msg=name)
    for name in STATED:
        if (alone.out / name).exists():
            assert stated(asked.out / name) == stated(alone.out / name), name
    assert not list(asked.out.parent.glob(".*saving*"))
    return found[0]


@pytest.mark.parametrize(
    ("family", "fields", "size"),
    [
        ("llama", {"tie_word_embeddings": True}, 4),
        ("llama", {"tie_word_embeddings": False}, 2),
        ("qwen3_moe", {}, 2),
        ("mixtral", {}, 2),
        ("gpt2", {}, 2),
    ],
)
def test_whole_models(tmp_path: Path, family: str, fields: dict[str, object], size: int) -> None:
    place = start(tmp_path / "start", family, **fields)
    settings = ExportSettings(max_shard_size="20KB", info={"method": "sft"})
    compare(
        Save(place, tmp_path / "shared", settings=settings), Save(place, tmp_path / "alone", settings=settings), size
    )
    files = sorted(path.name for path in (tmp_path / "shared").glob("*.safetensors"))
    assert len(files) > 2 and all(name.endswith(f"-of-{len(files):05d}.safetensors") for name in files)


@pytest.mark.parametrize("adapter", ["lora", "dora", "rslora", "adalora", "ia3", "oft"])
@pytest.mark.parametrize("tied", [True, False])
def test_adapters_are_folded_layer_by_layer(tmp_path: Path, adapter: str, tied: bool) -> None:
    place = start(tmp_path / "start", "llama", tie_word_embeddings=tied)
    saved = compare(Save(place, tmp_path / "shared", adapter), Save(place, tmp_path / "alone", adapter), tolerance=1e-6)
    assert saved.report.merged


@pytest.mark.parametrize("adapter", ["lora", "dora", "ia3", "bottleneck", "prefix", "prompt", "p_tuning"])
def test_an_adapter_alone(tmp_path: Path, adapter: str) -> None:
    place, alone = start(tmp_path / "start", "llama"), ExportSettings(merge=False)
    saved = compare(
        Save(place, tmp_path / "shared", adapter, settings=alone),
        Save(place, tmp_path / "alone", adapter, settings=alone),
    )
    assert not saved.report.merged


@pytest.mark.parametrize("adapter", [None, "lora"])
def test_a_narrow_dtype_is_rounded_last(tmp_path: Path, adapter: str | None) -> None:
    place, narrow = start(tmp_path / "start", "llama"), ExportSettings(dtype=torch.bfloat16)
    saved = compare(
        Save(place, tmp_path / "shared", adapter, settings=narrow),
        Save(place, tmp_path / "alone", adapter, settings=narrow),
    )
    assert saved.report.rounding > 0


@pytest.mark.parametrize("at_once", [False, True])
def test_a_rank_holds_a_layer_at_a_time(tmp_path: Path, at_once: bool) -> None:
    """A fault that gathers the whole model is planted, and seen."""
    wide = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 6, "tie_word_embeddings": False}
    place = start(tmp_path / "start", "llama", **wide)
    for rank in ranks(2).run(held, Save(place, tmp_path / "shared"), at_once):
        # A layer, or one of the others; and activations and logits of two rows, which here are little.
        allowed = rank.layer + rank.others + 600_000
        assert allowed < 0.5 * rank.model
        assert (rank.peak > rank.model) if at_once else (rank.peak < allowed), rank


@pytest.mark.parametrize("fault", ["another word", "cut short"])
def test_a_text_that_the_model_would_not_say_is_no_save(tmp_path: Path, fault: str) -> None:
    """The ranks follow the fresh process's text: what it says otherwise than they would is seen at its place."""
    place = start(tmp_path / "start", "llama")
    for error in ranks(2).outcomes(save, Save(place, tmp_path / "shared", fault=fault)):
        assert isinstance(error, ExportError) and "it says something else than the model in memory" in str(error), error
    assert not (tmp_path / "shared").exists()


def test_a_text_is_followed_in_one_pass() -> None:
    """As generating it gives it, beside a longer row; by hand where it parts, and where it stops."""
    model, prompt = family_model("llama", vocab_size=90), [3, 1, 4, 1, 5]
    said, margins = readback.greedy_ids(model, prompt, [], 6)
    _, logits = readback.rows_logits(model, [list(range(40)), [*prompt, *said]])
    ids, led = readback.followed(logits, said, [], 6)
    assert ids == said and led == pytest.approx(margins, abs=1e-5)
    # Three tokens; before each of two that were said, and after them, the most likely one is 2, 0, 1.
    by_hand = np.array([[9.0, 0, 0], [0, 1, 4], [7, 2, 6], [0, 5, 3]])
    assert readback.followed(by_hand, [2, 0], [], 9) == ([2, 0, 1], [3.0, 1.0, 2.0])
    assert readback.followed(by_hand, [2, 1], [], 2) == ([2, 0], [3.0, 1.0])
    assert readback.followed(by_hand, [2, 0], [0], 9) == ([2, 0], [3.0, 1.0])
    assert readback.followed(by_hand, [], [], 9) == ([1], [2.0])


def test_ranks_that_each_hold_the_model_save_it_once(tmp_path: Path) -> None:
    place = start(tmp_path / "start", "llama")
    compare(Save(place, tmp_path / "shared", shard=1), Save(place, tmp_path / "alone"))


def test_a_full_disk_is_told_by_every_rank(tmp_path: Path) -> None:
    place = start(tmp_path / "start", "llama")
    for error in ranks(2).outcomes(full, Save(place, tmp_path / "shared")):
        assert isinstance(error, SourceError) and "File too large" in str(error), error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["start"]


def test_another_bit_in_the_file_is_no_save(tmp_path: Path) -> None:
    """Logits alone would not tell."""
    place = start(tmp_path / "start", "llama")
    for error in ranks(2).outcomes(save, Save(place, tmp_path / "shared", fault="a bit")):
        assert isinstance(error, ExportError) and "it has other weights than were written" in str(error), error
    assert not (tmp_path / "shared").exists()


def test_a_foreign_folder_is_refused_by_every_rank(tmp_path: Path) -> None:
    place = start(tmp_path / "start", "llama")
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "notes.txt").write_text("mine")
    for error in ranks(2).outcomes(save, Save(place, tmp_path / "shared")):
        assert isinstance(error, ExportError) and "a folder that posttrain did not write" in str(error)


@pytest.mark.parametrize(("adapter", "merge"), [(None, True), ("lora", True), ("lora", False)])
def test_reward_models(tmp_path: Path, adapter: str | None, merge: bool) -> None:
    place, settings = start(tmp_path / "start", "llama"), ExportSettings(merge=merge)
    shared, alone = (Save(place, tmp_path / name, adapter, settings=settings) for name in ("shared", "alone"))
    found, one = ranks(2).run(save_reward, shared), save_reward(alone)
    assert all(report.files == found[0].files and report.merged == one.merged for report in found)
    ours, theirs = tensors(shared.out), tensors(alone.out)
    assert set(ours) == set(theirs) and any("score" in name for name in ours)
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-6, msg=name)
    for name in (*STATED, "posttrain_reward.json"):
        if (alone.out / name).exists():
            assert stated(shared.out / name) == stated(alone.out / name), name


@pytest.mark.slow
def test_a_fresh_process_reads_what_ranks_saved(tmp_path: Path) -> None:
    place = start(tmp_path / "start", "llama")
    (first, second) = ranks(2).run(save_for_real, Save(place, tmp_path / "shared", "lora"))
    assert first == second and first.largest_difference < 1e-4 and first.text is not None
    assert load(tmp_path / "shared").source.manifest is not None  # verified by its manifest
