"""T14: a tokenizer that returns a mapping.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

from typing import Any

import pytest

from posttrain.data.encode import Encoder
from posttrain.errors import TemplateError
from tests.encoding import encoder_of, pair
from tests.fixtures import byte_tokenizer, chat, demonstration


def mapping_encoder(template: str, **more: Any) -> Encoder:
    """A tokenizer that answers with a mapping whatever it is asked for."""
    tokenizer = byte_tokenizer(template)
    own = tokenizer.apply_chat_template

    def answer(messages: Any, **options: Any) -> dict[str, list[int]]:
        ids = own(messages, **{**options, "tokenize": True, "return_dict": False}, **more)
        return {"input_ids": ids, "attention_mask": [1] * len(ids)}

    tokenizer.apply_chat_template = answer
    return Encoder(tokenizer)


@pytest.mark.parametrize("template", ["CHATML", "BOS_IN_TEMPLATE", "PHI3_LIKE"])
def test_a_tokenizer_that_returns_a_mapping(template: str) -> None:
    mapping, text = mapping_encoder(template), encoder_of(template)
    for encode in (mapping, text):
        (tree,) = encode.demonstration(demonstration("alpha", "beta"))
        assert tree.num_trained == len("beta") + 1
    row = pair(chat("q"), "yes", "no")
    assert mapping.comparison(row).key == text.comparison(row).key
    assert mapping.prompt(chat("q")) == text.prompt(chat("q"))


def test_ids_that_no_text_gives_back_are_refused() -> None:
    tokenizer = byte_tokenizer("CHATML", merges=[("a", "l"), ("al", "p")])
    number = tokenizer.convert_tokens_to_ids
    apart = [number(letter) for letter in "posttrainprobealp"]
    tokenizer.apply_chat_template = lambda *_, **__: {"input_ids": apart}
    with pytest.raises(TemplateError, match="its own text does not give back"):
        Encoder(tokenizer)
