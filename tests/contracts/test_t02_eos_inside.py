"""T02: an eos inside a row is a token like any other.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

from posttrain.data.encode import Encoder, EncoderSettings
from posttrain.data.trees import collate
from posttrain.types import Demonstration, Message, RowRef, TokenTree
from tests.fixtures import byte_tokenizer


def raw_encoder() -> Encoder:
    """pad_id = eos_id = 2, no BOS, and no template: prompt, completion, eos."""
    tokenizer = byte_tokenizer(bos=None, pad_is_eos=True, ids={"</s>": 2})
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2
    return Encoder(tokenizer, EncoderSettings(template="raw"))


def row_of_ids(encoder: Encoder, prompt: list[int], completion: list[int]) -> TokenTree:
    texts = [encoder.tokens.decode(ids) for ids in (prompt, completion)]
    messages = (Message("user", texts[0]), Message("assistant", texts[1]))
    (tree,) = encoder.demonstration(Demonstration(messages, RowRef("t.jsonl", 1)))
    return tree


def test_eos_inside() -> None:
    encoder = raw_encoder()
    tree = row_of_ids(encoder, [5, 2], [6])
    batch = collate([tree])
    assert batch.input_ids_T.tolist() == [5, 2, 6, 2]
    assert batch.positions_T.tolist() == [0, 1, 2, 3] and batch.target_index_N.tolist() == [2, 3]
    inner = row_of_ids(encoder, [5], [6, 2, 6])
    assert inner.branches[0].loss_mask.tolist() == [True] * 4, "an eos inside an answer trains like any token"
