"""Files of mergekit's become settings of the same merge, or are refused by what they ask for."""

from __future__ import annotations

import pytest

from posttrain.config.mergekit import from_mergekit, is_mergekit
from posttrain.config.varied import Filtered
from posttrain.errors import ConfigError, UnknownKeyError

TIES = """
models:
  - model: one
    parameters: {density: [1, 0.7, 0.1], weight: 1.0}
  - model: two
    parameters:
      density: 0.5
      weight:
        - {filter: mlp, value: 0.5}
        - value: 0
  - model: base
merge_method: ties
base_model: base
parameters: {normalize: true, int8_mask: true}
dtype: float16
"""
SLERP = """
slices:
  - sources:
      - {model: one, layer_range: [0, 40]}
      - {model: two, layer_range: [0, 40]}
merge_method: slerp
base_model: two
parameters: {t: [{filter: self_attn, value: [0, 0.5, 1]}, {value: 0.5}]}
dtype: bfloat16
tokenizer_source: union
"""


def test_ties() -> None:
    found = from_mergekit(TIES, "ties.yml")
    merge = found.settings
    assert (merge.kind, merge.base.model, [model.model for model in merge.models]) == ("ties", "base", ["one", "two"])
    assert merge.of_model(0, "density") == (1, 0.7, 0.1) and merge.common("density") == 1.0
    assert merge.of_model(1, "weight") == (Filtered(filter="mlp", value=0.5), Filtered(value=0.0))
    assert (merge.common("rescale"), merge.common("normalize"), merge.dtype) == ("none", True, "float16")
    assert (merge.tokens, found.layers) == ("refuse", None)
    said = "\n".join(found.notes)
    for words in ("`int8_mask` is left out", "computed in float32", "last norm", "adds nothing", "other tokens"):
        assert words in said


def test_slerp_counts_from_the_base() -> None:
    found = from_mergekit(SLERP, "slerp.yml")
    assert [model.model for model in found.settings.models] == ["two", "one"]
    assert (found.settings.base, found.settings.tokens, found.layers) == (None, "union", 40)
    assert not any("other tokens" in note for note in found.notes)


@pytest.mark.parametrize(
    ("method", "normalize", "rescale"),
    [("dare_ties", False, "l1"), ("della", True, "l1"), ("breadcrumbs", False, "none"), ("ties", True, "none")],
)
def test_its_own_defaults(method: str, normalize: bool, rescale: str) -> None:
    text = f"{{merge_method: {method}, base_model: base, models: [{{model: one, parameters: {{weight: 1}}}}]}}"
    merge = from_mergekit(text, "a.yml").settings
    assert (merge.common("normalize"), merge.common("rescale"), merge.common("density")) == (normalize, rescale, 1)
    other = from_mergekit(text[:-1] + ", parameters: {rescale: false, density: 0.5, epsilon: 0.1}}", "a.yml")
    assert (other.settings.common("rescale"), other.settings.common("density")) == ("none", 0.5)
    assert any("`epsilon` of the merge is left out" in note for note in other.notes) == (method != "della")


def test_other_names() -> None:
    pair = "models: [{model: one, parameters: {weight: 1}}, {model: two, parameters: {weight: 3}}]"
    rows = from_mergekit(f"{{merge_method: nuslerp, {pair}, parameters: {{nuslerp_flatten: false}}}}", "a.yml")
    assert rows.settings.common("vectors") == "rows"
    options = "parameters: {nuslerp_flatten: false, nuslerp_row_wise: true}"
    assert (
        from_mergekit(f"{{merge_method: nuslerp, {pair}, {options}}}", "a.yml").settings.common("vectors") == "columns"
    )
    karcher = from_mergekit("{merge_method: karcher, models: [{model: a}, {model: b}], base_model: c, "
                            "parameters: {max_iter: 3, tol: 0.1}}", "a.yml").settings  # fmt: skip
    assert (karcher.common("iterations"), karcher.common("tolerance")) == (3, 0.1)
    assert [model.model for model in karcher.models] == ["a", "b", "c"]
    ram = from_mergekit("{merge_method: ram, base_model: c, models: [{model: a}], parameters: {epsilon: 0.1}}", "a.yml")
    assert ram.settings.common("threshold") == 0.1


@pytest.mark.parametrize(
    ("before", "after", "problem"),
    [
        ("merge_method: ties", "merge_method: tise", "did you mean `ties`"),
        ("dtype: float16", "dtyp: float16", "did you mean `dtype`"),
        ("dtype: float16", "dtype: float64", "expected: one of auto, float32"),
        ("dtype: float16", "modules: {}", "module by module"),
        ("dtype: float16", "chat_template: chatml", "keeps the template"),
        ("dtype: float16", "tokenizer: {source: base, tokens: {x: {source: one}}}", "tokenizer.tokens"),
        ("dtype: float16", "tokenizer_source: elsewhere", "expected: union, base"),
        ("dtype: float16", "slices: []", "`models` or `slices`"),
        ("model: one", "model: one+adapter", "named by the adapter's folder"),
        ("model: one", "model: one@main", "without a revision"),
        ("weight: 1.0", "wieght: 1.0", "`one` has no weight"),
        ("density: 0.5", "density: 1.5", "a number >= 0 and <= 1"),
        ("merge_method: ties", "gate_mode: hidden", "mixtures of experts"),
        ("merge_method: ties", "x: 1", "no merge of mergekit's"),
    ],
)
def test_refused(before: str, after: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_mergekit(TIES.replace(before, after), "ties.yml")
    assert problem in str(caught.value) and "ties.yml" in str(caught.value)
    assert "remedy" in str(caught.value)


@pytest.mark.parametrize(
    "layers",
    ["[0, 20]}\n      - {model: two, layer_range: [0, 40]", "[8, 40]}\n      - {model: two, layer_range: [8, 40]"],
)
def test_layers_are_not_reordered(layers: str) -> None:
    text = SLERP.replace("[0, 40]}\n      - {model: two, layer_range: [0, 40]", layers)
    with pytest.raises(ConfigError, match="neither stacks nor reorders layers"):
        from_mergekit(text, "frankenstein.yml")


def test_which_documents_are_mergekits() -> None:
    assert is_mergekit({"merge_method": "ties"}) and is_mergekit({"gate_mode": "hidden"})
    assert not is_mergekit({"stages": []}) and not is_mergekit(None)
    with pytest.raises(UnknownKeyError, match="the merge method `moe` is not known"):
        from_mergekit("merge_method: moe", "a.yml")
