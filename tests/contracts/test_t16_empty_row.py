"""T16: a row without anything to train on changes neither loss nor gradient of the others.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

import pytest
import torch

from tests.contracts.test_t22_accumulation_invariance import gradient
from tests.fixtures import make_tree


def test_an_empty_row_is_as_if_absent() -> None:
    rows = [make_tree([1, 2], [3, 4, 5]), make_tree([6], [7, 8]), make_tree([9, 10], [11])]
    empty = make_tree([12, 13], ([14, 15], [False, False]))
    loss, whole = gradient("sft", rows, 1000)
    with_empty, again = gradient("sft", [rows[0], empty, *rows[1:]], 1000)
    assert with_empty == pytest.approx(loss, rel=1e-6)
    assert torch.isfinite(again).all()
    torch.testing.assert_close(again, whole, rtol=1e-5, atol=1e-7)
