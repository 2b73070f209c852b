"""T05: a tokenizer without BOS.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

from tests.encoding import encoder_of, pair, path_ids, shown
from tests.fixtures import chat, demonstration


def test_no_bos() -> None:
    encoder = encoder_of("NO_BOS", bos=None)
    assert encoder.bos_id is None
    tree = encoder.comparison(pair(chat("q"), "a", "b"))
    assert shown(encoder, tree) == "<|user|>\nq</s>\n<|assistant|>\na</s>"
    assert all(isinstance(number, int) for number in path_ids(tree))
    raw = encoder_of(None, {"template": "raw"}, bos=None)
    assert shown(raw, raw.demonstration(demonstration("q", "a"))[0]) == "qa</s>"
