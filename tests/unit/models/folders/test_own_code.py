"""Python that lies in a model folder runs where `model_code: run` says so, whatever standard input answers."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import posttrain as pt
from posttrain.cli.app import app
from posttrain.config import parse_recipe
from posttrain.errors import ModelError, UnknownKeyError
from posttrain.models.folders.export import ExportSettings, save_model
from posttrain.models.folders.loading import load
from posttrain.models.folders.manifest import folder_fingerprint
from posttrain.models.folders.own_code import folder_code
from posttrain.models.folders.readback import load_plain
from posttrain.models.folders.tokenizers import load_tokenizer
from posttrain.models.reward.folders import load_reward_folder
from posttrain.training.stages.starts import _config
from tests.fixtures import byte_tokenizer, tiny_model

CODE = """\
import pathlib
pathlib.Path({mark!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast
class Config(LlamaConfig):
    model_type = "quite_new"
class Model(LlamaForCausalLM):
    config_class = Config
class Reward(LlamaForSequenceClassification):
    config_class = Config
class Tokenizer(PreTrainedTokenizerFast):
    pass
"""
MODEL = {
    "AutoConfig": "mine.Config",
    "AutoModelForCausalLM": "mine.Model",
    "AutoModelForSequenceClassification": "mine.Reward",
}


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tokenizer, path = byte_tokenizer("CHATML", pad=None), tmp_path / "model"
    tiny_model("llama", vocab=len(tokenizer)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    (path / "mine.py").write_text(CODE.format(mark=str(tmp_path / "it-ran")))
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 50))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return path


@pytest.mark.parametrize("reader", [load, load_reward_folder, _config], ids=["load", "load_reward_folder", "_config"])
def test_a_model_of_its_own_code_is_refused_with_its_files(folder: Path, reader: Callable[[Path], Any]) -> None:
    edit(folder / "config.json", model_type="quite_new", auto_map=MODEL)
    if reader is load_reward_folder:
        edit(folder / "config.json", architectures=["MineForSequenceClassification"])
    with pytest.raises(ModelError, match=r"mine\.py \(Auto.*, in config.json\)") as caught:
        reader(folder)
    assert "is not run" in str(caught.value)
    assert not (folder.parent / "it-ran").exists()


def test_a_known_model_is_read_by_the_class_that_transformers_has(folder: Path) -> None:
    edit(folder / "config.json", auto_map=MODEL)
    assert type(load(folder).model).__module__.startswith("transformers.")
    assert not (folder.parent / "it-ran").exists()


def test_a_tokenizer_of_its_own_code_is_not_run(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "mine.Tokenizer"]}, tokenizer_class="Mine")
    try:
        load_tokenizer(folder)
    except ModelError as error:
        assert "mine.py (AutoTokenizer, in tokenizer_config.json)" in str(error)
    assert not (folder.parent / "it-ran").exists()


def test_the_read_back_runs_none(folder: Path) -> None:
    edit(folder / "config.json", model_type="quite_new", auto_map=MODEL)
    with pytest.raises(ValueError, match="custom code"):
        load_plain(str(folder), None)
    assert not (folder.parent / "it-ran").exists()


# ---------------------------------------------------------------- with the key


@pytest.fixture
def new(folder: Path) -> Path:
    """Of an architecture that only the folder's own code knows."""
    edit(folder / "config.json", model_type="quite_new", auto_map=MODEL)
    return folder


def test_the_refusal_names_the_key(new: Path) -> None:
    with pytest.raises(ModelError, match=r"`model_code: run` .* `--model-code run` .* `pt.load\(\.\.\., model_code="):
        load(new)


def test_a_model_that_is_allowed_is_loaded_by_its_own_class(new: Path) -> None:
    loaded = pt.load(new, model_code="run", progress=False)
    assert type(loaded.model).__name__ == "Model" and type(loaded.model).__module__.endswith(".mine")
    assert any("mine.py" in notice for notice in loaded.notices)
    assert (new.parent / "it-ran").exists()
    with pytest.raises(ModelError):  # what one call allows, the next does not
        pt.load(new, progress=False)


@pytest.mark.parametrize("choice", [True, "yes", "Run", ""])
def test_nothing_but_the_word_allows_it(new: Path, choice: Any) -> None:
    with pytest.raises(UnknownKeyError, match="model_code"):
        pt.load(new, model_code=choice, progress=False)
    assert not (new.parent / "it-ran").exists()


def test_a_thread_refuses_what_was_not_allowed_in_it(new: Path) -> None:
    with folder_code("run"), ThreadPoolExecutor(1) as pool, pytest.raises(ModelError):
        pool.submit(load, new).result()
    assert not (new.parent / "it-ran").exists()


def test_code_of_another_repository_is_refused_all_the_same(new: Path) -> None:
    edit(new / "config.json", auto_map={"AutoConfig": "somebody/else--mine.Config"})
    with pytest.raises(ModelError, match="another repository"):
        pt.load(new, model_code="run", progress=False)
    assert not (new.parent / "it-ran").exists()


def test_the_code_counts_where_it_is_run(new: Path) -> None:
    refused = folder_fingerprint(new)
    with folder_code("run"):
        allowed = folder_fingerprint(new)
        weights = load(new).fingerprint
        (new / "mine.py").write_text((new / "mine.py").read_text() + "# another\n")
        assert len({refused, allowed, folder_fingerprint(new)}) == 3
        assert load(new).fingerprint != weights
    assert folder_fingerprint(new) == refused


def test_a_recipe_with_the_key_trains_saves_and_reads_back(new: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}] * 4
    (new.parent / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = f"""
schema: 1
model: {new}
out: {new.parent / "runs"}
evaluate: {{suites: []}}
stages: [{{method: sft, data: rows.jsonl, steps: 2, rows_per_step: 2, held_out: 0, max_length: 64}}]
"""
    with pytest.raises(ModelError, match=r"mine\.py"):
        pt.run_recipe(parse_recipe(text, folder=new.parent), progress=False)
    assert not (new.parent / "it-ran").exists()

    result = pt.run_recipe(parse_recipe(text, ["model_code=run"], folder=new.parent), progress=False)
    saved = result.folder / "sft" / "model"
    assert (saved / "mine.py").read_bytes() == (new / "mine.py").read_bytes()
    assert json.loads((saved / "posttrain_manifest.json").read_text())["read_back"]["largest_logit_difference"] < 1e-3
    run = pt.Run(result.folder, "sft", 2)
    with pytest.raises(ModelError, match=r"mine\.py"):
        run.load()
    assert type(run.load(model_code="run").model).__name__ == "Model"


def test_an_adapter_alone_is_read_back_and_loaded_over_a_base_of_its_own_code(new: Path) -> None:
    edit(
        new / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "mine.Tokenizer"]}, tokenizer_class="Tokenizer"
    )
    loaded = pt.load(new, adapter=pt.LoRA(rank=2), model_code="run", progress=False)
    assert type(loaded.tokenizer).__module__.endswith(".mine")
    settings = ExportSettings(merge=False, new_tokens=2)
    save_model(loaded.model, loaded.tokenizer, new.parent / "adapter", settings, base=loaded.base)
    again = pt.load(new.parent / "adapter", model_code="run", progress=False)
    assert type(again.model.get_base_model()).__name__ == "Model"


def test_a_command_refuses_it_whatever_is_answered_and_runs_it_by_its_option(new: Path) -> None:
    command = ["generate", str(new), "--max-new-tokens", "1"]
    refused = CliRunner().invoke(app, command, input="y\n")
    assert refused.exit_code == 2 and "`--model-code run`" in refused.output
    assert not (new.parent / "it-ran").exists()
    allowed = CliRunner().invoke(app, [*command, "--model-code", "run"], input="y\n")
    assert allowed.exit_code == 0 and "mine.py (AutoConfig, in config.json)" in allowed.output
