"""T44: each response against the mean of the others; a group of one has no others.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

import pytest
import torch

from posttrain.advantages import group_advantages
from posttrain.errors import ConfigError


def test_t44() -> None:
    found = group_advantages("leave_one_out", torch.tensor([1.0, 0.5, 0.0]), torch.zeros(3, dtype=torch.long))
    torch.testing.assert_close(found.values_B, torch.tensor([0.75, 0.0, -0.75]))


def test_t44_a_group_of_one() -> None:
    with pytest.raises(ConfigError, match="at least 2") as error:
        group_advantages("leave_one_out", torch.tensor([1.0]), torch.zeros(1, dtype=torch.long))
    assert "completions_per_prompt" in str(error.value)
