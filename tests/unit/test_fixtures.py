"""The test material itself: a fixture that is blind would let every other test pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.fixtures import (
    ARCHITECTURES,
    SLIDING_WINDOW,
    TEMPLATES,
    bpe_tokenizer,
    byte_tokenizer,
    make_tree,
    random_trees,
    tiny_model,
)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_tiny_model_is_causal_and_shows_leaks(arch: str) -> None:
    model = tiny_model(arch, dtype=torch.float64)
    ids = torch.arange(3, 15).view(1, -1)
    changed = ids.clone()
    changed[0, 5] = 90
    with torch.no_grad():
        before, after = model(ids).logits, model(changed).logits
    assert before.dtype == torch.float64
    torch.testing.assert_close(before[:, :5], after[:, :5], atol=1e-12, rtol=0)
    moved = (before[:, 6:] - after[:, 6:]).abs().amax(dim=(0, 2))
    assert moved.min() > 1e-3, f"token 5 hardly moves the later outputs: {moved}"


@pytest.mark.parametrize("arch", ["mistral"])
def test_a_sliding_window_slides(arch: str) -> None:
    model = tiny_model(arch, dtype=torch.float64)
    ids = torch.arange(40).view(1, -1)
    changed = ids.clone()
    changed[0, 0] = 90
    with torch.no_grad():
        moved = (model(ids).logits - model(changed).logits).abs().amax(dim=(0, 2))
    reach = 2 * (SLIDING_WINDOW - 1)  # two layers
    assert moved[reach] > 1e-6 and moved[reach + 1 :].max() < 1e-12


def test_tiny_models_are_seeded_and_leave_the_global_seed_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second, other = tiny_model(seed=1), tiny_model(seed=1), tiny_model(seed=2)
    assert torch.equal(torch.rand(1), expected)
    weights = [model.get_input_embeddings().weight for model in (first, second, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_byte_tokenizer_places_its_tokens() -> None:
    tokenizer = byte_tokenizer("TURN_END", ids={"</s>": 1, "<turn_end>": 106})
    assert tokenizer.eos_token_id == 1
    assert tokenizer.convert_tokens_to_ids("<turn_end>") == 106
    text = "héllo <turn_end>\n"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


@pytest.mark.parametrize("add_bos", [False, True])
def test_byte_tokenizer_options(add_bos: bool) -> None:
    tokenizer = byte_tokenizer(pad_is_eos=True, add_bos=add_bos)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    assert (tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id) == add_bos
    assert byte_tokenizer(bos=None).bos_token_id is None


def test_bpe_tokenizer_merges() -> None:
    tokenizer = bpe_tokenizer()
    assert tokenizer.convert_ids_to_tokens(tokenizer("hello", add_special_tokens=False)["input_ids"]) == ["hello"]


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_render(name: str) -> None:
    tokenizer = byte_tokenizer(name)
    messages = [{"role": "user", "content": "alpha"}, {"role": "assistant", "content": "beta"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert "alpha" in text and "beta" in text


def test_trees() -> None:
    tree = make_tree([1, 70, 71], [52, 2], ([53, 54, 2], [True, False, True]))
    assert (tree.num_tokens, tree.num_trained) == (8, 4)
    assert tree.prompt_ids.dtype == np.int32 and tree.branches[0].loss_mask.dtype == bool
    pairs = random_trees(5, branches=2, mask_probability=0.5, margins=True)
    assert [len(pair.branches) for pair in pairs] == [2] * 5
    assert all(branch.loss_mask.any() for pair in pairs for branch in pair.branches)
    assert len({pair.key for pair in pairs}) == 5
