"""Our side of the comparison with mergekit, without mergekit: the cases are files of its, and cover every method."""

from __future__ import annotations

import pytest
import torch

from benchmarks.merge_cases import CASES, SHAPES, tensors_of
from benchmarks.mergekit_parity import Difference, compare, merged, table
from posttrain.models.merging.methods.table import METHODS


def test_every_method_has_a_case() -> None:
    assert {case.method for case in CASES} == set(METHODS)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_a_case_is_merged(case) -> None:
    result = merged(case, SHAPES[0], 0)
    assert result.shape == SHAPES[0] and result.isfinite().all()
    assert torch.equal(result, merged(case, SHAPES[0], 0))


def test_a_difference_is_seen() -> None:
    case = next(case for case in CASES if case.method == "passthrough")
    theirs = [(1.5 * tensors_of(case, shape, seed)[1][0]).flatten().tolist() for shape in SHAPES for seed in (0, 1, 2)]
    assert compare(case, theirs).largest == 0 and compare(case, theirs).as_expected
    theirs[4][0] += 0.01
    wrong = compare(case, theirs)
    assert wrong.largest > 1e-3 and not wrong.as_expected
    assert "NOT EXPECTED" in table([wrong]) and "NOT EXPECTED" not in table([Difference(case, 1e-7)])
