"""`tokens: union` and `base`: rows follow the tokens' texts, and nothing is made up for a model that lacks one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.config.merging import merge_settings
from posttrain.errors import ConfigError
from posttrain.models.folders.loading import load
from posttrain.models.merging.methods.parts import Parts
from posttrain.models.merging.run import merge_models, planned
from posttrain.models.merging.tensors import entries_of, read_tensor
from posttrain.models.merging.tokens import Vocabulary, _pieces_of, merge_rows, with_pieces
from tests.fixtures import byte_tokenizer, tiny_model
from tests.read_back import read_in_process

TOKENIZER = byte_tokenizer("CHATML", pad=None)
SIZE = len(TOKENIZER)
TEXT = "<|im_start|>user\nWhat is <tool>3 + 4</tool> <think>?<|im_end|>"


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Any:
    yield from read_in_process(monkeypatch)


def save(folder: Path, seed: int, *added: str | AddedToken, rows: int | None = None, **config: Any) -> Path:
    tokenizer = byte_tokenizer("CHATML", pad=None)
    tokenizer.add_tokens(list(added))
    tiny_model(vocab=rows or len(tokenizer), seed=seed, **config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tensor(folder: Path, name: str = "model.embed_tokens.weight") -> torch.Tensor:
    return read_tensor(entries_of(folder)[name])


@pytest.fixture
def specialists(tmp_path: Path) -> tuple[Path, Path]:
    """Each with a token that the other lacks, at the same id; the second also has the first one's, at another id."""
    one = save(tmp_path / "one", 1, "<tool>", AddedToken("</tool>", special=True))
    two = save(tmp_path / "two", 2, "<think>", "<tool>")
    return one, two


