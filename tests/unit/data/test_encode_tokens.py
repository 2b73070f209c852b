"""Text to ids: boundaries, special tokens, and the cut into pieces that must change nothing."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from posttrain.data.tokens import Tokens
from posttrain.errors import EncodingError
from tests.fixtures import bpe_tokenizer, byte_tokenizer


def test_special_tokens_are_single_ids_and_none_is_added() -> None:
    tokenizer = byte_tokenizer("CHATML", add_bos=True)
    tokens = Tokens(tokenizer)
    ids = tokens.ids("<|im_start|>a<|im_end|>")
    assert tokenizer.convert_ids_to_tokens(ids) == ["<|im_start|>", "a", "<|im_end|>"]
    assert tokens.added_by_default() == [tokenizer.bos_token_id]
    assert Tokens(byte_tokenizer()).added_by_default() == []


def test_pieces_give_the_ids_of_the_whole_text() -> None:
    tokens = Tokens(bpe_tokenizer(template="CHATML"))
    assert tokens._cuts is not None
    for text in ["", "hello", "<|im_end|>", "a<|im_end|>hello<|im_end|><|im_start|>\n he llo", "<|im_end|>" * 3]:
        for _ in range(2):  # the second time from the kept pieces
            assert tokens.ids(text) == tokens.whole(text)


def test_the_kept_pieces_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posttrain.data.tokens._CACHED_IDS", 50)
    tokens = Tokens(byte_tokenizer("CHATML"))
    tokens._unchecked = 0
    for number in range(200):
        text = f"<|im_start|>{number}<|im_end|>number {number}"
        assert tokens.ids(text) == tokens.whole(text)
    assert tokens._cached_ids < 120


def test_the_backend_is_asked_without_the_library_around_it_and_says_the_same() -> None:
    tokenizer = bpe_tokenizer(template="CHATML")
    tokens = Tokens(tokenizer)
    assert tokens._has_plain_backend
    texts = ["", "hello", "Ünïcode <|im_end|> he llo", "a" * 3000]
    assert tokens._call_backend(texts) == tokens._call(texts)
    # Set by somebody after the encoder was made: ids still depend on the text alone.
    tokenizer.backend_tokenizer.enable_truncation(2)
    tokenizer.backend_tokenizer.enable_padding(length=9)
    expected = tokens._call(texts)
    tokenizer.backend_tokenizer.enable_truncation(2)
    tokenizer.backend_tokenizer.enable_padding(length=9)
    assert tokens._call_backend(texts) == expected and len(expected[3]) > 9


def test_a_tokenizer_with_a_call_of_its_own_is_asked_itself() -> None:
    class Shouting(PreTrainedTokenizerFast):
        def __call__(self, text: Any, *arguments: Any, **options: Any) -> Any:
            loud = [one.upper() for one in text] if isinstance(text, list) else text.upper()
            return super().__call__(loud, *arguments, **options)

    plain = byte_tokenizer("CHATML")
    shouting = Shouting(tokenizer_object=plain.backend_tokenizer, eos_token=plain.eos_token)
    tokens = Tokens(shouting)
    tokens._unchecked = 0  # nothing is compared, so nothing else saves the ids
    assert tokens.ids("abc") == Tokens(plain).ids("ABC")


def test_an_encoding_of_its_own_is_asked_itself() -> None:
    class Shouting(PreTrainedTokenizerFast):
        def _encode_plus(self, text: Any, *arguments: Any, **options: Any) -> Any:
            return super()._encode_plus([one.upper() for one in text], *arguments, **options)

    plain = byte_tokenizer("CHATML")
    tokens = Tokens(Shouting(tokenizer_object=plain.backend_tokenizer, eos_token=plain.eos_token))
    tokens._unchecked = 0
    assert tokens.ids("abc") == Tokens(plain).ids("ABC")


def test_the_backend_adds_nothing_and_splits_what_the_tokenizer_splits() -> None:
    bos = byte_tokenizer("CHATML", add_bos=True)
    tokens = Tokens(bos)
    assert tokens._call_backend(["a"]) == tokens._call(["a"]) and len(tokens._call(["a"])[0]) == 1
    for splits in (True, False):
        bos.split_special_tokens = splits
        assert tokens._call_backend(["<|im_end|>"]) == tokens._call(["<|im_end|>"])
        assert (len(tokens._call_backend(["<|im_end|>"])[0]) == 1) is not splits


def test_no_cut_before_a_token_that_swallows_blanks() -> None:
    tokenizer = byte_tokenizer("CHATML")
    tokenizer.add_tokens([AddedToken("<mask>", lstrip=True, rstrip=True, special=True)], special_tokens=True)
    tokens = Tokens(tokenizer)
    assert tokens._cuts is not None and tokens._cuts.search("<mask>") is None
    for text in ["a  <mask>  b<|im_end|>", "<|im_end|> <mask>\n<|im_end|>"]:
        assert tokens.ids(text) == tokens.whole(text)
    assert len(tokens.ids("a  <mask>")) == 2


def test_cuts_are_switched_off_by_the_first_text_that_they_change() -> None:
    tokens = Tokens(byte_tokenizer("CHATML"))
    tokens._pieces["<|im_end|>x"] = [7]  # a planted fault
    text = "a<|im_end|>x"
    assert tokens.ids(text) == tokens.whole(text)
    assert tokens._cuts is None


def test_a_merge_across_the_boundary_leaves_the_context_alone() -> None:
    tokenizer = bpe_tokenizer(merges=[("Ċ", "Ċ"), ("h", "i")])
    tokens = Tokens(tokenizer)
    context = "ask\n"
    context_ids = tokens.ids(context)
    assert len(tokens.whole("\n\n")) == 1
    ids = tokens.continuation(context, context_ids, "\nhi")
    assert tokenizer.convert_ids_to_tokens(ids) == ["Ċ", "hi"]
    assert tokens.decode([*context_ids, *ids]) == "ask\n\nhi"


def test_a_continuation_without_a_merge_is_the_joint_tokenisation() -> None:
    tokens = Tokens(bpe_tokenizer())
    context_ids = tokens.ids("say ")
    assert [*context_ids, *tokens.continuation("say ", context_ids, "hello")] == tokens.whole("say hello")


def sentencepiece_like(scheme: str) -> PreTrainedTokenizerFast:
    """Writes a space before a text of its own, as Llama 2 and Mistral do; knows "::" as one token."""
    pieces = ["<unk>", "</s>", "▁", *"abcdefghijklmnopqrstuvwxyz:\n", "::"]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [(":", ":")], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


def test_no_space_is_slipped_in_front_of_a_completion() -> None:
    """Tokenised by itself, ":yes" would become "▁:yes" and the model would learn to write a space."""
    tokens = Tokens(sentencepiece_like("first"))
    context_ids = tokens.ids("ask:")
    ids = tokens.continuation("ask:", context_ids, ":yes")
    assert tokens.decode([*context_ids, *ids]) == "ask::yes"
    assert tokens.tokenizer.convert_ids_to_tokens(ids) == [":", "y", "e", "s"]


def test_a_tokenizer_that_has_no_ids_for_context_and_text_is_refused() -> None:
    tokens = Tokens(sentencepiece_like("always"))
    with pytest.raises(EncodingError, match="without changing the context"):
        tokens.continuation("ask:", tokens.ids("ask:"), ":yes")


def test_a_truncation_set_on_the_tokenizer_is_not_used() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=9)
    assert len(Tokens(tokenizer).ids("a long text")) == 11


def test_texts_longer_than_the_model_make_no_noise(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.model_max_length = 5
    assert len(Tokens(tokenizer).ids("a long text")) == 11
    assert "longer than" not in caplog.text


def test_a_normaliser_does_not_disturb() -> None:
    tokenizer = byte_tokenizer("CHATML")
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    tokens = Tokens(tokenizer)
    for text in ["e\u0301<|im_end|>\u0301x", "a<|im_end|>e\u0301"]:
        assert tokens.ids(text) == tokens.whole(text)
