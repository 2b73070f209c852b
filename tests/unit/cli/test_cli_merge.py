"""posttrain merge, of whole models: what the words and options come to, and what of them is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import posttrain as pt
from posttrain.cli.app import app
from posttrain.config.merging import MergeSettings
from posttrain.errors import ConfigError
from posttrain.models.merging import call, run
from posttrain.models.merging.run import MergeReport
from posttrain.models.merging.tensors import entries_of, read_tensor
from tests.fixtures import byte_tokenizer, tiny_model
from tests.read_back import read_in_process

TOKENIZER = byte_tokenizer("CHATML", pad=None)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("a", "b", "base")):
        tiny_model(vocab=len(TOKENIZER), seed=seed).save_pretrained(folder / name)
        TOKENIZER.save_pretrained(folder / name)
    return folder


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[MergeSettings, Path, int]]:
    """What would be merged."""
    calls: list[tuple[MergeSettings, Path, int]] = []

    def merge_models(settings: MergeSettings, out: Path, *, seed: int = 0, **rest: Any) -> MergeReport:
        calls.append((settings, Path(out), seed))
        return MergeReport(Path(out), settings.kind, ("a",), None, "float32", {}, 1, 1, 1, 1.0, None)

    monkeypatch.setattr(run, "merge_models", merge_models)
    monkeypatch.setattr(call, "merge_models", merge_models)
    return calls


def command(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["merge", *map(str, arguments)])


def test_models_and_options_become_settings(models: Path, tmp_path: Path, asked: list[Any]) -> None:
    words = [models / "a", models / "b", tmp_path / "out", "--method", "ties", "--weights", "1,.5", "--density", ".3"]
    more = ["--base", models / "base", "--set", "lambda=0.7", "--rescale", "l1", "--dtype", "bf16", "--tokens", "union"]
    result = command(*words, *more)
    assert result.exit_code == 0, result.stderr
    settings, out, seed = asked[0]
    assert [(model.label, model.weight) for model in settings.models] == [
        (str(models / "a"), 1.0),
        (str(models / "b"), 0.5),
    ]
    assert settings.kind == "ties" and settings.base is not None and settings.base.label == str(models / "base")
    assert (settings.common("density"), settings.common("lambda"), settings.common("rescale")) == (0.3, 0.7, "l1")
    assert (settings.dtype, settings.tokens, out, seed) == ("bfloat16", "union", tmp_path / "out", 0)


def test_without_a_method_models_are_averaged(models: Path, tmp_path: Path, asked: list[Any]) -> None:
    assert command(models / "a", models / "b", tmp_path / "out").exit_code == 0
    assert asked[0][0].kind == "linear" and asked[0][0].dtype == "auto"


def test_a_file_of_settings(models: Path, tmp_path: Path, asked: list[Any]) -> None:
    file = tmp_path / "merge.yaml"
    body = f"kind: slerp\nt: [0, 1]\nmodels: [{models / 'a'}, {models / 'b'}]\n"
    file.write_text(body)
    assert command(file, tmp_path / "out", "--dtype", "fp16").exit_code == 0
    assert asked[0][0].common("t") == (0.0, 1.0) and asked[0][0].dtype == "float16"
    file.write_text("method: merge\nmerge:\n" + "".join(f"  {line}\n" for line in body.splitlines()))
    assert command(file, tmp_path / "out").exit_code == 0 and asked[1][0].kind == "slerp"
    assert "--weights would be ignored" in command(file, tmp_path / "out", "--weights", "1,2").stderr


def test_a_file_of_mergekits(models: Path, tmp_path: Path, asked: list[Any]) -> None:
    file = tmp_path / "mergekit.yaml"
    listed = "".join(f"  - model: {models / name}\n    parameters: {{weight: 0.5}}\n" for name in ("a", "b"))
    file.write_text(f"merge_method: ties\nbase_model: {models / 'base'}\nmodels:\n{listed}dtype: bfloat16\n")
    result = command(file, tmp_path / "out", "--tokens", "union")
    assert result.exit_code == 0, result.stderr
    settings = asked[0][0]
    assert (settings.kind, settings.dtype, settings.tokens) == ("ties", "bfloat16", "union")
    assert settings.common("density") == 1.0 and settings.base.label == str(models / "base")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("name: mine\nstages: []\n", "a recipe"),
        ("models: [a, b]\n", "no `kind` and no `merge_method`"),
        ("kind: tie\nmodels: [a, b]\n", "did you mean `ties`?"),
    ],
    ids=["recipe", "no kind", "kind"],
)
def test_a_file_that_says_no_merge(content: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "merge.yaml"
    file.write_text(content)
    result = command(file, tmp_path / "out")
    assert result.exit_code == 2 and said in result.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a"], "nothing says where the merged model goes"),
        (["a", "b", "out", "--adapter", "c"], "`--adapter` puts an adapter on one base"),
        (["a", "b", "out", "--method", "tie"], "did you mean `ties`?"),
        (["a", "b", "out", "--weights", "1"], "1 weights, 2 models"),
        (["a", "b", "out", "--method", "slerp", "--weights", "1,2"], "`slerp` takes no weights"),
        (["a", "b", "out", "--set", "lamda=1"], "`lamda`"),
        (["a", "b", "out", "--method", "ties", "--set", "lamda=1"], "did you mean `lambda`?"),
        (["a", "out", "--adapter", "b", "--base", "a"], "--base would be ignored"),
        (["gone.yaml", "out"], "there is no such file of settings"),
        (["a", "nosuch", "out"], "no model is called 'nosuch'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_refused_before_a_model_is_read(
    words: list[str], said: str, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(models)
    result = command(*[str(tmp_path / word) if word == "out" else word for word in words])
    assert result.exit_code == 2 and said in result.stderr, result.stderr
    assert not (tmp_path / "out").exists()


def test_what_a_merge_of_models_cannot_use_is_said(models: Path, tmp_path: Path, asked: list[Any]) -> None:
    result = command(models / "a", models / "b", tmp_path / "out", "--density", "0.3", "--rescale", "l1", "--seed", 3)
    assert "--density, --rescale have no effect: the method linear drops no entries" in result.stderr
    assert "--seed has no effect: the method linear draws nothing" in result.stderr


def test_from_python(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in read_in_process(monkeypatch):
        report = pt.merge(
            [models / "a", {"model": models / "b", "weight": 3}], tmp_path / "out", dtype="bf16", progress=False
        )
    assert report.folder == tmp_path / "out" and report.dtype == "bfloat16" and report.text
    name = "model.norm.weight"
    a, b, merged = (read_tensor(entries_of(folder)[name]) for folder in (models / "a", models / "b", tmp_path / "out"))
    assert torch.equal(merged, (0.25 * a + 0.75 * b).bfloat16())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("a",), "`models` is a list of models"),
        ((["a", "b"], {"dtype": "fp8"}), "`dtype`"),
        ((["a", "b"], {"method": "tie"}), "tie"),
        ((["a", "b"], {"density": 0.5}), "density"),
    ],
)
def test_python_refuses(arguments: Any, said: str, tmp_path: Path) -> None:
    models, *rest = arguments
    with pytest.raises(ConfigError, match=said):
        pt.merge(models, tmp_path / "out", **(rest[0] if rest else {}))
