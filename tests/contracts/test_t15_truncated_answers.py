"""T15: truncated answers are counted, and nothing left is an error.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.data.encode import Encoder
from posttrain.data.store import encode
from posttrain.errors import EmptyDatasetError
from posttrain.types import Demonstration, Message, RowRef
from tests.encoding import encoder_of


def raw(max_length: int, truncation: str) -> Encoder:
    return encoder_of(None, {"template": "raw", "max_length": max_length, "truncation": truncation})


@pytest.mark.parametrize("max_length", [128, 48, 32, 24, 16])
@pytest.mark.parametrize("truncation", ["drop", "keep_prompt_end", "cut_response"])
def test_truncated_answers(tmp_path: Path, max_length: int, truncation: str) -> None:
    """64 rows, prompts of 28 to 31 tokens, answers of 6 with their stop token."""
    rows = [
        Demonstration(
            (Message("user", "p" * (28 + n % 4)), Message("assistant", "yes " + str(n % 10))), RowRef("t.jsonl", n)
        )
        for n in range(1, 65)
    ]
    encoder = raw(max_length, truncation)
    fits = [28 + n % 4 + 6 <= max_length for n in range(1, 65)]
    room = [28 + n % 4 < max_length for n in range(1, 65)]
    expected = {"drop": sum(fits), "cut_response": sum(room), "keep_prompt_end": 64}[truncation]
    if not expected:
        with pytest.raises(EmptyDatasetError, match="all 64 rows were dropped"):
            encode(rows, encoder, store=tmp_path)
        return
    dataset = encode(rows, encoder, store=tmp_path)
    assert dataset.counts.kept == len(dataset) == expected
    assert dataset.counts.kept + sum(dataset.counts.dropped.values()) == 64
    assert sum(dataset.counts.truncated.values()) == expected - sum(fits)
    assert all(tree.num_trained > 0 and tree.num_tokens <= max_length for tree in dataset)
