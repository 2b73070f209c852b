"""Every kind of adapter trains, is saved, and comes back as the same model; its reference and its start are right."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.config.adapters import IA3, OFT, AdaLoRA, Bottleneck, LoRA, PrefixTuning, PromptTuning, QLoRA
from posttrain.data.trees import collate
from posttrain.errors import ConfigError, ExportError, ModelError
from posttrain.models.adapters.bottleneck import register
from posttrain.models.adapters.folding import merged_copy
from posttrain.models.adapters.kinds import (
    adapter_dropout,
    adapter_kind,
    add_adapter,
    is_fresh,
    merges,
    virtual_tokens,
)
from posttrain.models.folders import export_files, readback
from posttrain.models.folders.export import ExportSettings, begin_save
from posttrain.models.folders.fingerprint import base_fingerprint, weights_fingerprint
from posttrain.models.folders.loading import load
from posttrain.models.folders.quiet import quiet
from posttrain.models.reference import reference
from posttrain.models.tree.logprobs import Policy
from posttrain.rollout.native import NativeEngine
from posttrain.sampling import SamplingDistribution
from posttrain.training.checks.gradient import check_gradient
from posttrain.training.checks.preflight import choose_path
from tests.adapters import EVERY, VIRTUAL, WEIGHTS, disturb, logits, save_alone
from tests.fixtures import byte_tokenizer, random_trees, tiny_model
from tests.training import run_loop, work_of

TOKENIZER = byte_tokenizer("CHATML", pad=None)
VOCABULARY = len(TOKENIZER)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_model(vocab=VOCABULARY).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


# ---------------------------------------------------------------- trained, saved, reloaded


@pytest.mark.parametrize("method", ["sft", "dpo", "kto"])
@pytest.mark.parametrize("kind", EVERY)
def test_trains_is_saved_and_comes_back_the_same(kind: str, method: str, base: Path, tmp_path: Path) -> None:
    loaded = load(base, adapter=EVERY[kind])
    before = logits(loaded.model)
    frozen = base_fingerprint(loaded.model)
    options = {"epochs": None, "steps": 5, "tokens_per_microbatch": 400}  # a step in one piece: splits are not asked
    work = replace(work_of(method, model=loaded.model, **options), adapter=EVERY[kind])
    run_loop(work, tmp_path / "run")
    trained = logits(loaded.model)
    assert (trained - before).abs().max() > 1e-3
    assert base_fingerprint(loaded.model) == frozen == weights_fingerprint(load(base).model)

    folder = save_alone(loaded.model, tmp_path / "adapter", base, TOKENIZER)
    again = load(folder)
    torch.testing.assert_close(logits(again.model), trained, atol=1e-5, rtol=0)
    with quiet():
        plain = readback.load_plain(str(folder), torch.float32)
    torch.testing.assert_close(logits(plain), trained, atol=1e-5, rtol=0)
    if EVERY[kind].MERGES:
        torch.testing.assert_close(logits(merged_copy(loaded.model)), trained, atol=1e-4, rtol=0)
    assert merges(loaded.model) is EVERY[kind].MERGES


def test_a_fresh_process_reads_the_one_kind_that_is_not_of_peft(base: Path, tmp_path: Path) -> None:
    loaded = load(base, adapter=Bottleneck(size=4))
    pending = begin_save(
        disturb(loaded.model), TOKENIZER, tmp_path / "out", ExportSettings(merge=False), base=loaded.base
    )
    report = pending.wait()
    assert not report.merged and report.largest_difference < 1e-5


@pytest.mark.parametrize("kind", ["bottleneck", "prompt"])
def test_what_cannot_be_merged_is_not(kind: str, base: Path, tmp_path: Path) -> None:
    loaded = load(base, adapter=EVERY[kind])
    with pytest.raises(ExportError, match=f"of kind {kind} cannot be folded"):
        begin_save(loaded.model, TOKENIZER, tmp_path / "out", ExportSettings(merge=True), base=loaded.base)


@pytest.mark.parametrize("kind", ["lora", "adalora", "ia3", "oft", "bottleneck", "prefix", "prompt"])
def test_training_goes_on_from_a_folder(kind: str, base: Path, tmp_path: Path) -> None:
    folder = save_alone(disturb(load(base, adapter=EVERY[kind]).model), tmp_path / "first", base, TOKENIZER)
    model = load(folder).model
    start = logits(model)
    assert not is_fresh(model)
    work = work_of("dpo", model=model, epochs=None, steps=3, tokens_per_microbatch=400)
    run_loop(work, tmp_path / "run")
    trained = logits(model)
    assert (trained - start).abs().max() > 1e-3
    again = save_alone(model, tmp_path / "second", base, TOKENIZER)
    torch.testing.assert_close(logits(load(again).model), trained, atol=1e-5, rtol=0)


# ---------------------------------------------------------------- the start


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", WEIGHTS)
def test_a_fresh_adapter_of_the_weights_changes_nothing(kind: str, arch: str) -> None:
    if (kind, arch) == ("oft", "gpt2"):
        with pytest.raises(ConfigError, match="kind oft cannot be put on this model"):
            add_adapter(tiny_model(arch), WEIGHTS[kind])
        return
    plain = logits(tiny_model(arch))
    model = add_adapter(tiny_model(arch), WEIGHTS[kind])
    torch.testing.assert_close(logits(model), plain, atol=1e-6, rtol=0)
    assert is_fresh(model) and virtual_tokens(model) == 0 and adapter_kind(model) == WEIGHTS[kind].kind
    disturb(model, 0.05)
    assert not is_fresh(model)
    with model.disable_adapter():
        torch.testing.assert_close(logits(model), plain, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", VIRTUAL)
def test_virtual_tokens_count_from_the_start(kind: str) -> None:
    model = add_adapter(tiny_model(), VIRTUAL[kind])
    assert (logits(model) - logits(tiny_model())).abs().max() > 1e-2
    assert not is_fresh(model) and virtual_tokens(model) == 3 and adapter_kind(model) == VIRTUAL[kind].kind


@pytest.mark.parametrize("kind", EVERY)
def test_a_fresh_adapter_has_a_random_stream_of_its_own(kind: str) -> None:
    state = torch.get_rng_state()
    prints = [weights_fingerprint(add_adapter(tiny_model(), EVERY[kind], seed=seed)) for seed in (0, 0)]
    assert torch.equal(torch.get_rng_state(), state)
    assert prints[0] == prints[1]


@pytest.mark.parametrize("kind", EVERY)
def test_every_tensor_gets_a_gradient_or_waits_for_a_factor_that_is_zero(kind: str) -> None:
    work = work_of("sft", model=add_adapter(tiny_model(), EVERY[kind]))
    check = check_gradient(work.policy, None, work.algorithm, work.rows)
    assert check.status == "pass", check.detail


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("how", ["cached", "live", "adapter_off"])
def test_the_reference_is_the_start(kind: str, how: Any, tmp_path: Path) -> None:
    trees = random_trees(3, vocab=97, seed=2, branches=2)
    policy = Policy(add_adapter(tiny_model(), EVERY[kind]))
    if how == "adapter_off" and kind in VIRTUAL:
        with pytest.raises(ConfigError, match="not fresh"):
            reference(how, policy)
        return
    batch = collate(trees)
    start = policy(batch).logprobs_N.detach()
    frozen = reference(how, policy, trees=trees, store=tmp_path)
    torch.testing.assert_close(frozen.logprobs(batch), start, atol=1e-5, rtol=0)
    disturb(policy.model)
    assert (policy(batch).logprobs_N - start).abs().max() > 1e-3
    torch.testing.assert_close(frozen.logprobs(batch), start, atol=1e-5, rtol=0)


# ---------------------------------------------------------------- virtual tokens, padded


def worked_out(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Log-probs of ids[1:] after the virtual tokens, from the plain base model and the saved prompt alone: [T - 1]."""
    plain, prompt = model.get_base_model(), model.get_prompt_embedding_to_save(model.active_adapter)
    if adapter_kind(model) == "prefix":
        shape = (len(prompt), 2 * 2, 2, 8)  # two layers, keys and values, two heads of 8
        keys_and_values = prompt.view(shape).permute(1, 2, 0, 3)[:, None]
        from transformers import DynamicCache

        cache = DynamicCache()
        for layer in range(2):
            cache.update(keys_and_values[2 * layer], keys_and_values[2 * layer + 1], layer)
        out = plain(input_ids=ids[None], past_key_values=cache, use_cache=True).logits[0]
    else:
        embeds = torch.cat([prompt, plain.get_input_embeddings()(ids)])[None]
        out = plain(inputs_embeds=embeds).logits[0, len(prompt) :]
    return out.log_softmax(-1)[:-1].gather(1, ids[1:, None])[:, 0]


