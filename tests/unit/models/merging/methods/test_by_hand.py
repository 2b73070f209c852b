"""Every method of merging on numbers that were worked out by hand, from the formulas of the papers."""

from __future__ import annotations

import math

import pytest
import torch

from posttrain.config.merge_methods import MERGE_METHODS
from posttrain.models.merging.methods.table import METHODS, generator_of
from posttrain.models.merging.methods.thinning import rank_probabilities
from tests.unit.models.merging.methods.cases import merged

# Three differences of four entries; the two largest of each: [4 . . 3], [2 3 . .], [-3 . . 2].
# Signs of the sums 3, 3, 0, 5; means of those that agree: (4 + 2) / 2, 3, nothing, (3 + 2) / 2.
TIES = [[4, -1, 0.5, 3], [2, 3, -0.2, -1], [-3, 0.4, 1, 2]]
TAILS = [10, -4, 3, 2, 1, 0.5, -0.2, 0.1, 0.05, 0.01]
OTHER_TAILS = [0.1, 5, 1, -20, 4, 0.5, 0.2, 0.3, 0.05, 0.01]
C = math.cos(math.pi / 8)  # a quarter of a right angle
S = math.sin(math.pi / 8)
WEIGHTS = {"weight": [3, 1]}

BY_HAND = [
    ("linear", dict(models=[[1, 2], [3, 6]], per_model=WEIGHTS), [1.5, 3]),  # (3 + 3) / 4, (6 + 6) / 4
    ("linear", dict(models=[[1, 2], [3, 6]], per_model=WEIGHTS, normalize=False), [6, 12]),
    ("slerp", dict(models=[[1, 0], [0, 1]], t=0.25), [C, S]),
    ("slerp", dict(models=[[1, 0], [0, 2]], t=0.25), [C, 2 * S]),
    ("slerp", dict(models=[[1, 0], [2, 0.01]], t=0.25), [1.25, 0.0025]),  # nearly parallel: linear
    ("nuslerp", dict(models=[[1, 0], [0, 1]], per_model=WEIGHTS), [C, S]),  # t = 1 / 4
    ("nuslerp", dict(models=[[3, 2], [2, 3]], base=[2, 2], per_model=WEIGHTS), [2 + C, 2 + S]),  # of differences
    (
        "nuslerp",
        dict(models=[[[1, 0], [2, 0]], [[0, 1], [4, 0]]], per_model=WEIGHTS, vectors="rows"),
        [[C, S], [2.5, 0]],
    ),
    (
        "nuslerp",
        dict(models=[[[1, 2], [0, 0]], [[0, 4], [1, 0]]], per_model=WEIGHTS, vectors="columns"),
        [[C, 2.5], [S, 0]],
    ),
    ("multislerp", dict(models=[[1, 0], [0, 3]]), [2 * 0.5**0.5, 2 * 0.5**0.5]),  # mean length 2, halfway
    ("multislerp", dict(models=[[1, 0], [0, 1]], per_model=WEIGHTS), [3 / 10**0.5, 1 / 10**0.5]),
    ("karcher", dict(models=[[1, 0], [0, 1]], per_model=WEIGHTS), [C, S]),  # on a circle: the mean of the angles
    ("karcher", dict(models=[[1, 0], [0, 3]]), [2 * 0.5**0.5, 2 * 0.5**0.5]),
    ("karcher", dict(models=[[1, 0], [-3, 0]]), [2, 0]),  # no mean direction: the first one's
    # differences [1 2] and [-1 0]; 1 + 0.5, 2; half of that over the base
    (
        "task_arithmetic",
        dict(models=[[2, 3], [0, 1]], base=[1, 1], per_model={"weight": [1, -0.5]}, lambda_=0.5),
        [1.75, 2],
    ),
    # normalised by 1 + 0.5, the sum of sizes
    (
        "task_arithmetic",
        dict(models=[[2, 3], [0, 1]], base=[1, 1], per_model={"weight": [1, -0.5]}, normalize=True),
        [2, 1 + 4 / 3],
    ),
    ("ties", dict(models=TIES, per_model={"density": [0.5] * 3}), [3, 3, 0, 2.5]),
    # weighted: (4 + 6) / 4, 9 / 3, nothing, (3 + 2) / 2; twice that
    ("ties", dict(models=TIES, per_model={"density": [0.5] * 3, "weight": [1, 3, 1]}, lambda_=2.0), [5, 6, 0, 5]),
    (
        "ties",
        dict(models=TIES, per_model={"density": [0.5] * 3, "weight": [1 / 3, 1 / 7, 1 / 3]}),
        [3.4, 3, 0, 2.5],
    ),  # (34 / 21) / (10 / 21)
    ("ties", dict(models=TIES, per_model={"density": [0.5] * 3}, normalize=False), [6, 3, 0, 5]),
    # |4 -1 0.5 3| is 8.5, what is left 7; 11 / 7 of a lone model
    ("ties", dict(models=TIES[:1], per_model={"density": [0.5]}, rescale="l1"), [4 * 8.5 / 7, 0, 0, 3 * 8.5 / 7]),
    # of ten entries the largest one is dropped and the next three are kept: -4 3 2
    (
        "breadcrumbs",
        dict(models=[TAILS], per_model={"density": [0.3], "gamma": [0.1]}),
        [0, -4, 3, 2, 0, 0, 0, 0, 0, 0],
    ),
    # with all kept there is no room for an outlier
    ("breadcrumbs", dict(models=[TAILS], per_model={"density": [1], "gamma": [0.5]}), TAILS),
    # of the other model 5 4 1 are kept: -4 and 5 disagree, and the sum is positive
    (
        "breadcrumbs_ties",
        dict(models=[TAILS, OTHER_TAILS], per_model={"density": [0.3] * 2, "gamma": [0.1] * 2}),
        [0, 5, 4, 2, 4, 0, 0, 0, 0, 0],
    ),
    # mean squares 2 and 1, so shares 2/3 and 1/3; of the second entry only one model has the sign of the sum
    ("sce", dict(models=[[2, 0], [1, -1]]), [5 / 3, -1]),
    # as small as differences of fine-tuned models are
    ("sce", dict(models=[[2e-4, 0], [1e-4, -1e-4]]), [5e-4 / 3, -1e-4]),
    # variances 0.25 0.25 0 4: 0.4 of the three that vary is one entry, where the first model changed nothing
    ("sce", dict(models=[[2, 0, 1, 0], [1, -1, 1, 4]], select_topk=0.4), [0, 0, 0, 4]),
    # c = 1 / √2, t = 2c / (1 + c) = 2 √2 - 2
    ("model_stock", dict(models=[[1, 0], [1, 1]]), [2 * 2**0.5 - 2, 2**0.5 - 1]),
    (
        "model_stock",
        dict(models=[[[1, 0], [0, 1]], [[1, 1], [0, 1]]], filter_wise=True),
        [[2 * 2**0.5 - 2, 2**0.5 - 1], [0, 1]],
    ),
    # c = -1, where t has a pole, and c < 0, where it would lead away
    ("model_stock", dict(models=[[1, 0], [-1, 0]]), [0, 0]),
    ("model_stock", dict(models=[[1, 0], [-1, 1]]), [0, 0]),
    ("ram", dict(models=[[1, 2, 0], [3, 0, 1e-6]]), [2, 2, 0]),
    # the first model shares one entry and has one of its own: 1 + 0.1 min(1, 0.2)
    ("ramplus_tl", dict(models=[[1, 2, 0], [3, 0, 0]]), [2, 2.04, 0]),
    ("ramplus_tl", dict(models=[[1, 2, 0], [3, 0, 0]], alpha=2.0), [2, 2.2, 0]),
    ("nearswap", dict(models=[[1.5, -1, 1.1]], base=[1, 1, 1], t=0.5), [1.5, 0.5, 1.1]),
    # one row, so importance goes with |δ|: threshold 0.3 + 1.5 (0.4 - 0.2) = 0.6
    ("arcee_fusion", dict(models=[[0.1, 0.2, 0.3, -0.4, 5]]), [0, 0, 0, 0, 5]),
    ("passthrough", dict(models=[[1, 2]], per_model={"scale": [2]}), [2, 4]),
]
DRAWN = ("dare_linear", "dare_ties", "della", "della_linear")


