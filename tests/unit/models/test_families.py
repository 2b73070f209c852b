"""A sample of the sweep over families, and the table that it writes."""

from __future__ import annotations

import re

import pytest
import torch
import transformers

from benchmarks.families import BEGIN, END, PAGE, Family, examined, pairs, plain, table
from benchmarks.tiny_families import names, tiny_family
from posttrain.data.trees import collate
from posttrain.errors import ModelError
from posttrain.models.tree.backbone import backbone
from posttrain.models.tree.heads import with_head
from posttrain.models.tree.logprobs import Policy
from posttrain.models.tree.value import value_head

SAMPLE = {
    "llama": ("tree", ""),
    "stablelm": ("tree", ""),  # its layers hand no keywords on
    "nemotron": ("tree", ""),
    "mllama": ("tree", ""),  # `base_model` is the language model itself
    "llama4": ("padded", "a window of 8 tokens in a mask of their own"),
    "qwen2_moe": ("padded", "a window of 8 tokens in a mask of their own"),
    "bloom": ("padded", "an attention of their own"),
    "falcon": ("padded", "its code stops on rows laid end to end"),
    "gpt_oss": ("padded", "its attention has sinks"),
    "qwen3_next": ("padded", "2 of its 4 layers keep a state"),
    "kimi_linear": ("rows", "its code stops on several padded rows at once"),
    "xlnet": ("refused", "not causal"),
    "musicgen": ("not built", "MusicgenConfig"),
}


@pytest.mark.parametrize("name", SAMPLE)
def test_a_family(name: str) -> None:
    status, reason = SAMPLE[name]
    found = examined(name)
    assert found.status == status, found
    assert reason in found.reason and (reason or not found.reason)
    assert "Error:" not in found.reason or status == "not built"


def test_the_page_has_every_family() -> None:
    block = re.search(f"{BEGIN}(.*){END}", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    listed = [line.split(" | ")[0].removeprefix("| ") for line in block[1].splitlines() if line.count(" | ") == 4]
    if f"transformers {transformers.__version__}:" in block[1]:
        assert sorted(listed[1:]) == names()
    assert "| WRONG |" not in block[1] and "TypeError" not in block[1]


def test_a_line_of_the_table() -> None:
    found = Family("x", "XModel", "padded", "its a|b (log-probs differ by at most 1.0e+00 nats)", 2e-6, 3e-7)
    assert found.line() == "| x | XModel | padded | 2e-06 nats, gradient 3e-07 | its a/b |"
    assert "1 families (1 padded)" in table([found])


@pytest.mark.parametrize("name", ["llama4", "mllama"])
def test_a_head_on_a_model_whose_base_is_itself(name: str) -> None:
    """Its `base_model` gives logits; a value head reads hidden states."""
    model = tiny_family(name)
    assert model.base_model is model and backbone(model) is model.model
    policy, trees = Policy(model), pairs()
    head = value_head(policy)
    torch.nn.init.ones_(head.weight)
    values = policy.values(collate(trees), head)
    row = torch.tensor([*trees[0].prompt_ids, *trees[0].branches[0].ids])[None]
    states = model.model(row, use_cache=False).last_hidden_state[0, len(trees[0].prompt_ids) - 1 : -1]
    torch.testing.assert_close(values[: len(states)], states.sum(dim=1), atol=1e-4, rtol=0)
    with pytest.raises(ModelError, match="no reward head for this architecture"):
        with_head(model)


def test_the_sweep_finds_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that is taken without a proof."""
    monkeypatch.setattr("posttrain.models.tree.paths.Paths.of", lambda *args: "tree")
    monkeypatch.setattr("posttrain.models.tree.paths.Paths.prove", lambda *args, **options: "tree")
    assert examined("gpt_oss").status == "WRONG"
    assert len(plain(tiny_family("llama"), pairs())) == collate(pairs()).count.tokens