@pytest.mark.parametrize("kind", VIRTUAL)
@torch.no_grad()
def test_log_probs_behind_virtual_tokens_are_those_worked_out_by_hand(kind: str) -> None:
    model = disturb(add_adapter(tiny_model(), VIRTUAL[kind]), 0.02)
    trees = random_trees(3, vocab=97, seed=4, branches=2)  # rows of different lengths, so that some are padded
    batch = collate(trees)
    found = Policy(model)(batch).logprobs_N
    expected = []
    for tree in trees:
        for branch in tree.branches:
            row = torch.tensor([*tree.prompt_ids, *branch.ids])
            own = worked_out(model, row)[-len(branch.ids) :]
            expected.append(own[torch.tensor(branch.loss_mask)])
    torch.testing.assert_close(found, torch.cat(expected), atol=1e-5, rtol=0)


def test_they_run_padded_and_the_run_says_so() -> None:
    policy = Policy(add_adapter(tiny_model(), PrefixTuning(tokens=3)))
    trees = random_trees(3, vocab=97, branches=2)
    assert policy.path == "padded"
    check = choose_path(policy, trees, "auto")
    assert check.status == "pass" and "run padded: 3 virtual tokens" in check.detail and policy.path == "padded"
    assert choose_path(policy, trees, "tree").status == "fail"
    with pytest.raises(ModelError, match="virtual tokens stand before every row"):
        policy(collate(trees), path="tree")