@pytest.mark.parametrize(("method", "given", "expected"), BY_HAND, ids=[case[0] for case in BY_HAND])
def test_by_hand(method: str, given: dict, expected: list) -> None:
    result = merged(method, **given)
    assert torch.allclose(result, torch.tensor(expected, dtype=torch.float64), atol=1e-9, rtol=0), result


def test_every_method_is_worked_by_hand_and_has_a_source() -> None:
    assert list(METHODS) == list(MERGE_METHODS), "one row of METHODS for each of MERGE_METHODS, in one order"
    assert {case[0] for case in BY_HAND} | set(DRAWN) == set(METHODS)
    assert {name for name, method in METHODS.items() if method.random} == set(DRAWN)
    assert all(len(method.source) > 12 for method in METHODS.values())


# ---------------------------------------------------------------- methods that draw

FIRST, SECOND = [8.0, -2, 4, 6, 1, -3], [1.0, 2, -4, 2, -5, -1]


def draws(shape: tuple[int, ...], count: int, seed: int = 0) -> list[torch.Tensor]:
    """What a method draws for each model, one after the other."""
    generator = generator_of(seed, "w")
    return [torch.rand(shape, generator=generator) for _ in range(count)]


def test_dare_by_hand() -> None:
    first, second = draws((6,), 2)
    kept = [(first < 0.5) * torch.tensor(FIRST) * 2, (second < 0.25) * torch.tensor(SECOND) * 4]
    result = merged("dare_linear", [FIRST, SECOND], per_model={"density": [0.5, 0.25], "weight": [1, 0.5]})
    assert torch.equal(result, (kept[0] + 0.5 * kept[1]).double())

    result = merged("dare_ties", [FIRST, SECOND], per_model={"density": [0.5, 0.25]})
    for entry, (one, two) in enumerate(zip(kept[0].tolist(), kept[1].tolist(), strict=True)):
        sign = math.copysign(1, one + two) if one + two else 0
        agreeing = [value for value in (one, two) if value * sign > 0]
        assert result[entry] == (sum(agreeing) / len(agreeing) if agreeing else 0)


