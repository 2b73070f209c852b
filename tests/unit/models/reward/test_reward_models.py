"""Reward models as folders: every head saved and loaded, plain `transformers` agreeing, public ones read as ours."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from posttrain.config import LoRA
from posttrain.data.encoder_settings import EncoderSettings
from posttrain.data.reward_encode import RewardEncoder
from posttrain.errors import ConfigError, ModelError
from posttrain.losses.reward_rule import RewardRule
from posttrain.models.folders.export import ExportSettings
from posttrain.models.folders.loading import LoadedModel
from posttrain.models.folders.manifest import write_manifest
from posttrain.models.folders.source import ModelSource
from posttrain.models.reward.export import _write
from posttrain.models.reward.folders import load_reward_folder, pad_id, start_reward
from posttrain.models.reward.scoring import RewardModel, ensemble_rating, load_reward
from posttrain.models.tree.heads import with_head
from posttrain.types import Comparison, Demonstration, Feedback, Message, RowRef
from tests.fixtures import byte_tokenizer, chat, tiny_model

PROMPT, ANSWERS = "Who are you?", ("I am Pia.", "Nobody, and you?")
FILES = (("kind*",), ("right*",))


def language_model(folder: Path, **tokenizer: Any) -> LoadedModel:
    """A tiny causal LM with a tokenizer, saved to `folder`."""
    options = {"template": "CHATML", "eos": "<|im_end|>", "pad_is_eos": True, **tokenizer}
    made = byte_tokenizer(**options)
    model = tiny_model("llama", vocab=len(made) + 3)
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    source = ModelSource(str(folder), "folder", folder, "model")
    return LoadedModel(model, made, source, "", source)


def saved(tmp_path: Path, rule: RewardRule, *, merge: bool = True, adapter: bool = False, **options: Any) -> Path:
    """A reward model with a random head, saved as a stage saves it (but for the fresh process)."""
    start = language_model(tmp_path / "base")
    stops = RewardEncoder(start.tokenizer).stop_ids
    loaded = start_reward(start, rule, init="normal", adapter=LoRA(rank=2) if adapter else None, stop_ids=stops)
    if adapter:
        with torch.no_grad():
            for parameter in loaded.model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    folder = tmp_path / "reward"
    folder.mkdir()
    base = start.base if not merge else None
    settings = ExportSettings(merge=merge)
    _write(loaded.model, loaded.tokenizer, folder, settings, base, rule=rule, encoding=EncoderSettings(), statistics={})
    write_manifest(folder, {"kind": "model"})
    reward = RewardModel(load_reward_folder(folder))
    assert reward.rule == rule
    in_memory = RewardModel(replace(reward.folder, loaded=loaded))
    for answer in ANSWERS:
        head = options.get("head")
        assert reward.score(PROMPT, answer, head=head) == pytest.approx(
            in_memory.score(PROMPT, answer, head=head), abs=1e-5
        )
    return folder


def plain_scores(folder: Path, **options: Any) -> torch.Tensor:
    """What anybody gets: the template, a padded batch, transformers' own pooling."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, **options)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    turns = [[{"role": "user", "content": PROMPT}, {"role": "assistant", "content": answer}] for answer in ANSWERS]
    batch = tokenizer.apply_chat_template(turns, padding=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


RULES = {
    "single": RewardRule(),
    "length": RewardRule(length_offset=4.0, length_penalty=0.01, length_target=10.0),
    "normalised": RewardRule(scale=0.5, shift=2.0),
    "ensemble": RewardRule(heads=("member_1", "member_2", "member_3"), combine="worst"),
    "attributes": RewardRule(heads=("kind", "right"), files=FILES, weights=(0.2, 0.8)),
    "groups": RewardRule(heads=("young", "old"), files=FILES),
    "mean": RewardRule(pooling="mean"),
    "conditional": RewardRule(files=FILES, conditions=("kind", "right"), condition_text="By {name}."),
    "steps": RewardRule(pooling="steps", steps="product", step_mark=","),
}


@pytest.mark.parametrize("kind", [*RULES])
@pytest.mark.parametrize("adapter", [False, True])
def test_every_head_is_saved_and_loaded(tmp_path: Path, kind: str, adapter: bool) -> None:
    rule = RULES[kind]
    folder = saved(tmp_path, rule, adapter=adapter, head="right" if rule.conditions else None)
    outputs = plain_scores(folder)
    assert outputs.shape == (2, len(rule.heads))
    if rule.pooling == "last" and not rule.conditions:
        tokens = torch.tensor([len(answer) + 2.0 for answer in ANSWERS])  # one a byte, the stop token, a line break
        ours = [load_reward(folder).score(PROMPT, answer) for answer in ANSWERS]
        assert ours == pytest.approx(rule.rewards(outputs, tokens).tolist(), abs=1e-5)


def test_an_adapter_alone_brings_its_head(tmp_path: Path) -> None:
    folder = saved(tmp_path, RewardRule(), merge=False, adapter=True)
    assert (folder / "adapter_model.safetensors").is_file() and not (folder / "model.safetensors").exists()
    from peft import PeftModel

    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1)
    plain = PeftModel.from_pretrained(base, folder).eval()
    reward = load_reward(folder)
    tree = reward.encoder.comparison(
        Comparison(chat(PROMPT), tuple((Message("assistant", a),) for a in ANSWERS), 0, RowRef("x", 1))
    )
    ids = torch.tensor([[*tree.prompt_ids.tolist(), *tree.branches[0].ids.tolist()]])
    with torch.no_grad():
        assert plain(input_ids=ids).logits.item() == pytest.approx(reward.score(PROMPT, ANSWERS[0]), abs=1e-5)


