"""What cannot be merged is refused before a byte is written, and the refusal names both models and the values."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from posttrain.config.adapters import LoRA, PrefixTuning
from posttrain.config.merging import merge_settings
from posttrain.data.speech import Speech, write_speech
from posttrain.errors import ConfigError, ModelError
from posttrain.models.adapters.kinds import add_adapter
from posttrain.models.folders.loading import load
from posttrain.models.merging.run import merge_models, planned
from tests.adapters import disturb, save_alone
from tests.fixtures import byte_tokenizer, tiny_model

TOKENIZER = byte_tokenizer("CHATML", pad=None)


def save(folder: Path, seed: int = 1, *, arch: str = "llama", tokenizer: Any = TOKENIZER, **config: Any) -> Path:
    config.setdefault("vocab", len(tokenizer))
    tiny_model(arch, seed=seed, **config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def edit(folder: Path, **changes: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def with_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    stored = load_file(folder / "model.safetensors")
    change(stored)
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    return folder


def spoken(folder: Path, **record: Any) -> Path:
    write_speech(folder, Speech("chat", TOKENIZER.chat_template, **record))
    return folder


def reward(folder: Path, labels: int = 1) -> Path:
    config = tiny_model(vocab=len(TOKENIZER)).config
    config.num_labels = labels
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


def quantised(folder: Path) -> Path:
    return edit(save(folder), quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})


def another_bpe() -> Any:
    return byte_tokenizer("CHATML", pad=None, merges=[("h", "e")])


def other_token_at_an_id() -> Any:
    return byte_tokenizer("CHATML", pad=None, eos="<end>")


def other_merges() -> tuple[Any, Any]:
    """Equal vocabularies, other cuts: "abc" is a-bc in one and ab-c in the other."""
    pairs = [("a", "b"), ("b", "c")]
    one, two = (byte_tokenizer("CHATML", pad=None, merges=list(order)) for order in (pairs, pairs[::-1]))
    said = json.loads(two.backend_tokenizer.to_str())
    said["model"]["vocab"] = json.loads(one.backend_tokenizer.to_str())["model"]["vocab"]
    two._tokenizer = type(two.backend_tokenizer).from_str(json.dumps(said))
    return one, two


CASES: dict[str, tuple[Callable[[Path], Path], Callable[[Path], Path], str, str]] = {
    "size of the vocabulary": (
        save,
        lambda folder: save(folder, tokenizer=another_bpe()),
        r"have other vocabularies",
        r"tokens; id \d+ is ",
    ),
    "padded rows": (
        save,
        lambda folder: save(folder, vocab=len(TOKENIZER) + 7),
        "embeddings for another number of ids",
        r"vocab_size: \d+ in .* vocab_size: \d+ in",
    ),
    "other tokens of the same number": (
        save,
        lambda folder: save(folder, tokenizer=other_token_at_an_id()),
        "have other vocabularies",
        r"id \d+ is '</s>' in .* and '<end>' in",
    ),
    "other merges": (
        lambda folder: save(folder, tokenizer=other_merges()[0]),
        lambda folder: save(folder, tokenizer=other_merges()[1]),
        r"cut text differently \(merges\)",
        "its own merges in .*, another one in",
    ),
    "tied": (
        lambda folder: save(folder, tie_word_embeddings=True),
        save,
        "shares its embeddings",
        "tie_word_embeddings: true in .*, tie_word_embeddings: false in",
    ),
    "rope": (
        save,
        lambda folder: save(folder, rope_theta=5e5, rope_parameters={"rope_theta": 5e5, "rope_type": "default"}),
        r"compute differently with the same weights: `rope_parameters.rope_theta`",
        r"10000.0 in .*500000.0 in",
    ),
    "norm": (
        save,
        lambda folder: save(folder, rms_norm_eps=1e-5),
        "`rms_norm_eps` of config.json",
        "1e-06 in .*1e-05 in",
    ),
    "activation": (save, lambda folder: save(folder, hidden_act="gelu"), "`hidden_act`", '"silu" in .*"gelu" in'),
    "architecture": (
        save,
        lambda folder: save(folder, arch="mistral"),
        "different architectures",
        "LlamaForCausalLM in .*MistralForCausalLM in",
    ),
    "layers": (save, lambda folder: save(folder, num_hidden_layers=1), "`num_hidden_layers`", "2 in .*1 in"),
    "a reward model": (
        save,
        reward,
        "a reward model cannot be merged with a policy",
        "a policy in .*, a reward model in",
    ),
    "another head": (reward, lambda folder: reward(folder, 3), "heads with other outputs", "LABEL_0 in .*LABEL_2 in"),
    "a missing tensor": (
        save,
        lambda folder: with_tensors(save(folder), lambda stored: stored.pop("model.norm.weight")),
        "not made of the same tensors",
        "lacks: model.norm.weight; has beyond: none",
    ),
    "a tensor too many": (
        save,
        lambda folder: with_tensors(save(folder), lambda stored: stored.update(v_head=torch.ones(3))),
        "not made of the same tensors",
        "lacks: none; has beyond: v_head",
    ),
    "another shape": (
        save,
        lambda folder: with_tensors(save(folder), lambda stored: stored.update({"model.norm.weight": torch.ones(5)})),
        "`model.norm.weight` has another shape",
        r"\[32\] in .*\[5\] in",
    ),
    "the template": (
        save,
        lambda folder: save(folder, tokenizer=_with_template("{{ messages[0].content }}")),
        "trained to be spoken to differently",
        "two texts of the template",
    ),
    "values of the template": (
        lambda folder: spoken(save(folder), template_kwargs={"enable_thinking": True}),
        lambda folder: spoken(save(folder), template_kwargs={"enable_thinking": False}),
        "trained to be spoken to differently",
        "enable_thinking true and false",
    ),
    "another token that ends a text": (
        save,
        lambda folder: save(folder, tokenizer=_with_eos("<|im_end|>")),
        "other special tokens: `eos_token`",
        r"'</s>' in .*'<\|im_end\|>' in",
    ),
}


def _with_template(text: str) -> Any:
    tokenizer = byte_tokenizer("CHATML", pad=None)
    tokenizer.chat_template = text
    return tokenizer


def _with_eos(token: str) -> Any:
    tokenizer = byte_tokenizer("CHATML", pad=None)
    tokenizer.eos_token = token
    return tokenizer


@pytest.mark.parametrize("name", CASES)
def test_two_models_that_do_not_fit(name: str, tmp_path: Path) -> None:
    first, second, problem, found = CASES[name]
    one, two = first(tmp_path / "one"), second(tmp_path / "two")
    with pytest.raises(ConfigError, match=problem) as caught:
        merge_models(merge_settings("linear", [one, two]), tmp_path / "out")
    assert _matches(found, str(caught.value.found))
    assert str(one) in str(caught.value) and str(two) in str(caught.value) and caught.value.remedy
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def _matches(pattern: str, text: str) -> bool:
    import re

    return re.search(pattern, text, re.DOTALL) is not None


def test_a_base_that_does_not_fit_is_refused_too_but_not_for_its_template(tmp_path: Path) -> None:
    one, two = save(tmp_path / "one", 1), save(tmp_path / "two", 2)
    plain = byte_tokenizer("CHATML", pad=None)
    plain.chat_template = None
    base = save(tmp_path / "base", 3, tokenizer=plain)
    with planned(merge_settings("ties", [one, two], base=base), tmp_path / "out") as plan:
        assert plan.base is not None
    other = save(tmp_path / "other", 3, rms_norm_eps=1e-3)
    with (
        pytest.raises(ConfigError, match="rms_norm_eps"),
        planned(merge_settings("ties", [one, two], base=other), tmp_path / "out"),
    ):
        pass


def test_a_template_may_be_chosen(tmp_path: Path) -> None:
    one = save(tmp_path / "one")
    two = save(tmp_path / "two", tokenizer=_with_template("{{ messages[0].content }}"))
    settings = merge_settings("linear", [one, two], template="first")
    with planned(settings, tmp_path / "out") as plan:
        assert plan.models[0].tokenizer.chat_template == TOKENIZER.chat_template


@pytest.mark.parametrize(
    ("second", "problem", "remedy"),
    [
        (quantised, "are quantised", "before it was quantised"),
        (
            lambda folder: save_alone(
                disturb(add_adapter(load(save(folder.parent / "start")).model, PrefixTuning(tokens=2)), 0.1),
                folder,
                folder.parent / "start",
                TOKENIZER,
            ),
            "an adapter of kind prefix cannot be folded",
            "only adapters of the weights",
        ),
    ],
    ids=["quantised", "virtual tokens"],
)
def test_weights_that_are_no_weights(second: Callable[[Path], Path], problem: str, remedy: str, tmp_path: Path) -> None:
    one, two = save(tmp_path / "one"), second(tmp_path / "two")
    with pytest.raises((ModelError, ConfigError), match=problem) as caught:
        merge_models(merge_settings("linear", [one, two]), tmp_path / "out")
    assert remedy in caught.value.remedy and not (tmp_path / "out").exists()


def test_eight_bit_floats_are_quantised_weights(tmp_path: Path) -> None:
    one = save(tmp_path / "one")
    two = with_tensors(
        save(tmp_path / "two"),
        lambda stored: stored.update({"lm_head.weight": stored["lm_head.weight"].to(torch.float8_e4m3fn)}),
    )
    with pytest.raises(ModelError, match="are quantised") as caught:
        merge_models(merge_settings("linear", [one, two]), tmp_path / "out")
    assert "`lm_head.weight` of type F8_E4M3" in str(caught.value.found)


@pytest.mark.parametrize(("inside", "problem"), [("", "would replace"), ("merged", "would lie inside")])
def test_a_merge_does_not_replace_what_it_is_made_of(inside: str, problem: str, tmp_path: Path) -> None:
    one, two = save(tmp_path / "one", 1), save(tmp_path / "two", 2)
    with pytest.raises(ConfigError, match=problem) as caught:
        merge_models(merge_settings("linear", [two, one]), one / inside)
    assert str(one) in str(caught.value.found)


def test_the_base_has_to_be_known(tmp_path: Path) -> None:
    one, two = save(tmp_path / "one", 1), save(tmp_path / "two", 2)
    with pytest.raises(ConfigError, match=r"`.*one` does not say which model it was trained from") as caught:
        merge_models(merge_settings("ties", [one, two]), tmp_path / "out")
    assert "--base" in caught.value.remedy


def test_layers_that_a_file_counts(tmp_path: Path) -> None:
    one = save(tmp_path / "one")
    with pytest.raises(ConfigError, match="the slices name other layers") as caught:
        merge_models(merge_settings("linear", [one]), tmp_path / "out", layers=24)
    assert str(caught.value.found).startswith("2 layers") and caught.value.expected == "24 layers"


def test_a_base_by_another_spelling_is_still_one_of_the_models(tmp_path: Path) -> None:
    one, base = save(tmp_path / "one", 1), save(tmp_path / "base", 2)
    other = tmp_path / "one" / ".." / "base"
    with pytest.raises(ConfigError, match="is also one of the models"):
        merge_models(merge_settings("ties", [one, other], base=base), tmp_path / "out")


@pytest.mark.parametrize("whose", ["model", "merge"])
def test_a_filter_that_no_tensor_fits_is_refused(whose: str, tmp_path: Path) -> None:
    one, two = save(tmp_path / "one", 1), save(tmp_path / "two", 2)
    weight = [{"filter": "mpl", "value": 1.0}, {"value": 0.5}]
    if whose == "model":
        settings = merge_settings("linear", [{"model": one, "weight": weight}, two])
    else:
        settings = merge_settings("linear", [one, two], weight=weight)
    with pytest.raises(ConfigError, match="`mpl` is in no tensor's name") as caught:
        merge_models(settings, tmp_path / "out")
    assert "weight" in str(caught.value.where) and not (tmp_path / "out").exists()


def test_what_is_worth_a_word_is_no_error(tmp_path: Path) -> None:
    base, other = save(tmp_path / "base", 1), save(tmp_path / "other", 2)
    adapter = save_alone(disturb(add_adapter(load(base).model, LoRA(rank=2))), tmp_path / "adapter", base, TOKENIZER)
    with planned(merge_settings("linear", [base, tmp_path / "base" / ".." / "base"]), tmp_path / "out") as plan:
        assert [note for note in plan.notes if "counts twice" in note]
    with planned(merge_settings("ties", [adapter], base=other), tmp_path / "out") as plan:
        assert [note for note in plan.notes if f"was trained on {base}" in note and f"the base is {other}" in note]
    with planned(merge_settings("ties", [adapter], base=base), tmp_path / "out") as plan:
        assert not plan.notes
