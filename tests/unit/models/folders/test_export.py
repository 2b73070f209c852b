"""A save is read back by another process before it has its name; what reads back differently is refused and removed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from posttrain.errors import ExportError, ModelError
from posttrain.models.adapters.folding import merged_copy
from posttrain.models.adapters.kinds import LoRA, add_adapter
from posttrain.models.folders import readback
from posttrain.models.folders.export import ExportReport, ExportSettings, begin_save, save_model
from posttrain.models.folders.fingerprint import weights_fingerprint
from posttrain.models.folders.loading import load
from posttrain.models.folders.manifest import (
    MANIFEST,
    publish,
    read_manifest,
    temporary_folder,
    verify_manifest,
    write_manifest,
)
from posttrain.models.folders.source import ModelSource, resolve
from posttrain.sampling import SamplingDistribution
from tests.fixtures import byte_tokenizer, tiny_model
from tests.read_back import in_own_interpreter, read_in_process

IDS = torch.tensor([[5, 9, 70, 3, 12]])
TOKENIZER = byte_tokenizer("CHATML", pad=None)


def train(model: Any, scale: float = 0.1) -> Any:
    """Stands in for training: every trainable parameter moves."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Callable[[Path], None]]]:
    """Reads back within the test's process; the list takes faults to plant in the folder before."""
    yield from read_in_process(monkeypatch)


# ---------------------------------------------------------------- the real thing, in fresh processes


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, ExportReport]]:
    """A base folder, and from it a merged save and an adapter alone, read back at the same time."""
    folder = tmp_path_factory.mktemp("exports")
    tiny_model("llama", vocab=len(TOKENIZER)).save_pretrained(folder / "base")
    TOKENIZER.save_pretrained(folder / "base")
    loaded = load(folder / "base", adapter=LoRA(rank=2))
    model = train(loaded.model)
    sampling = SamplingDistribution(temperature=0.7, top_p=0.9)
    settings = ExportSettings(stop_ids=(2, 1), sampling=sampling, info={"method": "dpo", "steps": 12})
    with in_own_interpreter():
        pending = {"merged": begin_save(model, loaded.tokenizer, folder / "merged", settings, base=loaded.base)}
    alone = ExportSettings(merge=False)
    pending["adapter"] = begin_save(model, loaded.tokenizer, folder / "adapter", alone, base=loaded.base)
    assert not (folder / "merged").exists()  # no name before it is proven
    return {name: (model, handle.wait()) for name, handle in pending.items()}


