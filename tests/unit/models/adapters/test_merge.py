"""posttrain merge: the whole model computes what base and adapters computed, by the weights that were asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from posttrain.cli.app import app
from posttrain.config.adapters import AdapterSettings, LoRA, PrefixTuning
from posttrain.errors import ConfigError, ExportError, ModelError
from posttrain.models.adapters import combine
from posttrain.models.adapters.combine import METHODS, merge_adapters
from posttrain.models.adapters.folding import merged_copy
from posttrain.models.adapters.kinds import add_adapter
from posttrain.models.folders.fingerprint import weights_fingerprint
from posttrain.models.folders.loading import load
from posttrain.models.folders.manifest import write_manifest
from tests.adapters import WEIGHTS, disturb, logits, save_alone
from tests.fixtures import byte_tokenizer, tiny_model

TOKENIZER = byte_tokenizer("CHATML", pad=None)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_model(vocab=len(TOKENIZER)).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


def adapter(folder: Path, base: Path, record: AdapterSettings, size: float) -> Path:
    return save_alone(disturb(add_adapter(load(base).model, record), size), folder, base, TOKENIZER)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory, base: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    records = {
        "a": (LoRA(rank=2, targets=["q_proj", "v_proj"]), 0.1),
        "b": (LoRA(rank=2, alpha=8, targets=["v_proj", "down_proj"]), 0.2),
        "rank 3": (LoRA(rank=3), 0.1),
        "rslora": (LoRA(rank=2, rslora=True), 0.1),
        "ia3": (WEIGHTS["ia3"], 0.1),
        "prefix": (PrefixTuning(tokens=2), 0.1),
    }
    return {name: adapter(folder / name, base, *record) for name, record in records.items()}


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What would be saved: reading back in a fresh process has tests of its own, and takes seconds."""
    kept: dict[str, Any] = {}

    def save(model: Any, tokenizer: Any, out: Path, settings: Any, base: Any) -> None:
        kept.update(model=merged_copy(model), tokenizer=tokenizer, settings=settings)

    monkeypatch.setattr(combine, "save_model", save)
    return kept


def updates(folder: Path) -> dict[str, torch.Tensor]:
    """What an adapter adds to each weight, from its layers: {"model.layers.0...q_proj.weight": B A scale}."""
    model = load(folder).model
    found = {}
    for name, module in model.get_base_model().named_modules():
        if name.endswith("_proj") and "default" in getattr(module, "lora_A", {}):
            factors = module.lora_B["default"].weight @ module.lora_A["default"].weight
            found[f"{name}.weight"] = (factors * module.scaling["default"]).detach()
    return found


def test_two_adapters_from_the_command_line(base: Path, parts: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "merged"
    arguments = [str(base), str(out), "--adapter", str(parts["a"]), "--adapter", str(parts["b"])]
    result = CliRunner().invoke(app, ["merge", *arguments, "--weights", "0.5,2"])
    assert result.exit_code == 0, result.output
    assert "read back in a fresh process" in result.output
    merged = dict(AutoModelForCausalLM.from_pretrained(out).named_parameters())
    a, b = updates(parts["a"]), updates(parts["b"])
    for name, weight in load(base).model.named_parameters():
        expected = weight + 0.5 * a.get(name, 0) + 2 * b.get(name, 0)
        torch.testing.assert_close(merged[name], expected, atol=1e-5, rtol=0)


def test_an_adapter_and_the_base_that_it_names(parts: dict[str, Path], held: dict[str, Any], tmp_path: Path) -> None:
    for name in ("a", "ia3", "rslora"):
        merge_adapters(parts[name], tmp_path / name)
        torch.testing.assert_close(logits(held["model"]), logits(load(parts[name]).model), atol=1e-4, rtol=0)


def test_the_starts_adapter_is_the_first(
    base: Path, parts: dict[str, Path], held: dict[str, Any], tmp_path: Path
) -> None:
    merge_adapters(parts["a"], tmp_path / "out", adapters=[parts["b"]], weights=[1.0, 3.0])
    one = logits(held["model"])
    merge_adapters(base, tmp_path / "out", adapters=[parts["a"], parts["b"]], weights=[1.0, 3.0])
    torch.testing.assert_close(logits(held["model"]), one)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_a_model(
    method: str, base: Path, parts: dict[str, Path], held: dict[str, Any], tmp_path: Path
) -> None:
    state = torch.get_rng_state()
    for _ in range(2):
        merge_adapters(base, tmp_path / "out", adapters=[parts["a"], parts["b"]], method=method, density=0.5)
        held.setdefault("first", weights_fingerprint(held["model"]))
    assert weights_fingerprint(held["model"]) == held["first"]  # dare draws from a stream of its own
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.isfinite(logits(held["model"])).all()
    exact = load(base).model.state_dict()
    a, b = updates(parts["a"]), updates(parts["b"])
    if method in ("cat", "svd"):  # the v_proj of both have rank 4 together, of which svd keeps 2
        only = [name for name in a if name not in b]
        for name in only:
            torch.testing.assert_close(held["model"].state_dict()[name], exact[name] + a[name], atol=1e-5, rtol=0)


def test_a_weight_scales_a_single_adapter(
    base: Path, parts: dict[str, Path], held: dict[str, Any], tmp_path: Path
) -> None:
    merge_adapters(parts["a"], tmp_path / "out", weights=[0.25])
    update, before = updates(parts["a"]), load(base).model.state_dict()
    for name, weight in held["model"].state_dict().items():
        torch.testing.assert_close(weight, before[name] + 0.25 * update.get(name, 0), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("adapters", "options", "words"),
    [
        ([], {}, "there is no adapter to merge"),
        (["a", "b"], {"weights": [1.0]}, "not one weight for each adapter"),
        (["a", "b"], {"method": "sum"}, "there is no method 'sum'"),
        (["a", "b"], {"density": 0.0, "method": "ties"}, "the density is a share"),
        (["prefix"], {}, "of kind prefix cannot be folded"),
        (["a", "rslora"], {}, "kind lora with use_rslora"),
        (["a", "ia3"], {}, "only plain LoRA adapters"),
        (["a", "rank 3"], {"method": "linear"}, "combines adapters of one rank"),
    ],
)
def test_what_cannot_be_merged_is_refused(
    adapters: list[str], options: dict[str, Any], words: str, base: Path, parts: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        merge_adapters(base, tmp_path / "out", adapters=[parts[name] for name in adapters], **options)
    assert not (tmp_path / "out").exists()


def test_an_adapter_of_another_base_is_refused(base: Path, parts: dict[str, Path], tmp_path: Path) -> None:
    other = adapter(tmp_path / "other", base, LoRA(rank=2), 0.1)
    saved = {"name": "another", "fingerprint": "0" * 64, "dtype": "torch.float32"}
    write_manifest(other, {"kind": "adapter", "base": saved})
    with pytest.raises(ModelError, match="trained on other base weights"):
        merge_adapters(base, tmp_path / "out", adapters=[parts["a"], other])


def test_nothing_is_replaced_but_an_earlier_save(parts: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ExportError, match="something else is there"):
        merge_adapters(parts["a"], tmp_path)
    own = adapter(tmp_path / "own", load(parts["a"]).base.folder, LoRA(rank=2), 0.1)
    write_manifest(own, {"kind": "adapter"})
    with pytest.raises(ConfigError, match="would replace what it is made of"):
        merge_adapters(own, own)
