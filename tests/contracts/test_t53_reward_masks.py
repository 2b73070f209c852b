"""T53 for reward models: no prompt token is scored, averaged or counted.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

import pytest

from posttrain.data.reward_encode import RewardEncoder
from posttrain.data.trees import collate
from posttrain.losses.reward import response_tokens
from tests.encoding import pair
from tests.fixtures import byte_tokenizer, chat


@pytest.mark.parametrize(("template", "tail"), [("CHATML", 1), ("LLAMA3_LIKE", 0), ("GEMMA_LIKE", 1)])
def test_only_responses_count(template: str, tail: int) -> None:
    encoder = RewardEncoder(byte_tokenizer(template))
    tree = encoder.comparison(pair(chat("a long question"), "chosen", "no"))
    batch = collate([tree])
    assert response_tokens(batch).tolist() == [len("chosen") + 1 + tail, len("no") + 1 + tail]
    assert min(batch.target_index_N.tolist()) == len(tree.prompt_ids)
