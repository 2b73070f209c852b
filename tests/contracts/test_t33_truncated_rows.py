"""T33, the encoder's side: a cut row gets no stop token."""

from __future__ import annotations

from pathlib import Path

from posttrain.data.encode import Encoder
from posttrain.data.store import encode
from posttrain.data.trees import count
from posttrain.types import Demonstration, RowRef
from tests.encoding import encoder_of
from tests.fixtures import chat


def raw(max_length: int, truncation: str) -> Encoder:
    return encoder_of(None, {"template": "raw", "max_length": max_length, "truncation": truncation})


def test_a_cut_row_has_no_eos(tmp_path: Path) -> None:
    finished = Demonstration(chat("q", "done"), RowRef("t.jsonl", 1))
    limit = Demonstration(chat("q", "x" * 40), RowRef("t.jsonl", 2))
    dropping, cutting = raw(20, "drop"), raw(20, "cut_response")
    kept = encode([finished, limit], dropping, store=tmp_path)
    alone = encode([finished], dropping, store=tmp_path)
    assert kept.fingerprint == alone.fingerprint and count(list(kept)) == count(list(alone))
    assert kept.counts.dropped == {"too_long": 1}
    cut = encode([finished, limit], cutting, store=tmp_path)[1].branches[0]
    assert not set(cut.ids.tolist()) & cutting.stop_ids and cut.loss_mask.all() and len(cut.ids) == 19
