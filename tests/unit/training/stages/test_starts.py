"""What a stage starts from, settled from files alone: what cannot work is refused before a row is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.config import DPO, SFT, Recipe
from posttrain.config.adapters import (
    ADAPTERS,
    IA3,
    AdapterSettings,
    Bottleneck,
    Continue,
    LoRA,
    PrefixTuning,
    PromptTuning,
    PTuning,
)
from posttrain.config.chain import continued
from posttrain.errors import ConfigError, MissingExtraError, UnknownKeyError
from posttrain.models.folders.loading import LoadedModel, ModelSource, load
from posttrain.training.stages import starts
from posttrain.training.stages.starts import resolve_start
from tests.adapters import save_alone
from tests.fixtures import byte_tokenizer, tiny_model

TOKENIZER = byte_tokenizer("CHATML", pad=None)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A whole model, and adapters of it."""
    root = tmp_path_factory.mktemp("starts")
    base = root / "base"
    tiny_model(vocab=len(TOKENIZER)).save_pretrained(base)
    TOKENIZER.save_pretrained(base)
    found = {"base": base}
    for name, record in {"lora": LoRA(rank=2), "prompt": PromptTuning(tokens=3), "p_tuning": PTuning(tokens=3)}.items():
        found[name] = save_alone(load(base, adapter=record).model, root / name, base, TOKENIZER)
    (root / "model.gguf").write_bytes(b"GGUF")
    found["gguf"] = root / "model.gguf"
    return found


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch, folders: dict[str, Path]) -> None:
    """Settling reads configs and tokenizers; a weight that is read fails the test."""
    from transformers import AutoModelForCausalLM

    def dear(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", dear)
    monkeypatch.setattr(starts, "read_gguf_tokenizer", lambda path: (TOKENIZER, 64))


@pytest.mark.parametrize(
    ("start", "adapter", "positions", "merge"),
    [
        ("base", None, 512, True),
        ("base", LoRA(), 512, True),
        ("base", PrefixTuning(tokens=12), 500, False),
        ("base", Bottleneck(), 512, False),
        ("lora", Continue(), 512, True),
        ("lora", IA3(), 512, True),
        ("prompt", Continue(), 509, False),
        ("gguf", LoRA(), 64, True),
    ],
)
def test_what_files_tell(
    start: str, adapter: AdapterSettings | None, positions: int, merge: bool, folders: dict[str, Path]
) -> None:
    settled = resolve_start(SFT(adapter=adapter), folders[start], CPU)
    assert (settled.positions, settled.merge) == (positions, merge)
    assert settled.tokenizer("Hi").input_ids == TOKENIZER("Hi").input_ids
    assert bool(settled.notes) is not merge
    if not merge:
        assert "cannot be folded into the weights: the folder will hold the adapter alone" in settled.notes[0]


@pytest.mark.parametrize(
    ("start", "options", "words"),
    [
        ("lora", {}, "does not say what becomes of it"),
        ("base", {"adapter": Continue()}, "no adapter to go on with"),
        ("p_tuning", {"adapter": Continue()}, "was not saved with them"),
        ("prompt", {"adapter": LoRA()}, "no other can be put over it"),
        ("prompt", {"adapter": Continue(), "export": {"merge": True}}, "kind prompt cannot be folded"),
        ("lora", {"adapter": LoRA(), "export": {"merge": False}}, "lie in no folder that an adapter could name"),
        ("lora", {"adapter": PromptTuning()}, "lie in no folder that an adapter could name"),
        ("gguf", {"adapter": LoRA(), "export": {"merge": False}}, "a base that others can load"),
        ("gguf", {"adapter": PromptTuning()}, "a base that others can load"),
        ("base", {"adapter": {"kind": "qlora"}}, "qlora needs a CUDA device"),
        ("base", {"adapter": PromptTuning(tokens=511)}, "leave no room for a row"),
    ],
)
def test_what_cannot_work_is_refused_first(
    start: str, options: dict[str, Any], words: str, folders: dict[str, Path]
) -> None:
    with pytest.raises(ConfigError, match=words):
        resolve_start(SFT(**options), folders[start], CPU)


def test_qlora_without_its_package_names_it(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from posttrain.models.adapters import quantised

    monkeypatch.setattr(quantised.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="pip install bitsandbytes"):
        resolve_start(SFT(adapter={"kind": "qlora"}), folders["base"], torch.device("cuda"))


def test_a_loaded_model_says_itself_what_it_is() -> None:
    from posttrain.models.adapters.kinds import add_adapter

    def loaded(adapter: AdapterSettings | None, layout: Any = "model") -> LoadedModel:
        model = tiny_model(vocab=len(TOKENIZER))
        source = ModelSource("tiny", "folder", Path("tiny"), layout)
        return LoadedModel(model if adapter is None else add_adapter(model, adapter), TOKENIZER, source, "", source)

    assert resolve_start(SFT(), loaded(None), CPU).merge
    assert not resolve_start(SFT(), loaded(PromptTuning(tokens=2)), CPU).merge
    assert resolve_start(SFT(), loaded(PromptTuning(tokens=2)), CPU).positions == 510
    with pytest.raises(ConfigError, match="kind prompt cannot be folded"):
        resolve_start(SFT(export={"merge": True}), loaded(PromptTuning(tokens=2)), CPU)
    with pytest.raises(ConfigError, match="a base that others can load"):
        resolve_start(SFT(export={"merge": False}), loaded(LoRA(), "gguf"), CPU)
    with pytest.raises(ConfigError, match="no adapter to go on with"):
        resolve_start(SFT(adapter=Continue()), loaded(None), CPU)


# ---------------------------------------------------------------- settings that an adapter rules out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"adapter": "prompt", "compute": {"logprobs": "tree"}}, "share no prompt, so they run padded"),
        ({"adapter": "prefix", "compute": {"activation_checkpointing": True}}, "would fill twice"),
        ({"adapter": "bottleneck", "export": {"merge": True}}, "of kind bottleneck cannot be folded"),
        ({"adapter": "qlora", "export": {"merge": False}}, "another model than the one"),
        ({"adapter": "qlora", "compute": {"device": "cpu"}}, "needs a CUDA device"),
        ({"adapter": "prompt", "reference": {"kind": "adapter_off"}}, "is not the start of this stage"),
        ({"adapter": "continue", "reference": {"kind": "adapter_off"}}, "is not the start of this stage"),
        ({"adapter": {"kind": "adalora", "rank": 12}}, "lies below the start"),
        ({"adapter": {"kind": "adalora", "initial_ratio": 0.5}}, "no step is left"),
    ],
)
def test_settings_that_an_adapter_rules_out_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        DPO(**options)