def test_a_merged_save_is_an_ordinary_folder(saved: dict[str, tuple[Any, ExportReport]]) -> None:
    model, report = saved["merged"]
    assert report.largest_difference < 1e-4 and report.merged
    assert "read back in a fresh process" in str(report)
    plain = AutoModelForCausalLM.from_pretrained(report.folder)
    torch.testing.assert_close(logits(plain), logits(model), atol=1e-4, rtol=0)
    tokenizer = AutoTokenizer.from_pretrained(report.folder)
    assert tokenizer.chat_template == TOKENIZER.chat_template
    assert not list(report.folder.parent.glob(".*saving*"))

    config = GenerationConfig.from_pretrained(report.folder)
    assert config.eos_token_id == [2, 1] and config.pad_token_id == 2
    # Written out: transformers would read a missing top_k as 50.
    assert (config.do_sample, config.temperature, config.top_p, config.top_k, config.min_p) == (True, 0.7, 0.9, 0, 0.0)
    assert config.repetition_penalty == 1.0

    manifest = verify_manifest(report.folder)
    assert manifest is not None and manifest["training"] == {"method": "dpo", "steps": 12}
    assert set(manifest["files"]) == {path.name for path in report.folder.iterdir()} - {MANIFEST}
    assert manifest["weights_fingerprint"] == weights_fingerprint(model)
    settings = json.loads((report.folder / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast" and "is_local" not in settings
    assert len({path.stat().st_mode for path in report.folder.iterdir()}) == 1


def test_an_adapter_alone_is_what_plain_peft_loads(saved: dict[str, tuple[Any, ExportReport]]) -> None:
    model, report = saved["adapter"]
    assert not report.merged and "adapter_model.safetensors" in report.files
    base = json.loads((report.folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), report.folder)
    assert torch.equal(logits(plain), logits(model))
    assert not (report.folder / "README.md").exists()
    again = load(report.folder)
    assert torch.equal(logits(again.model), logits(model))
    assert again.fingerprint == weights_fingerprint(model)


# ---------------------------------------------------------------- dtypes, shards, greedy


def test_a_narrower_dtype_is_saved_as_it_computes_and_its_rounding_is_told(tmp_path: Path, in_process: Any) -> None:
    model = tiny_model("llama", vocab=len(TOKENIZER))
    report = save_model(model, TOKENIZER, tmp_path / "m", ExportSettings(dtype=torch.bfloat16))
    assert report.largest_difference == 0 and 1e-4 < report.rounding < 1
    assert model.dtype == torch.float32
    assert load_file(tmp_path / "m" / "model.safetensors")["model.norm.weight"].dtype == torch.bfloat16


def test_merging_into_narrow_weights_is_judged_by_what_they_compute(tmp_path: Path, in_process: Any) -> None:
    tiny_model(vocab=len(TOKENIZER)).save_pretrained(tmp_path / "base")
    TOKENIZER.save_pretrained(tmp_path / "base")
    model = train(load(tmp_path / "base", dtype=torch.bfloat16, adapter=LoRA(rank=2)).model)
    report = save_model(model, TOKENIZER, tmp_path / "m")
    assert report.largest_difference == 0 and report.rounding > 1e-3


def test_large_models_are_sharded(tmp_path: Path, in_process: Any) -> None:
    model = tiny_model("llama", vocab=len(TOKENIZER))
    report = save_model(model, TOKENIZER, tmp_path / "m", ExportSettings(max_shard_size="30KB"))
    assert sum(name.endswith(".safetensors") for name in report.files) > 2
    assert resolve(tmp_path / "m").layout == "model"


def test_greedy_sampling_is_written_without_a_temperature(tmp_path: Path, in_process: Any) -> None:
    settings = ExportSettings(sampling=SamplingDistribution(temperature=0.0))
    save_model(tiny_model(vocab=len(TOKENIZER)), TOKENIZER, tmp_path / "m", settings)
    written = json.loads((tmp_path / "m" / "generation_config.json").read_text())
    assert written["do_sample"] is False and "temperature" not in written
    assert written["eos_token_id"] == TOKENIZER.eos_token_id


@pytest.mark.parametrize("arch", ["gpt2", "qwen3", "gemma2"])
def test_other_architectures_merge_and_read_back(arch: str, tmp_path: Path, in_process: Any) -> None:
    model = train(add_adapter(tiny_model(arch, vocab=len(TOKENIZER)), LoRA(rank=2, dora=arch == "qwen3")))
    report = save_model(model, TOKENIZER, tmp_path / "m")
    assert report.largest_difference < 1e-4


def test_saving_leaves_the_model_as_it_was(tmp_path: Path, in_process: Any) -> None:
    model = train(add_adapter(tiny_model(vocab=len(TOKENIZER)), LoRA(rank=2, dropout=0.1))).train()
    before = weights_fingerprint(model)
    save_model(model, TOKENIZER, tmp_path / "m")
    assert weights_fingerprint(model) == before and model.training
    assert isinstance(model, PeftModel) and not merged_copy(model).config.tie_word_embeddings


# ---------------------------------------------------------------- refusals


def alter_a_weight(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["model.layers.1.mlp.up_proj.weight"] += 0.05
    save_file(weights, path, metadata={"format": "pt"})


def cut_the_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def change_the_template(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("<|im_start|>", "<|im_end|>"))


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (alter_a_weight, "computes something else than the model in memory"),
        (cut_the_weights, "cannot be loaded in a fresh process"),
        (change_the_template, "tokenizer or chat template"),
    ],
)
def test_what_reads_back_differently_is_refused_and_removed(
    fault: Callable[[Path], None], words: str, tmp_path: Path, in_process: list[Any]
) -> None:
    in_process.append(fault)
    with pytest.raises(ExportError, match=words) as caught:
        save_model(tiny_model(vocab=len(TOKENIZER)), TOKENIZER, tmp_path / "m")
    assert "largest logit difference" in str(caught.value) or fault is not alter_a_weight
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("ids", "lead", "refused"),
    [
        ([9, 9], 5.0, True),  # another token, although the right one led by far
        ([7], 5.0, True),  # it stopped too soon
        ([7, 8, 9], 5.0, True),  # it went on too long
        ([9, 9], 0.0, False),  # two tokens were equally likely: rounding may choose
        ([7, 8], 5.0, False),
    ],
)
def test_what_says_something_else_is_refused(
    ids: list[int], lead: float, refused: bool, tmp_path: Path, in_process: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal logits do not prove it: stops and positions of the saved folder act in `generate` alone."""
    answers = iter([([7, 8], [lead, lead]), (ids, [lead] * len(ids))])  # of the model in memory, then of the folder
    monkeypatch.setattr(readback, "greedy_ids", lambda *arguments: next(answers))
    if not refused:
        assert save_model(tiny_model(vocab=len(TOKENIZER)), TOKENIZER, tmp_path / "m").folder.is_dir()
        return
    with pytest.raises(ExportError, match="says something else than the model in memory"):
        save_model(tiny_model(vocab=len(TOKENIZER)), TOKENIZER, tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_the_last_line_of_what_went_wrong_is_shown(tmp_path: Path, in_process: list[Any]) -> None:
    in_process.append(cut_the_weights)
    with pytest.raises(ExportError) as caught:
        save_model(tiny_model(vocab=len(TOKENIZER)), TOKENIZER, tmp_path / "m")
    assert "Error: " in str(caught.value.found) and "line" not in str(caught.value.found).split(":")[0]


def test_another_vocabulary_is_refused_by_name(
    tmp_path: Path, in_process: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two columns more would broadcast into no error of numpy's that a user could read."""
    probe = readback.probe_logits
    calls: list[int] = []

    def wider(model: Any, row: list[int]) -> Any:
        calls.append(1)
        logits = probe(model, row)
        return logits if len(calls) == 1 else np.concatenate([logits, logits[:, :2]], axis=1)

    monkeypatch.setattr(readback, "probe_logits", wider)
    with pytest.raises(ExportError, match="another vocabulary"):
        save_model(tiny_model(vocab=len(TOKENIZER)), TOKENIZER, tmp_path / "m")


def test_a_report_says_what_was_compared() -> None:
    facts = {"merged": True, "largest_difference": 1e-6, "tolerance": 1e-4, "rounding": 0.0, "seconds": 1.0}
    said = str(ExportReport(Path("m"), {}, text="Hello", **facts))  # type: ignore[arg-type]
    assert "logits within 1.0e-06" in said and "greedy text equal" in said
    silent = str(ExportReport(Path("m"), {}, text=None, **facts))  # type: ignore[arg-type]
    assert "scores within 1.0e-06" in silent and "greedy" not in silent


def test_a_manifest_does_not_list_itself(tmp_path: Path) -> None:
    """Written twice, it would hold the hash of the first: no folder could be verified again."""
    (tmp_path / "config.json").write_text("{}")
    write_manifest(tmp_path, {"kind": "model"})
    write_manifest(tmp_path, {"kind": "model"})
    assert set(read_manifest(tmp_path)["files"]) == {"config.json"}  # type: ignore[index]
    assert verify_manifest(tmp_path) is not None
    (tmp_path / "config.json").unlink()
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        verify_manifest(tmp_path)


def test_the_folder_of_a_save_that_is_under_way_stays(tmp_path: Path) -> None:
    living = tmp_path / f".m.saving-{os.getpid()}-abcd"
    strange = tmp_path / ".m.saving-notes-abcd"
    for folder in (living, strange):
        folder.mkdir()
    temporary_folder(tmp_path / "m")
    assert living.exists() and strange.exists()


def test_a_failed_save_leaves_the_earlier_one(tmp_path: Path, in_process: list[Any]) -> None:
    model = tiny_model(vocab=len(TOKENIZER))
    save_model(model, TOKENIZER, tmp_path / "m")
    first = read_manifest(tmp_path / "m")
    in_process.append(alter_a_weight)
    with pytest.raises(ExportError):
        save_model(train(model), TOKENIZER, tmp_path / "m")
    assert read_manifest(tmp_path / "m") == first
    in_process.clear()
    save_model(model, TOKENIZER, tmp_path / "m")
    assert read_manifest(tmp_path / "m") != first
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_folder_of_somebody_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("three years of work")
    with pytest.raises(ExportError, match="something else is there"):
        save_model(tiny_model(vocab=len(TOKENIZER)), TOKENIZER, tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_an_adapter_alone_needs_a_base_that_others_can_load(tmp_path: Path) -> None:
    model = add_adapter(tiny_model(vocab=len(TOKENIZER)), LoRA(rank=2))
    with pytest.raises(ExportError, match="needs a base"):
        save_model(model, TOKENIZER, tmp_path / "m", ExportSettings(merge=False))
    assert not list(tmp_path.iterdir())


def test_an_adapter_alone_does_not_carry_added_tokens(tmp_path: Path) -> None:
    tiny_model(vocab=len(TOKENIZER)).save_pretrained(tmp_path / "base")
    grown = byte_tokenizer("CHATML", pad=None, specials=("<a>", "<b>"))
    model = add_adapter(tiny_model(vocab=len(grown)), LoRA(rank=2))
    source = ModelSource("base", "folder", tmp_path / "base", "model")
    with pytest.raises(ExportError, match="tokens were added to the base"):
        save_model(model, grown, tmp_path / "m", ExportSettings(merge=False), base=source)
    with pytest.raises(ExportError, match="keeps its own precision"):
        save_model(model, grown, tmp_path / "m", ExportSettings(merge=False, dtype=torch.bfloat16), base=source)


def test_a_tokenizer_that_outgrew_the_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="more tokens than the model has embeddings"):
        save_model(tiny_model(vocab=len(TOKENIZER) - 2), TOKENIZER, tmp_path / "m")


# ---------------------------------------------------------------- names and crashes


def test_a_save_killed_between_its_two_renames_is_put_right(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    for text in ("first", "second"):
        temporary = temporary_folder(folder)
        (temporary / "config.json").write_text(text)
        write_manifest(temporary, {"kind": "model"})
        publish(temporary, folder)
    folder.rename(tmp_path / ".m.previous")
    with pytest.raises(ModelError, match="a save was interrupted here"):
        resolve(folder)
    dead = tmp_path / ".m.saving-999999999-abcd"
    dead.mkdir()
    mine = temporary_folder(folder)
    assert (folder / "config.json").read_text() == "second"
    assert not dead.exists() and mine.exists() and str(os.getpid()) in mine.name
