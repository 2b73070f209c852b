"""Methods by name."""

from __future__ import annotations

import pytest
import torch

from posttrain.errors import ConfigError, UnknownKeyError
from posttrain.losses.feedback import FEEDBACK
from posttrain.losses.pairwise import PAIRWISE
from posttrain.outputs import TokenLogprobs
from posttrain.training.objectives import ALGORITHMS, algorithm
from posttrain.types import Comparison, Demonstration
from tests.loss_batches import batch_of, random_pairs, run


def test_sft_and_every_row_of_the_table_are_methods() -> None:
    assert set(ALGORITHMS) >= {"sft", "conditional_sft", *PAIRWISE, *FEEDBACK}
    for name in ALGORITHMS:
        assert algorithm(name).name == name


def test_sft() -> None:
    sft = algorithm("sft")
    assert (sft.kind, sft.unit, sft.needs_reference, dict(sft.parameters)) == (Demonstration, "tokens", False, {})
    batch = batch_of([(2,)])
    assert sft.loss(TokenLogprobs(torch.tensor([-1.0, -2.0])), None, batch, batch.count).loss.item() == 1.5


def test_a_pairwise_method_takes_its_parameters() -> None:
    method = algorithm("dpo", {"beta": 0.5})
    assert (method.kind, method.unit, method.needs_reference) == (Comparison, "pairs", True)
    assert dict(method.parameters) == {"beta": 0.5}
    assert not algorithm("simpo").needs_reference
    batch, policy_N, reference_N = random_pairs(3)
    out = method.loss(TokenLogprobs(policy_N), reference_N, batch, batch.count)
    assert out.loss.item() == run("dpo", policy_N, reference_N, batch, beta=0.5).loss.item()


def test_defaults_are_shown_with_the_rest() -> None:
    assert dict(algorithm("simpo", {"gamma": 0.5}).parameters) == {"beta": 2.0, "gamma": 0.5}


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(UnknownKeyError) as caught:
        algorithm("simpoo")
    assert "did you mean `simpo`?" in str(caught.value)
    with pytest.raises(UnknownKeyError, match="ppo-max"):
        algorithm("ppo-max")


def test_parameters_are_checked_before_training() -> None:
    with pytest.raises(ConfigError) as caught:
        algorithm("dpo", {"beta": -1.0})
    assert str(caught.value).startswith("dpo: beta is out of range")
    with pytest.raises(UnknownKeyError, match="beta") as unknown:
        algorithm("sft", {"beta": 0.1})
    assert "dpo" in str(unknown.value)
    with pytest.raises(UnknownKeyError, match="label_smoothing"):
        algorithm("dpo", {"label_smoothing": 0.1})
