"""T49: 3 of 12 tokens on one rank and 3 of 4 on the other are 6 of 16.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

import torch

from posttrain.diagnostics.metrics import merge
from posttrain.outputs import Mean


def test_t49() -> None:
    assert merge([{"share": Mean(3.0, 12)}, {"share": Mean(3.0, 4)}])["share"].value == 0.375
    ranks = [{"share": Mean(torch.tensor(3.0), torch.tensor(n))} for n in (12.0, 4.0)]
    assert merge(ranks)["share"].value == 0.375
