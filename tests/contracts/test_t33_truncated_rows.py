"""T33, the encoder's side: a cut row gets no stop token.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from posttrain.data import read
from posttrain.data.encode import Encoder
from posttrain.data.store import encode
from posttrain.data.trees import count
from posttrain.errors import RowError, TemplateError
from posttrain.types import Comparison, Demonstration, Message, RowRef
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


def cut_pair(rejected: str) -> Comparison:
    sides = ((Message("assistant", "done"),), (Message("assistant", rejected, complete=False),))
    return Comparison(chat("q"), sides, 0, RowRef("pairs.jsonl", 1))


@pytest.mark.parametrize("template", [None, "CHATML", "NO_BOS", "NO_TERMINATOR", "TURN_END", "GEMMA_LIKE"])
def test_an_answer_that_says_it_was_cut_gets_no_stop_token(template: str | None) -> None:
    encoder = encoder_of(template, {"template": "chat" if template else "raw"})
    whole, cut = encoder.comparison(cut_pair("I am a lan")).branches
    assert whole.ids[-1] in encoder.stop_ids and whole.loss_mask[-1]
    assert not set(cut.ids.tolist()) & encoder.stop_ids and cut.loss_mask.all()
    assert encoder.tokens.decode(cut.ids.tolist()).lstrip() == "I am a lan"  # and nothing else that ends a turn


def test_thoughts_that_were_cut_stay_open() -> None:
    encoder = encoder_of("THINK_PREFILL")
    sides = ((Message("assistant", "so</think>4"),), (Message("assistant", "first I", complete=False),))
    tree = encoder.comparison(Comparison(chat("2+2?"), sides, 0, RowRef("pairs.jsonl", 1)))
    assert encoder.tokens.decode(tree.branches[1].ids.tolist()) == "first I"


def test_a_later_turn_sees_the_cut_one_ended_and_untrained() -> None:
    encoder = encoder_of("CHATML")
    turns = (*chat("q"), Message("assistant", "cu", complete=False), *chat("go on", "t."))
    (tree,) = encoder.demonstration(Demonstration(turns, RowRef("t.jsonl", 1)))
    trained = [text for text, trains in encoder.decode_marked(tree) if trains]
    assert trained == ["cu", "t.<|im_end|>"]


def test_the_mark_is_read_from_a_row(tmp_path: Path) -> None:
    path = tmp_path / "cut.jsonl"
    turn = {"role": "assistant", "content": "cu", "complete": False}
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "q"}, turn]}) + "\n")
    (row,) = read(path)
    assert isinstance(row, Demonstration) and not row.messages[1].complete
    path.write_text(path.read_text().replace("false", '"no"'))
    with pytest.raises(RowError, match="`complete` in turn 2") as error:
        read(path)
    assert error.value.reason == "bad_flag"


def test_a_call_that_says_it_was_cut_is_refused() -> None:
    calls = ({"type": "function", "function": {"name": "add", "arguments": {}}},)
    turns = (*chat("q"), Message("assistant", "Let me", tool_calls=calls, complete=False))
    with pytest.raises(TemplateError, match="complete: false"):
        encoder_of("TOOLS").demonstration(Demonstration(turns, RowRef("t.jsonl", 1)))
