"""Tokens that a model did not have: by hand on five rows, at both ends, in padded vocabularies, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.config.adapters import LoRA
from posttrain.config.new_tokens import NewToken, new_tokens
from posttrain.errors import ConfigError, PosttrainError
from posttrain.models.folders.loading import load, with_tokens
from posttrain.models.folders.new_tokens import NewTokens, add_rows, with_new_tokens
from tests.adapters import logits
from tests.fixtures import bpe_tokenizer, byte_tokenizer, tiny_model


def named(*texts: str) -> tuple[NewToken, ...]:
    return new_tokens(list(texts))


def five(tied: bool, rows: int = 5) -> Any:
    """Rows (0, 10, 20, ...) + the column at the input; the same times 100 at the output, if it is apart."""
    model = tiny_model(vocab=rows, tie_word_embeddings=tied)
    numbers = torch.arange(rows, dtype=torch.float32)[:, None] * 10 + torch.arange(32)
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(numbers)
        if not tied:
            model.get_output_embeddings().weight.copy_(numbers * 100)
    return model


def asked(pieces: dict[int, tuple[int, ...]], old_tokens: int = 5) -> NewTokens:
    return NewTokens(None, old_tokens, pieces, {index: str(index) for index in pieces})


def column(model: Any, end: str) -> list[float]:
    return getattr(model, f"get_{end}_embeddings")().weight[:, 0].tolist()


@pytest.mark.parametrize("tied", [True, False])
def test_a_new_row_is_the_mean_of_its_pieces_by_hand(tied: bool) -> None:
    model = five(tied)
    add_rows(model, asked({5: (1, 4), 6: (3,), 7: ()}))
    # (10 + 40) / 2; the third alone; of a text without a known piece, the mean of 0, 10, 20, 30, 40
    assert column(model, "input") == [0, 10, 20, 30, 40, 25, 30, 20]
    assert column(model, "output") == [x * (1 if tied else 100) for x in (0, 10, 20, 30, 40, 25, 30, 20)]
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) is tied
    assert model.config.vocab_size == 8 and model.config.tie_word_embeddings is tied
    assert model.lm_head.out_features == 8


def test_a_piece_that_occurs_twice_counts_twice() -> None:
    model = five(True)
    add_rows(model, asked({5: (1, 1, 4)}))
    assert column(model, "input")[5] == 20


def test_rows_that_pad_the_vocabulary_are_taken_first() -> None:
    model = five(False, rows=8)
    add_rows(model, asked({5: (0, 2)}))
    assert column(model, "input") == [0, 10, 20, 30, 40, 10, 60, 70] and model.config.vocab_size == 8


def test_a_padded_vocabulary_stays_padded_and_its_padding_improbable() -> None:
    model = five(False, rows=8)
    add_rows(model, asked({index: (index - 5,) for index in range(5, 9)}))
    # Nine are needed, sixteen is the next multiple; the rest are the mean of the rows 5, 6 and 7, which padded.
    assert column(model, "input") == [0, 10, 20, 30, 40, 0, 10, 20, 30, *[60] * 7]
    assert column(model, "output")[9:] == [6000] * 7


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("arch", ["llama", "gpt2", "gemma2"])
def test_logits_of_old_tokens_stay_to_the_bit(tied: bool, arch: str) -> None:
    tokenizer = byte_tokenizer("CHATML")
    model = tiny_model(arch, vocab=len(tokenizer), tie_word_embeddings=tied)
    before = logits(model)
    state = torch.get_rng_state()
    new = with_new_tokens(tokenizer, named("<tool>", "</tool>"))
    add_rows(model, new)
    after = logits(model)
    assert torch.equal(before, after[..., : len(tokenizer)]) and after.shape[-1] == len(tokenizer) + 2
    assert torch.equal(state, torch.get_rng_state())
    assert logits(model, torch.tensor([[len(tokenizer) + 1]])).isfinite().all()


def test_the_logit_of_a_new_token_is_the_mean_of_its_pieces() -> None:
    tokenizer = byte_tokenizer("CHATML")
    model = tiny_model(vocab=len(tokenizer))
    before = logits(model)
    new = with_new_tokens(tokenizer, named("<tool>"))
    add_rows(model, new)
    ((index, pieces),) = new.pieces.items()
    torch.testing.assert_close(logits(model)[..., index], before[..., list(pieces)].mean(-1))


# ---------------------------------------------------------------- the tokenizer


def test_the_text_is_one_token_and_the_old_tokenizer_is_left_alone() -> None:
    tokenizer = bpe_tokenizer()
    size = len(tokenizer)
    new = with_new_tokens(tokenizer, [NewToken(text="<hello>"), NewToken(text="<|call|>", special=True)])
    cut = new.tokenizer.encode("a<hello>b <|call|>", add_special_tokens=False)
    assert cut[1] == size and cut[-1] == size + 1 and len(tokenizer) == size
    # Its pieces are what the BPE made of it: "<", "hello", ">".
    assert tokenizer.convert_ids_to_tokens(list(new.pieces[size])) == ["<", "hello", ">"]
    assert new.tokenizer.decode(cut, skip_special_tokens=True) == "a<hello>b "
    assert "2 new tokens: <hello>" in new.notes[0]


def test_pieces_are_those_of_before_also_where_one_new_token_stands_in_another() -> None:
    tokenizer = byte_tokenizer()
    new = with_new_tokens(tokenizer, named("<a>", "<a><b>"))
    assert [len(pieces) for pieces in new.pieces.values()] == [3, 6]


def test_tokens_that_are_there_are_noted_and_nothing_is_added() -> None:
    tokenizer = bpe_tokenizer(template="CHATML")
    new = with_new_tokens(tokenizer, named("hello", "<|im_end|>", "</s>", "h"))
    assert not new.pieces and new.tokenizer is tokenizer
    assert new.notes == (
        "the start has these tokens already, with what it has learnt of them: hello, <|im_end|>, </s>, h",
    )


def test_ordinary_text_does_not_become_special() -> None:
    with pytest.raises(ConfigError, match=r"`hello` is a token already(.|\n)*special: true"):
        with_new_tokens(bpe_tokenizer(), [NewToken(text="hello", special=True)])


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        ([""], "at least 1"),
        (["<a b>"], "white space"),
        (["a", "b", "a"], "`a` is listed twice"),
        (["\n"], "white space"),
        ("<tool>", "a list of texts"),
        ([{"text": "a", "spcial": True}], "special"),
        ([3], "tokens"),
    ],
)
def test_what_is_no_token_is_refused_by_name(tokens: Any, words: str) -> None:
    with pytest.raises(PosttrainError, match=words):
        new_tokens(tokens)


# ---------------------------------------------------------------- loading


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    tokenizer = byte_tokenizer("CHATML")
    tiny_model(vocab=len(tokenizer), tie_word_embeddings=True).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_model_is_loaded_with_them(start: Path) -> None:
    plain = load(start)
    loaded = load(start, tokens=named("<tool>", "</s>"))
    assert loaded.new_rows == (len(plain.tokenizer),) and loaded.tokenizer.encode("<tool>") == [*loaded.new_rows]
    assert len(loaded.notices) == 2 and loaded.fingerprint != plain.fingerprint
    assert with_tokens(plain, named("<tool>")).fingerprint == loaded.fingerprint


def test_not_beneath_an_adapter_that_is_on_the_model(start: Path) -> None:
    with pytest.raises(ConfigError, match=r"beneath an adapter(.|\n)*pt\.load"):
        with_tokens(load(start, adapter=LoRA(rank=2)), named("<tool>"))
