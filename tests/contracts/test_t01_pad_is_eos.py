"""T01: a pad token that is also the eos token hides nothing.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

from posttrain.data.encode import Encoder, EncoderSettings
from posttrain.data.trees import collate
from posttrain.types import Demonstration, Message, RowRef, TokenTree
from tests.encoding import path_ids
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


def test_pad_is_eos() -> None:
    encoder = raw_encoder()
    trees = [row_of_ids(encoder, [5], [6]), row_of_ids(encoder, [5], [6, 7, 8])]
    assert [path_ids(tree) for tree in trees] == [[5, 6, 2], [5, 6, 7, 8, 2]]
    batch = collate(trees)
    assert batch.input_ids_T.tolist() == [5, 6, 2, 5, 6, 7, 8, 2], "lengths 3 and 5, and no padding at all"
    assert batch.target_ids_N.tolist() == [6, 2, 6, 7, 8, 2], "both final 2s train"
