"""T88: a choice without a gradient in the policy is refused when the recipe is read, and no other one is.

The whole product of ratios, surrogates, reductions and corrections is taken over every row of the table. Each that is
accepted has a gradient, of the policy term alone, at ratio 1 and on advantages around 1; each that is refused has none.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.config import parse_recipe
from posttrain.config.online import Online, OnlineStage
from posttrain.data.trees import collate
from posttrain.errors import ConfigError
from posttrain.losses.online import CHOICES, ONLINE, OnlineRow, variant
from posttrain.losses.surrogates import RATIOS, SURROGATES
from tests.online_batches import group, run

SURROGATE_OF_RATIO = ("clip", "dual_clip", "soft_gate")
SENTENCE = "ratio that is always 1 has no gradient"
RECIPE = """
schema: 1
name: a
model: embedded
stages:
  - {{method: {method}, data: package://tasks.jsonl, rewards: [{{kind: math}}], choices: {choices}}}
"""


def tokens(advantage: float, length: int) -> dict[str, list[float]]:
    names = ("old_logprobs", "reference_logprobs", "sampler_logprobs")
    return {"advantages": [advantage] * length, **{name: [-1.0] * length for name in names}}


BATCH = collate([group([tokens(1.0, 2), tokens(-0.5, 3)])])


def slope_of_row(row: OnlineRow) -> Tensor:
    """d policy term / d log-prob of each token, on policy."""
    logprob_N = torch.full((5,), -1.0, dtype=torch.float64, requires_grad=True)
    out = run(row, logprob_N, BATCH, on_policy=True)
    assert out.teaching is not None
    (slope_N,) = torch.autograd.grad(out.teaching, logprob_N)
    return slope_N


def slope_of_parts(ratio: str, surrogate: str, parameters: Mapping[str, float]) -> Tensor | None:
    """The same of two columns that no row has together."""
    logprob_N = torch.full((5,), -1.0, dtype=torch.float64, requires_grad=True)
    ratio_N = RATIOS[ratio].of(logprob_N - logprob_N.detach(), BATCH)
    advantage_N = BATCH.columns_N["advantages"].double()
    total = SURROGATES[surrogate].of(ratio_N, advantage_N, logprob_N, parameters).loss_N.sum()
    return torch.autograd.grad(total, logprob_N)[0] if total.requires_grad else None


@pytest.mark.parametrize("name", ONLINE)
def test_what_is_accepted_has_a_gradient_and_what_is_refused_has_none(name: str) -> None:
    columns = ("ratio", "surrogate", "reduction", "correction")
    accepted = 0
    for choice in itertools.product(*(CHOICES[column] for column in columns)):
        made = dict(zip(columns, choice, strict=True))
        dead = made["ratio"] == "none" and made["surrogate"] in SURROGATE_OF_RATIO
        if dead:
            with pytest.raises(ConfigError, match=SENTENCE) as caught:
                variant(ONLINE[name], **made)
            assert f"`ratio: {made['ratio']}`" in str(caught.value)
            assert f"`surrogate: {made['surrogate']}`" in str(caught.value)
            assert slope_of_parts(made["ratio"], made["surrogate"], SURROGATES[made["surrogate"]].defaults) is None
            continue
        accepted += 1
        if made["reduction"] in ("token_mean", "sequence_mean"):  # the others divide by constants alone
            assert slope_of_row(variant(ONLINE[name], **made)).abs().min() > 1e-6, made
    corrections = len(CHOICES["correction"])
    assert accepted == (4 * 5 * 4 - 3 * 4) * corrections


@pytest.mark.parametrize("name", ONLINE)
def test_every_row_as_it_stands_has_a_gradient(name: str) -> None:
    assert slope_of_row(ONLINE[name]).abs().min() > 1e-6


@pytest.mark.parametrize(
    ("method", "choices", "both"),
    [
        ("grpo", {"ratio": "none"}, ("ratio: none", "surrogate: clip")),
        ("sapo", {"ratio": "none"}, ("ratio: none", "surrogate: soft_gate")),
        ("rloo", {"surrogate": "clip"}, ("ratio: none", "surrogate: clip")),
        ("maxrl", {"surrogate": "soft_gate"}, ("ratio: none", "surrogate: soft_gate")),
        ("rloo", {"surrogate": "dual_clip"}, ("ratio: none", "surrogate: dual_clip")),
        ("distil_reverse_kl", {"ratio": "none", "surrogate": "clip"}, ("ratio: none", "surrogate: clip")),
    ],
)
def test_the_recipe_is_refused_and_the_remedy_works(
    method: str, choices: dict[str, str], both: tuple[str, str]
) -> None:
    given: dict[str, Any] = {"teacher": "embedded"} if method == "distil_reverse_kl" else {}
    with pytest.raises(ConfigError, match=SENTENCE) as caught:
        Online(method, choices=choices, **given)
    assert all(f"`{key}`" in str(caught.value) for key in both)
    surrogate = both[1].removeprefix("surrogate: ")
    for remedy in ({"ratio": "token", "surrogate": surrogate}, {"ratio": "none", "surrogate": "reinforce"}):
        written = "{" + ", ".join(f"{key}: {value}" for key, value in remedy.items()) + "}"
        assert f"`choices: {written}`" in caught.value.remedy
        stage = Online(method, choices=remedy, **given)
        assert isinstance(stage, OnlineStage) and slope_of_row(stage.row).abs().min() > 1e-6
    if not given:
        written = "{" + ", ".join(f"{key}: {value}" for key, value in choices.items()) + "}"
        with pytest.raises(ConfigError, match=SENTENCE):
            parse_recipe(RECIPE.format(method=method, choices=written))


def test_no_row_can_be_made_by_hand_either() -> None:
    with pytest.raises(ConfigError, match=SENTENCE):
        OnlineRow("group_std", "none", "clip", "token_mean", {"entropy_weight": 0.0}, "nobody")