def test_an_option_of_another_kind_is_named() -> None:
    with pytest.raises(UnknownKeyError, match="`rank` is not a key of ia3; lora, qlora and adalora have it"):
        SFT(adapter={"kind": "ia3", "rank": 4})


@pytest.mark.parametrize("kind", ADAPTERS)
def test_every_kind_is_written_by_its_name_and_brings_a_rate(kind: str) -> None:
    stage = SFT(adapter=kind)
    assert type(stage.adapter) is ADAPTERS[kind]
    assert stage.learning_rate == pytest.approx(2e-5 * ADAPTERS[kind].RATE[0])


# ---------------------------------------------------------------- from stage to stage


def recipe(*stages: dict[str, Any]) -> Any:
    described = [{"method": "sft", "name": f"s{index}", "data": "x", **stage} for index, stage in enumerate(stages)]
    return Recipe(name="r", model="embedded", stages=described)


ALONE = {"adapter": {"kind": "lora"}, "export": {"merge": False}}
GO_ON = {"adapter": {"kind": "continue"}}


@pytest.mark.parametrize(
    "stages",
    [
        [ALONE, GO_ON],
        [ALONE, {**GO_ON, "export": {"merge": False}}, GO_ON],
        [ALONE, {"adapter": "ia3"}, {}],
        [{"adapter": "prompt"}, GO_ON, GO_ON],
        [{"adapter": "lora"}, {"adapter": "lora"}, {}],
        [GO_ON, {}],
    ],
)
def test_stages_that_fit(stages: list[dict[str, Any]]) -> None:
    assert len(recipe(*stages).stages) == len(stages)


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ([ALONE, {}], "`s0` exports alone, and does not say what becomes of it"),
        ([{"adapter": "lora"}, GO_ON], "there is no adapter to go on with"),
        ([ALONE, GO_ON, GO_ON], "`s1` exports whole weights"),
        ([ALONE, {"adapter": "prompt"}], "lie in no folder that another adapter could name"),
        ([{"adapter": "prompt"}, {"adapter": "lora"}], "no other can be put over it"),
        ([{"adapter": "p_tuning"}, GO_ON], "not saved with them"),
        ([{"adapter": {"kind": "prefix", "projection": 8}}, GO_ON], "not saved with them"),
        ([{"adapter": "prompt"}, {**GO_ON, "export": {"merge": True}}], "kind prompt cannot be folded"),
        ([ALONE, {"adapter": "qlora"}], "only the weights of a whole model can be quantised"),
    ],
)
def test_stages_that_do_not_fit_are_refused_with_the_recipe(stages: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        recipe(*stages)
    assert words in str(caught.value)


def test_a_check_knows_which_adapter_a_stage_goes_on_with() -> None:
    stages = recipe({"adapter": {"kind": "lora", "rank": 3}, "export": {"merge": False}}, GO_ON).stages
    assert continued(stages, "s1") == LoRA(rank=3)
    assert continued(stages, "s0") is None
