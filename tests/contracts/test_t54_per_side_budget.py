"""T54: a budget for each side of a pair.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

from pathlib import Path

from posttrain.data.encode import Encoder, EncoderSettings
from posttrain.data.store import encode
from tests.encoding import pair
from tests.fixtures import byte_tokenizer, chat


def test_a_budget_for_each_side(tmp_path: Path) -> None:
    encoder = Encoder(
        byte_tokenizer(),
        EncoderSettings(template="raw", max_length=10, truncation="per_side_budget", stop_token="ignore"),
    )
    tree = encoder.comparison(pair(chat("p" * 6), "c" * 20, "r" * 3))
    assert [len(branch.ids) for branch in tree.branches] == [4, 3]
    assert tree.prompt_ids.tolist() == encoder.prompt(chat("p" * 6)) and len(tree.prompt_ids) == 6
    assert all(len(tree.prompt_ids) + len(branch.ids) <= 10 for branch in tree.branches)
    rows = [pair(chat("p" * 6), "c" * 20, "r" * 3, row=1), pair(chat("p" * 12), "c" * 20, "r" * 3, row=2)]
    dataset = encode(rows, encoder, store=tmp_path)
    assert len(dataset) == 1 and dataset[0].key == tree.key
    assert dataset.counts.dropped == {"prompt_too_long": 1} and dataset.counts.truncated == {"response_cut": 1}
    assert next(dataset.dropped())["row"] == "pairs.jsonl, row 2"
