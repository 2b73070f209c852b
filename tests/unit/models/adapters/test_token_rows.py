"""Rows of new tokens that train beside an adapter, and adapters of others that came with tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from posttrain.config.adapters import IA3, AdaLoRA, AdapterSettings, Continue, LoRA
from posttrain.config.new_tokens import new_tokens
from posttrain.data.trees import collate
from posttrain.errors import ConfigError, ExportError, ModelError
from posttrain.models.adapters import combine
from posttrain.models.adapters.active import adapter_in_use
from posttrain.models.adapters.combine import merge_adapters
from posttrain.models.adapters.folding import merged_copy
from posttrain.models.adapters.kinds import add_adapter, is_fresh
from posttrain.models.folders.export import ExportSettings, begin_save
from posttrain.models.folders.fingerprint import base_fingerprint, weights_fingerprint
from posttrain.models.folders.loading import LoadedModel, load
from posttrain.models.folders.quiet import quiet
from posttrain.models.reference import AdapterOffReference
from posttrain.models.tree.logprobs import Policy
from posttrain.rollout.native import NativeEngine
from posttrain.sampling import SamplingDistribution
from posttrain.serve.loading import load_served
from posttrain.types import Wants
from tests.adapters import disturb, logits, save_alone
from tests.fixtures import byte_tokenizer, make_tree, tiny_model
from tests.training import run_loop, weights_of, work_of

TOKENIZER = byte_tokenizer("CHATML", pad=None)
OLD = len(TOKENIZER)
TOKENS = new_tokens(["<tool>", {"text": "<|call|>", "special": True}, "</tool>"])
IDS = torch.tensor([[70, OLD, 12, OLD + 1, OLD + 2, 4]])
ENDS = {"tied": True, "untied": False}
KINDS: dict[str, AdapterSettings] = {"lora": LoRA(rank=2), "adalora": AdaLoRA(rank=1, initial_rank=2)}


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for name, tied in ENDS.items():
        made[name] = tmp_path_factory.mktemp(name)
        tiny_model(vocab=OLD, tie_word_embeddings=tied).save_pretrained(made[name])
        TOKENIZER.save_pretrained(made[name])
    return made


def adapted(start: Path, adapter: AdapterSettings | None = None) -> LoadedModel:
    return load(start, tokens=TOKENS, adapter=adapter or LoRA(rank=2))


def trees() -> list[Any]:
    return [make_tree([70, OLD, 9], [OLD + 1, 8], [OLD + 2, 40, 3]), make_tree([5], [OLD, 6], row=2)]


def loss_of(policy: Policy, path: Any) -> torch.Tensor:
    return -policy(collate(trees()), Wants(entropy=True), path=path).logprobs_N.sum()


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_only_the_new_rows_train_of_the_embeddings(starts: dict[str, Path], ends: str, kind: str) -> None:
    model = adapted(starts[ends], KINDS[kind]).model
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad and "lora_" not in name}
    assert [tuple(p.shape) for p in trained.values()] == [(3, 32)] * (1 if ENDS[ends] else 2)
    assert is_fresh(model)
    before = logits(model, IDS)
    loss_of(Policy(model), "tree").backward()
    assert all(bool(p.grad.any(dim=1).all()) for p in trained.values())
    assert all(p.grad is None for name, p in model.named_parameters() if "base_layer.weight" in name)
    disturb(model)
    assert not is_fresh(model)
    assert not torch.allclose(before, logits(model, IDS))


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("path", ["tree", "padded"])
def test_logprobs_and_gradients_are_those_of_plain_transformers(starts: dict[str, Path], ends: str, path: str) -> None:
    model = disturb(adapted(starts[ends]).model)
    policy = Policy(model)
    batch = collate(trees())
    ours = policy(batch, path=path).logprobs_N
    rows = [[70, OLD, 9, OLD + 1, 8], [70, OLD, 9, OLD + 2, 40, 3], [5, OLD, 6]]
    logprobs = [
        torch.log_softmax(model(torch.tensor([row])).logits[0], -1)[:-1].gather(1, torch.tensor(row)[1:, None])[:, 0]
        for row in rows
    ]
    theirs = torch.cat([logprobs[0][2:], logprobs[1][2:], logprobs[2]])
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)
    delta = next(p for name, p in model.named_parameters() if "trainable_tokens_delta" in name)
    (mine,) = torch.autograd.grad(ours.sum(), delta)
    (plain,) = torch.autograd.grad(theirs.sum(), delta)
    torch.testing.assert_close(mine, plain, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("ends", ENDS)
def test_the_reference_without_the_adapter_is_the_start_with_its_rows(starts: dict[str, Path], ends: str) -> None:
    start = Policy(load(starts[ends], tokens=TOKENS).model)
    policy = Policy(adapted(starts[ends]).model)
    off = AdapterOffReference(policy)
    disturb(policy.model)
    batch = collate(trees())
    with torch.no_grad():
        torch.testing.assert_close(off.logprobs(batch), start(batch).logprobs_N, atol=1e-5, rtol=0)
    assert (policy(batch).logprobs_N - off.logprobs(batch)).abs().max() > 0.01
    assert base_fingerprint(policy.model) == weights_fingerprint(start.model)


def test_a_killed_run_goes_on_bit_for_bit(starts: dict[str, Path], tmp_path: Path) -> None:
    def work(steps: int) -> Any:
        settings = {"steps": steps, "epochs": None, "schedule": {"kind": "constant", "warmup_ratio": 0.0}}
        return work_of("sft", model=adapted(starts["tied"]).model, rows=trees() * 4, **settings)

    run_loop(work(3), tmp_path / "a")
    resumed, whole = work(6), work(6)
    run_loop(resumed, tmp_path / "a")
    run_loop(whole, tmp_path / "b")
    deltas = [name for name in weights_of(whole) if "trainable_tokens_delta" in name]
    assert deltas and all(torch.equal(w, weights_of(resumed)[n]) for n, w in weights_of(whole).items())
    assert not torch.equal(weights_of(whole)[deltas[0]], weights_of(work(6))[deltas[0]])


# ---------------------------------------------------------------- saved and read back


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("ends", ENDS)
def test_saved_merged_or_alone_it_is_the_same_model(
    starts: dict[str, Path], ends: str, merge: bool, tmp_path: Path
) -> None:
    loaded = adapted(starts[ends])
    model = disturb(loaded.model, 0.05)
    begin_save(model, loaded.tokenizer, tmp_path / "model", ExportSettings(merge), base=loaded.base).wait()
    again = load(tmp_path / "model")
    torch.testing.assert_close(logits(again.model, IDS), logits(model, IDS), atol=1e-4, rtol=0)
    assert again.tokenizer.encode("<|call|>") == [OLD + 1]
    by_others = AutoModelForCausalLM if merge else AutoPeftModelForCausalLM
    with quiet():
        theirs = by_others.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(logits(theirs, IDS), logits(model, IDS), atol=1e-4, rtol=0)
    if merge:
        config = json.loads((tmp_path / "model" / "config.json").read_text())
        assert config["vocab_size"] == OLD + 3 and config["tie_word_embeddings"] is ENDS[ends]


@pytest.fixture(scope="module")
def alone(starts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of ours with its rows, alone, as `peft` writes it."""
    loaded = adapted(starts["untied"])
    folder = tmp_path_factory.mktemp("alone")
    return save_alone(disturb(loaded.model), folder, starts["untied"], loaded.tokenizer)


