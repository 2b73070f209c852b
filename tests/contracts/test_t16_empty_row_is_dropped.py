"""T16, the encoder's side: an empty row never reaches a batch.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

from pathlib import Path

from posttrain.data.store import encode
from posttrain.data.trees import count
from posttrain.types import Demonstration, Message, RowRef
from tests.encoding import encoder_of
from tests.fixtures import chat


def test_one_empty_row(tmp_path: Path) -> None:
    encoder = encoder_of()
    rows = [Demonstration(chat(f"q{n}", f"a{n}"), RowRef("t.jsonl", n)) for n in range(1, 5)]
    rows[2] = Demonstration((Message("user", "q3"), Message("assistant", "a3", train=False)), RowRef("t.jsonl", 3))
    dataset = encode(rows, encoder, store=tmp_path)
    others = [encoder.demonstration(row)[0] for row in (rows[0], rows[1], rows[3])]
    assert dataset.counts.dropped == {"nothing_to_train": 1}
    assert [tree.key for tree in dataset] == [tree.key for tree in others]
    assert count(list(dataset)) == count(others)