@pytest.mark.parametrize("kind", ["ia3", "oft", "bottleneck", "adalora", "dora"])
def test_adapters_of_the_weights_run_on_the_tree(kind: str) -> None:
    policy = Policy(disturb(add_adapter(tiny_model(), WEIGHTS[kind])))
    check = choose_path(policy, random_trees(3, vocab=97, branches=2), "auto")
    assert (check.status, policy.path) == ("pass", "tree")


@pytest.mark.parametrize("kind", ["prefix", "prompt"])
def test_the_engine_samples_behind_virtual_tokens(kind: str) -> None:
    model = disturb(add_adapter(tiny_model(), VIRTUAL[kind]))
    prompts = [[3, 5, 8], [4, 9, 11, 7, 2]]
    greedy = SamplingDistribution(temperature=0, max_new_tokens=6)
    answers = [group[0].ids for group in NativeEngine(model).generate(prompts, greedy)]
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([[*prompt, *answer]])
        assert logits(model, ids)[0, len(prompt) - 1 : -1].argmax(-1).tolist() == list(answer)


def test_a_prompt_can_start_from_a_text() -> None:
    model = add_adapter(tiny_model(vocab=VOCABULARY), PromptTuning(tokens=5, text="Hi!"), tokenizer=TOKENIZER)
    ids = TOKENIZER("Hi!").input_ids
    rows = model.get_input_embeddings().weight[torch.tensor([*ids, *ids][:5])]
    assert torch.equal(model.prompt_encoder["default"].embedding.weight, rows)


# ---------------------------------------------------------------- where they go


def trainable_names(model: Any) -> set[str]:
    return {name.split(".")[-3] for name, p in model.named_parameters() if p.requires_grad}