def test_an_adapter_goes_on_with_its_rows(alone: Path) -> None:
    model = load(alone, adapter=Continue()).model
    trained = [name for name, p in model.named_parameters() if p.requires_grad and "trainable_tokens_delta" in name]
    assert len(trained) == 2


def test_an_adapter_with_its_rows_is_folded_under_a_new_one(alone: Path) -> None:
    before = logits(load(alone).model, IDS)
    torch.testing.assert_close(logits(load(alone, adapter=LoRA(rank=2)).model, IDS), before, atol=1e-5, rtol=0)


def test_one_is_merged_and_two_are_refused(alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[str, Any] = {}
    monkeypatch.setattr(combine, "save_model", lambda model, *a, **k: kept.update(model=merged_copy(model)))
    merge_adapters(alone, tmp_path / "merged")
    torch.testing.assert_close(logits(kept["model"], IDS), logits(load(alone).model, IDS), atol=1e-5, rtol=0)
    with pytest.raises(ConfigError, match="trainable_token_indices"):
        merge_adapters(alone, tmp_path / "merged", adapters=[alone])


def test_a_shared_base_gets_no_tokens(starts: dict[str, Path], alone: Path) -> None:
    with pytest.raises(ModelError, match="tokens of its own"):
        load_served(str(starts["untied"]), adapters={"tools": str(alone)})
    assert load_served(str(alone)).policies


def test_the_rows_belong_to_their_adapter(starts: dict[str, Path]) -> None:
    """Beside another adapter that has none, and without any, the rows are the base's."""
    loaded = adapted(starts["tied"])
    base = logits(load(starts["tied"], tokens=TOKENS).model, IDS)
    model = disturb(loaded.model)
    model.add_adapter("plain", LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"]))
    with adapter_in_use(model, "plain"):
        torch.testing.assert_close(logits(model, IDS), base, atol=1e-5, rtol=0)
    with adapter_in_use(model, None):
        torch.testing.assert_close(logits(model, IDS), base, atol=1e-5, rtol=0)


def test_the_native_engine_samples_from_the_trained_rows(starts: dict[str, Path]) -> None:
    model = disturb(adapted(starts["untied"]).model)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lm_head" in name and "delta" in name:
                p.mul_(20)
    engine = NativeEngine(model)
    (completion,) = engine.generate([[70, 71]], SamplingDistribution(temperature=0, max_new_tokens=8))[0]
    ids = [70, 71]
    for expected in completion.ids:
        assert int(logits(model, torch.tensor([ids]))[0, -1].argmax()) == expected
        ids.append(expected)
    assert set(completion.ids) & {OLD, OLD + 1, OLD + 2}


# ---------------------------------------------------------------- what cannot be


def test_what_cannot_train_them_is_refused_by_name(starts: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match=r"kind ia3(.|\n)*lora"):
        adapted(starts["tied"], IA3())
    with pytest.raises(ConfigError, match="leave embed_tokens out"):
        adapted(starts["tied"], LoRA(rank=2, targets=["embed_tokens", "q_proj"]))
    biased = tiny_model(vocab=OLD)
    biased.lm_head.bias = torch.nn.Parameter(torch.zeros(OLD))
    with pytest.raises(ConfigError, match="output projection has a bias"):
        add_adapter(biased, LoRA(rank=2), new_rows=[OLD - 1])


def test_padding_rows_that_grew_do_not_lie_in_an_adapter_alone(tmp_path: Path) -> None:
    """OLD is no multiple of 8, so a base of the next one is padded; its last rows belong to nobody."""
    rows = -(-OLD // 8) * 8
    tiny_model(vocab=rows).save_pretrained(tmp_path / "base")
    TOKENIZER.save_pretrained(tmp_path / "base")
    many = new_tokens([f"<{index}>" for index in range(rows - OLD + 1)])
    loaded = load(tmp_path / "base", tokens=many, adapter=LoRA(rank=2))
    assert loaded.model.config.vocab_size == rows + 8
    with pytest.raises(ExportError, match="not the adapter's"):
        begin_save(loaded.model, loaded.tokenizer, tmp_path / "model", ExportSettings(merge=False), base=loaded.base)


# ---------------------------------------------------------------- adapters of others


def resized(tied: bool, rows: int) -> tuple[Any, Any]:
    """A base with tokens, as other trainers make it: rows of noise behind the old ones."""
    tokenizer = byte_tokenizer("CHATML", pad=None)
    tokenizer.add_tokens(["<tool>", "</tool>"])
    model = tiny_model(vocab=OLD, tie_word_embeddings=tied)
    with quiet():
        model.resize_token_embeddings(rows, mean_resizing=False)
    return model, tokenizer


def whole_embeddings(model: Any) -> Any:
    config = LoraConfig(
        task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]
    )
    return get_peft_model(model, config)


def rows_alone(model: Any) -> Any:
    indices = {"embed_tokens": [OLD, OLD + 1], "lm_head": [OLD, OLD + 1]}
    return get_peft_model(
        model, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], trainable_token_indices=indices)
    )


