"""What holds for every method of merging, whatever the numbers are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from posttrain.errors import ConfigError
from posttrain.models.merging.methods.table import METHODS
from tests.unit.models.merging.methods.cases import merged, models_for, parts_of

WEIGHTED = [name for name, method in METHODS.items() if "weight" in method.model_parameters]
WHOLE = {
    # What makes a method keep all of a difference and take the mean: density 1 drops nothing.
    name: {
        "per_model": {"density": [1.0] * 3},
        **({"normalize": True} if "normalize" in method.options else {}),
    }
    for name, method in METHODS.items()
}
SYMMETRIC = [
    "linear", "multislerp", "karcher", "task_arithmetic", "ties", "breadcrumbs", "breadcrumbs_ties", "sce",
    "model_stock", "ram", "ramplus_tl",
]  # fmt: skip


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("method", METHODS)
def test_equal_models_over_themselves_are_themselves(method: str) -> None:
    model = random(6, 5)
    base = model if METHODS[method].base != "none" else None
    assert torch.allclose(merged(method, [model] * models_for(method), base), model, atol=1e-12)


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("nearswap", "arcee_fusion")])
def test_equal_models_over_another_base_are_themselves(method: str) -> None:
    model = random(6, 5)
    base = random(6, 5, seed=1) if METHODS[method].base != "none" else None
    result = merged(method, [model] * models_for(method), base, **WHOLE[method])
    assert torch.allclose(result, model, atol=1e-12), method


@pytest.mark.parametrize("method", SYMMETRIC)
def test_the_order_of_models_does_not_matter(method: str) -> None:
    models, base = [random(6, 5, seed=seed) for seed in (1, 2, 3)], random(6, 5)
    given = base if METHODS[method].base != "none" else None
    order = (2, 0, 1)
    weights = {"weight": [0.5, 1, 2]}
    moved = {"weight": [weights["weight"][at] for at in order]}
    one = merged(method, models, given, per_model=weights)
    other = merged(method, [models[at] for at in order], given, per_model=moved)
    assert torch.allclose(one, other, atol=1e-9)


def test_slerp_from_the_other_end() -> None:
    first, second = random(4, 4), random(4, 4, seed=1)
    assert torch.allclose(merged("slerp", [first, second], t=0.3), merged("slerp", [second, first], t=0.7))
    assert torch.equal(merged("slerp", [first, second], t=0.0), first)
    assert torch.allclose(merged("slerp", [first, second], t=1.0), second)


@pytest.mark.parametrize("method", [name for name in WEIGHTED if METHODS[name].models[1] is None])
def test_a_weight_of_0_is_a_model_that_is_not_there(method: str) -> None:
    models, base = [random(6, 5, seed=seed) for seed in (1, 2, 3)], random(6, 5)
    given = base if METHODS[method].base != "none" else None
    without = merged(method, models[:2], given, per_model={"weight": [0.5, 1]})
    assert torch.allclose(merged(method, models, given, per_model={"weight": [0.5, 1, 0]}), without, atol=1e-12)


@pytest.mark.parametrize("method", [name for name in WEIGHTED if METHODS[name].base == "needed"])
@pytest.mark.parametrize("options", [{"per_model": {"weight": [0, 0]}}, {"lambda_": 0.0}])
def test_nothing_added_is_the_base(method: str, options: dict) -> None:
    base = random(6, 5)
    assert torch.equal(merged(method, [random(6, 5, seed=1), random(6, 5, seed=2)], base, **options), base)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare_ties", "della", "breadcrumbs_ties"])
@pytest.mark.parametrize("normalize", [True, False])
def test_a_negative_weight_takes_away(method: str, normalize: bool) -> None:
    """Divided by the weights and not by their sizes, -1 / -1 would add what was to be unlearnt."""
    delta = torch.tensor([1.0, -2, 3])
    result = merged(method, [delta], per_model={"weight": [-1], "density": [1]}, normalize=normalize)
    assert torch.equal(result, -delta)


# ---------------------------------------------------------------- never NaN

ZERO, ONE = torch.zeros(4, 4), torch.ones(4, 4)
NASTY: dict[str, Sequence[Tensor]] = {
    "zeros": (ZERO, ZERO, ZERO, ZERO),
    "one of them 0": (ZERO, ONE, ZERO, ONE),
    "equal": (ONE, ONE, ONE, ONE),
    "one zero difference": (ONE, ONE, ONE * 2, ONE * 3),
    "opposite": (ZERO, ONE, -ONE, ONE),
    "opposite differences": (ONE, ONE * 2, ZERO, ONE),
    "tiny": (ZERO, ONE * 1e-30, ONE * -1e-30, ONE * 2e-30),
    "huge": (ZERO, ONE * 1e15, ONE * -3e15, ONE * 1e14),
    "one entry": tuple(torch.tensor([value]) for value in (0.0, 1, -2, 3)),
    "a scalar": tuple(torch.tensor(value) for value in (0.0, 1, -2, 3)),
    "four dimensions": tuple(torch.full((2, 3, 1, 2), value) for value in (0.0, 1, -2, 3)),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", NASTY)
def test_never_nan(method: str, case: str) -> None:
    base, *models = NASTY[case]
    row = METHODS[method]
    flags = [name for name, known in row.options.items() if isinstance(known, bool)]
    words = {"rescale": ("paper", "l1", "none"), "vectors": ("tensor", "rows", "columns")}
    for density in (0.0, 0.01, 0.5, 1.0):
        for flag in (True, False):
            for word in range(3):
                options = dict.fromkeys(flags, flag)
                options |= {name: given[word] for name, given in words.items() if name in row.options}
                for over in (None, base) if row.base == "optional" else (base if row.base == "needed" else None,):
                    densities = {"density": [density] * 3}
                    result = merged(method, models[: models_for(method)], over, per_model=densities, **options)
                    assert result.isfinite().all(), (density, options, result)
                    assert result.shape == models[0].shape and result.dtype == models[0].dtype


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision_is_merged_in_float32(method: str, dtype: torch.dtype) -> None:
    models = [random(8, 8, seed=seed).to(dtype) for seed in range(models_for(method))]
    base = random(8, 8, seed=9).to(dtype) if METHODS[method].base != "none" else None
    wide = METHODS[method](
        parts_of(method, [model.float() for model in models], None if base is None else base.float())
    )
    half = METHODS[method](parts_of(method, models, base))
    assert half.dtype == dtype and torch.equal(half, wide.to(dtype))
    assert METHODS[method](parts_of(method, models, base), torch.float32).dtype == torch.float32


def test_karcher_takes_no_step_along_rounding_errors() -> None:
    model = random(101).float()
    result = merged("karcher", [model, model, -model])
    assert torch.allclose(result, model, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_weights_do_not_pass_for_differences(method: str) -> None:
    parts = parts_of(method, [random(4, 4)] * models_for(method))
    wrong = replace(parts, base=None if METHODS[method].base == "needed" else random(4, 4))
    if METHODS[method].base == "optional":
        assert METHODS[method](wrong).isfinite().all()
        return
    with pytest.raises(AssertionError, match=method):
        METHODS[method](wrong)


def test_weights_that_sum_to_0_are_named() -> None:
    with pytest.raises(ConfigError, match=r"w: the weights of this tensor sum to 0"):
        merged("linear", [[1, 2], [3, 4]], per_model={"weight": [1, -1]})


# ---------------------------------------------------------------- against loops

NUMBERS = st.lists(st.integers(-4, 4).map(float), min_size=5, max_size=5)


@settings(max_examples=60, deadline=None)
@given(models=st.lists(NUMBERS, min_size=1, max_size=4), weights=st.lists(st.integers(-2, 2), min_size=4, max_size=4))
def test_ties_entry_by_entry(models: list[list[float]], weights: list[int]) -> None:
    """The paper's three steps in plain loops; keeping 3 of 5 entries, the first among equals."""
    result = merged("ties", models, per_model={"density": [0.6] * 4, "weight": weights})
    trimmed = []
    for model in models:
        kept = sorted(range(5), key=lambda at, model=model: -abs(model[at]))[:3]
        trimmed.append([value if at in kept else 0.0 for at, value in enumerate(model)])
    for at in range(5):
        values = [(weight, weight * model[at]) for weight, model in zip(weights, trimmed, strict=False)]
        total = sum(value for _, value in values)
        agreeing = [(weight, value) for weight, value in values if value * total > 0]
        divisor = sum(abs(weight) for weight, _ in agreeing)
        expected = sum(value for _, value in agreeing) / divisor if agreeing else 0.0
        assert math.isclose(float(result[at]), expected, abs_tol=1e-12)


@settings(max_examples=60, deadline=None)
@given(delta=st.lists(st.integers(-9, 9).map(float), min_size=1, max_size=40), density=st.floats(0.01, 1))
def test_a_share_of_the_entries_is_kept(delta: list[float], density: float) -> None:
    result = merged("ties", [delta], per_model={"density": [density]})
    kept = max(1, int(density * len(delta) + 1e-6))
    largest = sorted((abs(value) for value in delta), reverse=True)[:kept]
    assert sorted((abs(float(value)) for value in result if value != 0), reverse=True) == [x for x in largest if x != 0]


def test_0_29_of_100_is_29() -> None:
    result = merged("ties", [torch.arange(1.0, 101)], per_model={"density": [0.29]})
    assert int((result != 0).sum()) == 29 and 0.29 * 100 < 29


def test_breadcrumbs_without_room_for_an_outlier() -> None:
    """A gamma of less than one entry drops no outlier, and not the whole tensor."""
    result = merged("breadcrumbs", [[3.0, 2, 1, 4]], per_model={"density": [0.5], "gamma": [0.01]})
    assert result.tolist() == [3, 0, 0, 4]