def test_a_row_is_merged_with_the_row_of_the_same_token(
    specialists: tuple[Path, Path], tmp_path: Path, faults: Any
) -> None:
    one, two = specialists
    lines: list[str] = []
    settings = merge_settings("linear", [{"model": one, "weight": 3.0}, two], tokens="union")
    merge_models(settings, tmp_path / "out", say=lines.append)
    assert lines == [f"1 tokens are added: '<think>'; {SIZE + 3} rows of embeddings"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.convert_tokens_to_ids(["<tool>", "</tool>", "<think>"]) == [SIZE, SIZE + 1, SIZE + 2]
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        ours, theirs, merged = tensor(one, name), tensor(two, name), tensor(tmp_path / "out", name)
        assert merged.shape == (SIZE + 3, 32)
        assert torch.allclose(merged[:SIZE], 0.75 * ours[:SIZE] + 0.25 * theirs[:SIZE])
        assert torch.allclose(merged[SIZE], 0.75 * ours[SIZE] + 0.25 * theirs[SIZE + 1])  # <tool>
        assert torch.equal(merged[SIZE + 1], ours[SIZE + 1])  # </tool>: of the only one that has it
        assert torch.equal(merged[SIZE + 2], theirs[SIZE])  # <think>


def test_the_tokenizer_cuts_what_each_model_cut(specialists: tuple[Path, Path], tmp_path: Path, faults: Any) -> None:
    merge_models(merge_settings("linear", list(specialists), tokens="union"), tmp_path / "out")
    merged = load(tmp_path / "out")
    ids = merged.tokenizer(TEXT, add_special_tokens=False).input_ids
    assert merged.tokenizer.decode(ids) == TEXT and max(ids) < merged.model.get_input_embeddings().weight.shape[0]
    assert {SIZE, SIZE + 1, SIZE + 2} <= set(ids)
    special = {str(token) for token in merged.tokenizer.added_tokens_decoder.values() if token.special}
    assert "</tool>" in special and "<think>" not in special
    for folder in specialists:
        own = AutoTokenizer.from_pretrained(folder)
        plain = TEXT.replace("<think>", "").replace("<tool>", "").replace("</tool>", "")
        assert (
            own(plain, add_special_tokens=False).input_ids
            == merged.tokenizer(plain, add_special_tokens=False).input_ids
        )


def test_with_weight_one_the_first_model_computes_what_it_did(
    specialists: tuple[Path, Path], tmp_path: Path, faults: Any
) -> None:
    one, two = specialists
    settings = merge_settings("linear", [{"model": one, "weight": 1.0}, {"model": two, "weight": 0.0}], tokens="union")
    merge_models(settings, tmp_path / "out")
    row = torch.tensor([list(range(SIZE + 2))])
    with torch.no_grad():
        before = AutoModelForCausalLM.from_pretrained(one)(row).logits
        after = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(row).logits
    assert torch.allclose(before, after[..., : SIZE + 2], atol=1e-5)


def test_a_base_without_a_token_shrinks_nothing(specialists: tuple[Path, Path], tmp_path: Path, faults: Any) -> None:
    one, two = specialists
    base = save(tmp_path / "base", 3)
    settings = merge_settings("task_arithmetic", [one, two], base=base, tokens="union", weight=0.5)
    merge_models(settings, tmp_path / "out")
    ours, theirs, start, merged = tensor(one), tensor(two), tensor(base), tensor(tmp_path / "out")
    assert torch.allclose(merged[:SIZE], start + 0.5 * (ours[:SIZE] - start) + 0.5 * (theirs[:SIZE] - start), atol=1e-6)
    assert torch.equal(merged[SIZE + 2], theirs[SIZE])
    assert torch.allclose(merged[SIZE], (ours[SIZE] + theirs[SIZE + 1]) / 2)


def test_the_tokens_of_the_base_alone(specialists: tuple[Path, Path], tmp_path: Path, faults: Any) -> None:
    base = save(tmp_path / "base", 3)
    lines: list[str] = []
    settings = merge_settings("ties", list(specialists), base=base, tokens="base", density=1.0)
    merge_models(settings, tmp_path / "out", say=lines.append)
    assert tensor(tmp_path / "out").shape == (SIZE, 32)
    assert "are dropped, which the base has not" in lines[0]


def test_a_tied_model_and_rows_that_pad_the_vocabulary(tmp_path: Path, faults: Any) -> None:
    one = save(tmp_path / "one", 1, "<tool>", rows=SIZE + 9, tie_word_embeddings=True)
    two = save(tmp_path / "two", 2, "<think>", tie_word_embeddings=True)
    merge_models(merge_settings("linear", [one, two], tokens="union"), tmp_path / "out")
    ours, merged = tensor(one), tensor(tmp_path / "out")
    assert merged.shape == (SIZE + 9, 32)  # the new token takes a row that had none
    assert torch.equal(merged[SIZE + 1], tensor(two)[SIZE])
    assert torch.equal(merged[SIZE + 2 :], ours[SIZE + 2 :])


def test_tokenizers_that_cut_differently_have_no_union(tmp_path: Path) -> None:
    one = save(tmp_path / "one", 1)
    other = byte_tokenizer("CHATML", pad=None, merges=[("h", "e")])
    tiny_model(vocab=len(other), seed=2).save_pretrained(tmp_path / "two")
    other.save_pretrained(tmp_path / "two")
    settings = merge_settings("linear", [one, tmp_path / "two"], tokens="union")
    with (
        pytest.raises(ConfigError, match="cut text differently, and no union of tokens") as caught,
        planned(settings, tmp_path / "out"),
    ):
        pass
    assert "vocabulary" in str(caught.value.found)


def test_the_bases_tokens_need_a_base(specialists: tuple[Path, Path], tmp_path: Path) -> None:
    settings = merge_settings("linear", list(specialists), tokens="base")
    with pytest.raises(ConfigError, match="this merge has no base"), planned(settings, tmp_path / "out"):
        pass


def test_rows_by_hand() -> None:
    """Three ids. The first is everyone's, the second the second model's, the third the base's alone."""
    a, b, base = torch.tensor([[1.0]]), torch.tensor([[3.0], [7.0]]), torch.tensor([[1.0], [9.0]])
    rows = tuple(torch.tensor(own) for own in ([0, -1, -1], [0, 1, -1], [0, -1, 1]))
    parts = Parts("w", base, (a, b), ({"weight": 1.0}, {"weight": -1.0}), {})
    merged = merge_rows(
        parts, Vocabulary(None, 3, rows, frozenset({"w"})), lambda some: some.tensors[0] + some.tensors[1]
    )
    assert merged.tolist() == [[4.0], [7.0], [9.0]]


# ---------------------------------------------------------------- tokens that one model lacks, filled in


def test_pieces_by_hand() -> None:
    tensor, rows = with_pieces(torch.tensor([[1.0], [3.0]]), torch.tensor([0, 1, -1]), {2: (0, 1)})
    assert tensor.tolist() == [[1.0], [3.0], [2.0]] and rows.tolist() == [0, 1, 2]
    # The third id is the first model's alone; the second has 0.5 and 1.5 for its pieces, whose mean is 1.
    a, b = torch.tensor([[1.0], [2.0], [7.0]]), torch.tensor([[0.5], [1.5]])
    rows_of = (torch.tensor([0, 1, 2]), torch.tensor([0, 1, -1]))
    parts = Parts("w", None, (a, b), ({"weight": 1.0}, {"weight": 1.0}), {})
    vocabulary = Vocabulary(None, 3, rows_of, frozenset({"w"}), ({}, {2: (0, 1)}))
    assert merge_rows(parts, vocabulary, lambda some: sum(some.tensors)).tolist() == [[1.5], [3.5], [8.0]]


def test_a_model_without_a_token_takes_the_mean_of_its_pieces(
    specialists: tuple[Path, Path], tmp_path: Path, faults: Any
) -> None:
    one, two = specialists
    base = save(tmp_path / "base", 3)
    lines: list[str] = []
    settings = merge_settings(
        "task_arithmetic", [one, two], base=base, tokens="union", weight=0.5, missing_tokens="pieces"
    )
    merge_models(settings, tmp_path / "out", say=lines.append)
    assert any(line == f"{base} lacks 3 tokens, which take the mean of its rows for their pieces" for line in lines)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        ours, theirs, start, merged = (tensor(folder, name) for folder in (one, two, base, tmp_path / "out"))

        def pieces(rows: torch.Tensor, text: str) -> torch.Tensor:
            return rows[TOKENIZER(text, add_special_tokens=False).input_ids].mean(dim=0)

        # <think>: the second model's alone. The others read it as seven bytes.
        assert len(TOKENIZER("<think>", add_special_tokens=False).input_ids) == 7
        zero = pieces(start, "<think>")
        expected = zero + 0.5 * (pieces(ours, "<think>") - zero) + 0.5 * (theirs[SIZE] - zero)
        assert torch.allclose(merged[SIZE + 2], expected, atol=1e-6)
        # <tool>: the base alone lacks it.
        zero = pieces(start, "<tool>")
        expected = zero + 0.5 * (ours[SIZE] - zero) + 0.5 * (theirs[SIZE + 1] - zero)
        assert torch.allclose(merged[SIZE], expected, atol=1e-6)


def test_a_token_that_cannot_be_written_is_named(specialists: tuple[Path, Path], tmp_path: Path) -> None:
    with planned(merge_settings("linear", list(specialists), tokens="union"), tmp_path / "out") as plan:
        mute = replace(plan.models[0], tokenizer=_Mute())
        with pytest.raises(ConfigError, match="lacks the token '<think>', and its tokenizer cannot write it"):
            _pieces_of(mute, torch.tensor([0, -1]), {0: "a", 1: "<think>"})


class _Mute:
    unk_token_id = 0

    def __call__(self, text: str, *, add_special_tokens: bool) -> Any:
        return SimpleNamespace(input_ids=[0])


def test_a_row_that_pads_is_not_filled_in(tmp_path: Path, faults: Any) -> None:
    one, two = save(tmp_path / "one", 1, "<tool>", rows=SIZE + 9), save(tmp_path / "two", 2, "<think>")
    merge_models(merge_settings("linear", [one, two], tokens="union", missing_tokens="pieces"), tmp_path / "out")
    assert torch.equal(tensor(tmp_path / "out")[SIZE + 2 :], tensor(one)[SIZE + 2 :])
