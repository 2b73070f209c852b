"""Weights and densities of one tensor, from settings that differ between layers and tensors."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.config.merging import merge_settings
from posttrain.config.varied import Filtered
from posttrain.models.merging.methods.parameters import Layers, parameter_at, resolved

MLP, ATTENTION = "model.layers.{}.mlp.up_proj.weight", "model.layers.{}.self_attn.q_proj.weight"


def test_layers_by_the_names_own_numbering() -> None:
    names = [MLP.format(layer) for layer in range(4)]
    names += [
        "model.embed_tokens.weight",
        "lm_head.weight",
        "vision.blocks.1.norm.weight",
        "model.layers.2.experts.7.w",
    ]
    layers = Layers.of(names)
    assert layers.counts == {"model.layers": 4, "vision.blocks": 2}
    assert layers.place(MLP.format(3)) == (3, 4)
    assert layers.place("vision.blocks.1.norm.weight") == (1, 2)
    assert layers.place("model.layers.2.experts.7.w") == (2, 4)  # the expert's number is none of a layer
    assert layers.place("lm_head.weight") == (None, 4)
    assert Layers.of(["weight"]).place("weight") == (None, 1)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.3, [0.3, 0.3, 0.3, 0.3, 0.3]),
        ((0.0, 1.0), [0, 0.25, 0.5, 0.75, 1]),
        ((0.0, 1.0, 0.0), [0, 0.5, 1, 0.5, 0]),
        ((2.0,), [2, 2, 2, 2, 2]),
    ],
)
def test_over_the_layers(value: float | tuple[float, ...], expected: list[float]) -> None:
    assert [parameter_at(value, MLP.format(layer), layer, 5) for layer in range(5)] == pytest.approx(expected)


def test_outside_of_the_layers() -> None:
    assert parameter_at((0.0, 1.0), "model.embed_tokens.weight", None, 5) == 0
    assert parameter_at((0.0, 1.0), "transformer.wte.weight", None, 5) == 0
    assert parameter_at((0.0, 1.0), "lm_head.weight", None, 5) == 1
    assert parameter_at((0.0, 1.0), "model.norm.weight", None, 5) == 1
    assert parameter_at((0.0, 1.0), MLP.format(0), 0, 1) == 1  # the only layer, as in mergekit


def test_by_filters() -> None:
    value = (Filtered(filter="self_attn", value=(0.0, 1.0)), Filtered(filter="mlp", value=0.25), Filtered(value=0.5))
    assert parameter_at(value, ATTENTION.format(1), 1, 3) == 0.5
    assert parameter_at(value, MLP.format(1), 1, 3) == 0.25
    assert parameter_at(value, "model.norm.weight", None, 3) == 0.5
    assert parameter_at(value[:2], "model.norm.weight", None, 3) is None
    assert parameter_at((Filtered(filter="*", value=2.0),), "model.norm.weight", None, 3) == 2


@given(values=st.lists(st.floats(-5, 5), min_size=1, max_size=6), layers=st.integers(1, 40), data=st.data())
def test_between_the_least_and_the_largest(values: list[float], layers: int, data: st.DataObject) -> None:
    layer = data.draw(st.integers(0, layers - 1))
    found = parameter_at(tuple(values), MLP.format(layer), layer, layers)
    assert found is not None and min(values) - 1e-9 <= found <= max(values) + 1e-9


def test_a_models_own_value_counts_first_then_the_merges_then_the_methods() -> None:
    settings = merge_settings(
        "ties",
        [{"model": "a", "weight": [{"filter": "mlp", "value": 3}]}, {"model": "b", "density": 0.9}],
        weight=[{"filter": "layers", "value": 2}],
        lambda_=[0, 1],
    )
    per_model, options = resolved(settings, MLP.format(1), 1, 2)
    assert per_model == ({"weight": 3, "density": 0.2}, {"weight": 2, "density": 0.9})
    assert options == {"lambda": 1, "normalize": True, "rescale": "paper"}
    per_model, options = resolved(settings, "model.embed_tokens.weight", None, 2)
    assert per_model[0] == {"weight": 1, "density": 0.2} and options["lambda"] == 0