def test_ia3_scales_keys_values_and_the_feed_forward() -> None:
    model = add_adapter(tiny_model(), IA3())
    sizes = {name.split(".")[-3]: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    # Two heads of 8 for keys and values; the feed-forward is scaled at its input, 48 wide.
    assert sizes == {"k_proj": 16, "v_proj": 16, "down_proj": 48}


def test_ia3_wants_names_for_an_architecture_that_it_does_not_know() -> None:
    model = tiny_model("olmo2")
    with pytest.raises(ConfigError, match="does not know where ia3 belongs"):
        add_adapter(model, IA3())
    assert add_adapter(model, IA3(targets=["k_proj", "down_proj"], feedforward=["down_proj"]))
    with pytest.raises(ConfigError, match="`feedforward` is no target"):
        add_adapter(tiny_model(), IA3(targets=["k_proj"], feedforward=["down_proj"]))


def test_a_bottleneck_stands_after_attention_and_feed_forward() -> None:
    names = [n for n, p in add_adapter(tiny_model(), Bottleneck(size=4)).named_parameters() if p.requires_grad]
    assert {name.split(".bottleneck")[0].rsplit(".", 1)[-1] for name in names} == {"o_proj", "down_proj"}


def test_a_bottleneck_computes_what_the_paper_says() -> None:
    register()
    model = disturb(add_adapter(tiny_model(), Bottleneck(size=4, activation="relu")))
    layer = model.get_submodule("base_model.model.model.layers.0.mlp.down_proj")
    x = torch.randn(3, 48, generator=torch.Generator().manual_seed(0))
    down, up = layer.bottleneck_down["default"], layer.bottleneck_up["default"]
    y = x @ layer.base_layer.weight.T
    hidden = (y @ down.weight.T + down.bias).clamp(min=0)
    torch.testing.assert_close(layer(x), y + hidden @ up.weight.T + up.bias)


def test_dropout_is_the_adapters_own_and_off_in_log_probs() -> None:
    for record in (LoRA(dropout=0.5), OFT(block_size=8, dropout=0.5), Bottleneck(size=4, dropout=0.5)):
        model = disturb(add_adapter(tiny_model(), record)).train()
        assert adapter_dropout(model) == 0.5
        batch = collate(random_trees(2, vocab=97))
        policy = Policy(model)
        assert torch.equal(policy(batch).logprobs_N, policy(batch).logprobs_N)
    assert adapter_dropout(add_adapter(tiny_model(), LoRA())) == 0 == adapter_dropout(tiny_model())


def test_qlora_on_a_cpu_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    torn = tmp_path / "torn"
    tiny_model(vocab=VOCABULARY).save_pretrained(torn)  # no tokenizer: loading it would be another error
    with pytest.raises(ConfigError, match="qlora needs a CUDA device"):
        load(torn, adapter=QLoRA())


def test_full_weights_far_from_the_quantised_ones_are_not_saved(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted fault: weights in 4 bits that were unpacked wrongly."""
    loaded = load(base, adapter=LoRA(rank=2))
    monkeypatch.setattr(export_files, "is_quantised", lambda model: True)
    monkeypatch.setattr(export_files, "merged_copy", lambda model, dtype=None: tiny_model(vocab=VOCABULARY, seed=1))
    with pytest.raises(ExportError, match="compute something else than the quantised ones"):
        begin_save(loaded.model, TOKENIZER, tmp_path / "out", ExportSettings(merge=True), base=loaded.base)


def test_a_second_virtual_prompt_is_refused(base: Path, tmp_path: Path) -> None:
    folder = save_alone(load(base, adapter=PromptTuning(tokens=3)).model, tmp_path / "prompt", base, TOKENIZER)
    with pytest.raises(ConfigError, match="no other can be put over it"):
        load(folder, adapter=LoRA())


# ---------------------------------------------------------------- AdaLoRA's ranks


def adalora_work(steps: int = 12, **options: Any) -> Any:
    record = AdaLoRA(rank=2, initial_rank=4, targets=["q_proj", "v_proj"], **options)
    model = add_adapter(tiny_model(), record)
    return replace(work_of("sft", model=model, epochs=None, steps=steps), adapter=record)


def ranks(model: Any) -> list[int]:
    return [int((p != 0).sum()) for name, p in model.named_parameters() if "lora_E" in name]


def test_ranks_fall_to_their_average(tmp_path: Path) -> None:
    work = adalora_work()
    run_loop(work, tmp_path)
    config = work.policy.model.active_peft_config
    assert (config.tinit, config.tfinal, config.total_step) == (1, 6, 12)
    kept = [sum(row) for row in config.rank_pattern.values()]
    assert sum(kept) == 2 * 4 == sum(ranks(work.policy.model))  # two layers, two modules each


def test_too_few_steps_for_a_schedule_are_refused() -> None:
    from posttrain.training.rank_allocation import schedule

    assert schedule(AdaLoRA(), 200) == (20, 100)
    with pytest.raises(ConfigError, match="too short for AdaLoRA"):
        schedule(AdaLoRA(), 1)


def test_the_penalty_is_the_one_worked_out_by_hand() -> None:
    """A = 2 I (2 x 2): A A^T - I = 3 I, of norm 3 sqrt(2); its gradient is 2 (A A^T - I) A / norm = 12 I / (3 sqrt 2).
    B = I has none. Over two factors and with weight 0.1, A's is 0.05 * 12 / (3 sqrt 2)."""
    from posttrain.training.rank_allocation import RankAllocation

    record = AdaLoRA(rank=1, initial_rank=2, targets=r".*layers\.0\.self_attn\.q_proj")
    model = add_adapter(tiny_model(), record)
    layer = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    a, b = layer.lora_A["default"], layer.lora_B["default"]
    with torch.no_grad():
        a.zero_(), b.zero_()
        a[:2, :2] = 2 * torch.eye(2)
        b[:2, :2] = torch.eye(2)
    RankAllocation(model, record, 100).regularise()
    expected = torch.zeros_like(a)
    expected[:2, :2] = torch.eye(2) * 0.05 * 12 / (3 * math.sqrt(2))
    torch.testing.assert_close(a.grad, expected)
    assert not b.grad.any()


def test_a_resumed_adalora_equals_the_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    from tests.contracts.test_t64_bitwise_resume import Killed

    whole = adalora_work()
    run_loop(whole, tmp_path / "whole")
    dying = adalora_work()
    update, taken = dying.policy.model.base_model.update_and_allocate, []

    def killed(step: int) -> None:
        taken.append(step)
        if step == 8:  # checkpoints come after steps 3 and 6, amid the allocation
            raise Killed
        update(step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dying.policy.model.base_model, "update_and_allocate", killed)
        with pytest.raises(Killed):
            run_loop(dying, tmp_path / "resumed")
    resumed = adalora_work()
    run_loop(resumed, tmp_path / "resumed")
    assert weights_fingerprint(resumed.policy.model) == weights_fingerprint(whole.policy.model)
    assert resumed.policy.model.active_peft_config.rank_pattern == whole.policy.model.active_peft_config.rank_pattern
