"""T53: neither prompt of a pair trains.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

import pytest

from posttrain.data.trees import collate
from tests.encoding import encoder_of, pair
from tests.fixtures import chat


@pytest.mark.parametrize("template", ["CHATML", "LLAMA3_LIKE", "MISTRAL_LIKE"])
def test_both_prompts_are_masked(template: str) -> None:
    encoder = encoder_of(template)
    tree = encoder.comparison(pair(chat("question"), "chosen answer", "no"))
    space = 1 if template == "MISTRAL_LIKE" else 0
    lengths = [len(text) + space + 1 for text in ("chosen answer", "no")]
    assert [int(branch.loss_mask.sum()) for branch in tree.branches] == lengths
    batch = collate([tree])
    assert len(batch.target_index_N) == sum(lengths)
    assert min(batch.target_index_N.tolist()) == len(tree.prompt_ids)