def test_another_base_under_the_adapter_is_refused(tmp_path: Path) -> None:
    from posttrain.models.folders.fingerprint import backbone_fingerprint

    folder = saved(tmp_path, RewardRule(), merge=False, adapter=True)
    before = load_reward_folder(folder).loaded.model
    write_manifest(folder, {"kind": "adapter", "training": {"backbone": backbone_fingerprint(before)}})
    load_reward(folder)
    tiny_model("llama", vocab=before.config.vocab_size, seed=9).save_pretrained(tmp_path / "base")
    with pytest.raises(ModelError, match="other base weights"):
        load_reward(folder)


def test_a_public_reward_model_reads_as_ours(tmp_path: Path) -> None:
    """No record of ours: scored where the template ends, at the last token, as its own authors do."""
    start = language_model(tmp_path / "base", pad_is_eos=False)
    model = with_head(start.model, ("LABEL_0",), init="normal", pad_token_id=start.tokenizer.pad_token_id)
    model.save_pretrained(tmp_path / "public")
    start.tokenizer.save_pretrained(tmp_path / "public")
    reward = load_reward(tmp_path / "public")
    assert reward.rule.whole_row
    ours = [reward.score(PROMPT, answer) for answer in ANSWERS]
    assert ours == pytest.approx(plain_scores(tmp_path / "public")[:, 0].tolist(), abs=1e-5)


def test_a_public_model_with_several_outputs_needs_a_name(tmp_path: Path) -> None:
    start = language_model(tmp_path / "base", pad_is_eos=False)
    with_head(start.model, ("bad", "good"), init="normal", pad_token_id=0).save_pretrained(tmp_path / "public")
    start.tokenizer.save_pretrained(tmp_path / "public")
    with pytest.raises(ConfigError, match="bad, good"):
        load_reward(tmp_path / "public")
    reward = load_reward(tmp_path / "public", head="good")
    expected = plain_scores(tmp_path / "public")[:, 1].tolist()
    assert [reward.score(PROMPT, answer) for answer in ANSWERS] == pytest.approx(expected, abs=1e-5)


