"""Python that lies in a model folder is never run, whatever standard input answers."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import ModelError
from posttrain.models.folders.loading import load
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
