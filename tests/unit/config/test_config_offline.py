"""Stages of the offline family beyond one row of the pairwise table: feedback, mixes, conditional SFT."""

from __future__ import annotations

from typing import Any

import pytest

from posttrain.config import ConditionalSFT, Mix, Preference
from posttrain.config.load import parse_recipe
from posttrain.config.stages import Reward
from posttrain.errors import ConfigError, UnknownKeyError
from posttrain.losses.feedback import OBJECTIVES


def recipe(**stage: Any) -> str:
    keys = "".join(f"    {key}: {value}\n" for key, value in stage.items())
    return f"schema: 1\nname: mine\nmodel: embedded\nstages:\n  - data: package://preferences.jsonl\n{keys}"


@pytest.mark.parametrize("method", ["kto", "bco", "apo_zero", "apo_zero_unpaired", "dpo_pl", "aot", "wpo", "mpo"])
def test_a_row_is_a_method_of_a_recipe(method: str) -> None:
    (stage,) = parse_recipe(recipe(method=method, beta=0.3)).stages
    assert stage.method == method and stage.parameters["beta"] == 0.3  # type: ignore[attr-defined]
    assert OBJECTIVES[method].source in type(stage).__doc__  # type: ignore[operator]


def test_the_parameters_of_feedback_exist_where_they_are_used() -> None:
    assert Preference("kto", desirable_weight=1.33).parameters["desirable_weight"] == 1.33
    with pytest.raises(UnknownKeyError, match="kto, bco and apo_zero_unpaired have it"):
        Preference("dpo", desirable_weight=1.0)
    with pytest.raises(ConfigError, match="undesirable_weight"):
        Preference("kto", undesirable_weight=0.0)
    with pytest.raises(ConfigError, match="tail_weight"):
        Preference("ld_dpo", tail_weight=1.5)


def test_kto_refuses_steps_of_one_row() -> None:
    with pytest.raises(ConfigError, match="a step of one row has none"):
        Preference("kto", rows_per_step=1)
    assert Preference("kto", rows_per_step=2).rows_per_step == 2
    assert Preference("bco", rows_per_step=1).rows_per_step == 1


def test_a_mix_from_a_recipe_and_from_python() -> None:
    terms = "[{loss: dpo, weight: 0.8, parameters: {beta: 0.2}}, {loss: sft}]"
    (written,) = parse_recipe(recipe(method="mix", losses=terms)).stages
    spoken = Mix(losses=[{"loss": "dpo", "weight": 0.8, "parameters": {"beta": 0.2}}, {"loss": "sft"}])
    assert written.losses == spoken.losses  # type: ignore[attr-defined]
    assert spoken.reference_kind == "auto"
    assert Mix(losses=[{"loss": "simpo"}, {"loss": "sft"}]).reference_kind is None


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ([], "losses"),
        ([{"loss": "dp0"}], "the method `dp0` is not known"),
        ([{"loss": "kto"}], "the method `kto` is not known"),
        ([{"loss": "dpo", "weight": 0}], "weight"),
        ([{"loss": "dpo", "parameters": {"gamma": 1.0}}], "`gamma` is not a parameter"),
        ([{"loss": "dpo", "parameters": {"beta": -1.0}}], "beta is out of range"),
        ([{"loss": "sft", "parameters": {"beta": 1.0}}], "`beta` is not a parameter"),
        ([{"loss": "dpo", "beta": 0.1}], "beta"),
    ],
)
def test_wrong_mixes_are_refused(losses: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Mix(losses=losses)
    assert message in str(caught.value)


def test_conditional_sft_says_two_things() -> None:
    assert ConditionalSFT().good != ConditionalSFT().bad
    with pytest.raises(ConfigError, match="the same line"):
        ConditionalSFT(good="Answer.", bad="Answer.")
    with pytest.raises(ConfigError, match="place"):
        ConditionalSFT(place="assistant")
    (stage,) = parse_recipe(recipe(method="conditional_sft", place="user")).stages
    assert isinstance(stage, ConditionalSFT) and stage.place == "user" and stage.learning_rate == 2e-5


def test_whitening_needs_rows_that_are_held_out() -> None:
    with pytest.raises(ValueError, match="whitening is measured on held-out rows"):
        Reward(data="pairs.jsonl", normalise={"kind": "whiten"}, held_out=0)  # type: ignore[arg-type]
    assert Reward(data="pairs.jsonl", normalise={"kind": "whiten"}, held_out=0.1).held_out == 0.1  # type: ignore[arg-type]