def test_a_language_model_is_no_reward_model(tmp_path: Path) -> None:
    language_model(tmp_path / "base")
    with pytest.raises(ModelError, match="holds no reward model"):
        load_reward(tmp_path / "base")


def test_a_torn_head_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = saved(tmp_path, RewardRule())
    weights = load_file(folder / "model.safetensors")
    del weights["score.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        load_reward(folder)
    (folder / "posttrain_manifest.json").unlink()
    with pytest.raises(ModelError, match=r"score\.weight"):
        load_reward(folder)


def test_the_pad_token_never_ends_a_response() -> None:
    tokenizer = byte_tokenizer("CHATML", eos="<|im_end|>", pad_is_eos=True)
    chosen = pad_id(tokenizer, RewardEncoder(tokenizer).stop_ids)
    assert chosen is not None and chosen != tokenizer.eos_token_id
    alone = byte_tokenizer(None, bos=None, eos="</s>", pad_is_eos=True)
    assert pad_id(alone, [alone.eos_token_id]) is None


def test_a_reward_model_goes_on_with_its_head(tmp_path: Path) -> None:
    folder = saved(tmp_path, RewardRule())
    loaded = load_reward_folder(folder).loaded
    again = start_reward(loaded, RewardRule())
    assert torch.equal(again.model.score.weight, loaded.model.score.weight)
    with pytest.raises(ModelError, match="other outputs"):
        start_reward(loaded, RewardRule(heads=("a", "b")))


def test_a_policy_in_memory_is_copied(tmp_path: Path) -> None:
    policy = language_model(tmp_path / "base")
    reward = start_reward(policy, RewardRule(), in_place=False)
    assert reward.model.base_model is not policy.model.base_model
    with torch.no_grad():
        next(iter(reward.model.base_model.parameters())).zero_()
    assert bool(next(iter(policy.model.parameters())).any())
    assert policy.tokenizer.pad_token != reward.tokenizer.pad_token


def test_rows_of_every_kind(tmp_path: Path) -> None:
    reward = load_reward(saved(tmp_path, RewardRule()))
    prompt, turns = chat(PROMPT), tuple((Message("assistant", answer),) for answer in ANSWERS)
    one, two = (reward.score(PROMPT, answer) for answer in ANSWERS)
    rows = [
        Comparison(prompt, turns, 1, RowRef("f", 1)),
        Feedback(prompt, turns[1], True, RowRef("f", 2)),
        Demonstration((*prompt, *turns[0]), RowRef("f", 3)),
    ]
    ratings = list(reward.score_rows(rows))
    for rating, expected in zip(ratings, [(one, two), (two,), (one,)], strict=True):
        assert rating.rewards == pytest.approx(expected, abs=1e-5)
    assert [rating.row.row for rating in ratings] == [1, 2, 3]
    worst = ensemble_rating([replace(ratings[0], rewards=(1.0, 4.0)), replace(ratings[0], rewards=(3.0, 2.0))], "worst")
    assert worst.rewards == (1.0, 2.0)


def test_steps_and_conditions_answer_by_name(tmp_path: Path) -> None:
    reward = load_reward(saved(tmp_path, RULES["steps"]))
    (rating,) = reward.score_rows([Demonstration(chat(PROMPT, "One, two, three."), RowRef("f", 1))])
    assert rating.steps is not None and len(rating.steps[0]) == 3
    conditional = load_reward(saved_anew(tmp_path, RULES["conditional"]))
    assert conditional.score(PROMPT, "a", head="kind") != conditional.score(PROMPT, "a", head="right")
    with pytest.raises(ConfigError, match="none was named"):
        conditional.score(PROMPT, "a")
    with pytest.raises(ConfigError, match="no output called"):
        conditional.score(PROMPT, "a", head="clever")


def saved_anew(tmp_path: Path, rule: RewardRule) -> Path:
    (tmp_path / "again").mkdir()
    return saved(tmp_path / "again", rule, head=rule.conditions[0])