def test_dare_keeps_the_expectation() -> None:
    """Over 400 draws of 200 entries: the mean is the difference, as the paper's division promises; and some are 0."""
    delta = torch.linspace(-1, 1, 200, dtype=torch.float64)
    runs = torch.stack(
        [merged("dare_linear", [delta], per_model={"density": [0.25]}, seed=seed) for seed in range(400)]
    )
    error = runs.mean(0) - delta
    assert error.abs().max() < 5 * (0.75 / 0.25 / 400) ** 0.5
    assert 0.24 < (runs != 0).double().mean() < 0.26
    assert set((runs[:, -1]).tolist()) == {0.0, 4.0}  # exactly over the density, or gone


def test_l1_keeps_the_sum_of_magnitudes() -> None:
    for method in ("dare_linear", "della_linear", "breadcrumbs"):
        result = merged(method, [[FIRST, SECOND]], rescale="l1", per_model={"density": [0.5]})
        assert 0 < (result != 0).sum() < 12
        assert math.isclose(result.abs().sum(), 24 + 15, rel_tol=1e-6), method
    unscaled = merged("dare_linear", [[FIRST, SECOND]], rescale="none", per_model={"density": [0.5]})
    assert set(unscaled.flatten().tolist()) <= {0.0, *FIRST, *SECOND}


def test_della_keeps_large_entries_more_often() -> None:
    # ranks by magnitude in each row: 1 -> 0.3, 2 -> 0.5, 3 -> 0.7
    probabilities = rank_probabilities(torch.tensor([[1.0, -3, 2], [6.0, 5, 4]]), 0.5, 0.2)
    assert torch.allclose(probabilities, torch.tensor([[0.3, 0.7, 0.5], [0.7, 0.5, 0.3]]))
    assert torch.allclose(rank_probabilities(torch.tensor([4.0]), 0.5, 0.2), torch.tensor([0.5]))
    # what would leave 0 to 1 is narrowed about the density: 0.1 ± 0.1
    assert torch.allclose(rank_probabilities(torch.tensor([1.0, 2, 3]), 0.1, 0.2), torch.tensor([0.0, 0.1, 0.2]))


def test_della_by_hand() -> None:
    ranks = torch.tensor([5, 1, 3, 4, 0, 2])
    probability = 0.5 + 0.15 * (2 * ranks / 5 - 1)
    kept = (draws((6,), 1)[0] < probability) * torch.tensor(FIRST)
    assert torch.allclose(merged("della_linear", [FIRST]), (kept / probability).double(), rtol=1e-6)
    assert torch.allclose(merged("della", [FIRST], lambda_=0.5), (kept / probability).double() / 2, rtol=1e-6)


def test_a_tensor_has_a_stream_of_its_own() -> None:
    same = [merged("dare_linear", [FIRST], seed=3) for _ in range(2)]
    assert torch.equal(*same)
    assert not torch.equal(same[0], merged("dare_linear", [FIRST], seed=4))
    assert generator_of(0, "a").initial_seed() != generator_of(0, "b").initial_seed()
    # A model that joins behind the others leaves their draws as they are.
    alone, both = (
        merged("dare_linear", models, per_model={"weight": [1, 0][: len(models)]})
        for models in ([FIRST], [FIRST, SECOND])
    )
    assert torch.equal(alone, both)