def beside_lora(model: Any) -> Any:
    """Embeddings that were resized and lie in the file beside LoRA of other layers."""
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"]))


def on_the_ends(model: Any) -> Any:
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["embed_tokens", "lm_head"]))


LAYOUTS: dict[str, tuple[Callable[[Any], Any], bool]] = {
    "modules_to_save": (whole_embeddings, False),
    "trainable_token_indices": (rows_alone, False),
    "embeddings beside LoRA": (beside_lora, True),
    "LoRA on resized ends": (on_the_ends, True),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_foreign_adapters_with_tokens_load_and_merge(
    starts: dict[str, Path], layout: str, ends: str, padded: bool, tmp_path: Path
) -> None:
    wrap, saves_embeddings = LAYOUTS[layout]
    if padded and layout == "trainable_token_indices":
        pytest.skip("such a file does not say how many rows there were")
    model, tokenizer = resized(ENDS[ends], -(-(OLD + 2) // 64) * 64 if padded else OLD + 2)
    adapter = disturb(wrap(model))
    with quiet():
        adapter.save_pretrained(tmp_path, save_embedding_layers=saves_embeddings)
    tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "base_model_name_or_path": str(starts[ends])}))
    loaded = load(tmp_path)
    ids = IDS.clone()
    ids[0, 4] = OLD
    torch.testing.assert_close(logits(loaded.model, ids), logits(adapter, ids), atol=1e-5, rtol=0)
    merged = merged_copy(loaded.model)
    torch.testing.assert_close(logits(merged, ids), logits(adapter, ids), atol=1e-4, rtol=0)
    engine = NativeEngine(loaded.model)
    assert len(engine.generate([[70, OLD]], SamplingDistribution(max_new_tokens=2))[0][0].ids) == 2
