"""The native engine against the plainest way to say the same: full forwards, one sequence at a time."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Lfm2Config, PreTrainedModel
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from posttrain.errors import ConfigError, ModelError, NonFiniteError
from posttrain.rollout import decode
from posttrain.rollout.engine import Completion, FinishReason
from posttrain.rollout.native import NativeEngine
from posttrain.sampling import SamplingDistribution
from tests.fixtures import ARCHITECTURES, SLIDING_WINDOW, tiny_model

VOCABULARY = 97
PLAIN = SamplingDistribution(temperature=0.7, max_new_tokens=14, stop_ids=frozenset({3, 5, 7}), seed=4)
GREEDY = replace(PLAIN, temperature=0.0)


def some_prompts(count: int = 6, longest: int = 24, seed: int = 0) -> list[list[int]]:
    """Of mixed lengths, one of them a single token, most of them longer than the sliding window."""
    rng = random.Random(seed)
    lengths = [1, longest, *(rng.randrange(2, longest) for _ in range(count - 2))]
    return [[rng.randrange(VOCABULARY) for _ in range(length)] for length in lengths]


def fresh_logprobs(model: torch.nn.Module, prompt: Sequence[int], ids: Sequence[int]) -> torch.Tensor:
    """Log-probs [T, V] at each answer token, from one forward over the whole sequence without a cache."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *ids]]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits.float(), dim=-1)


def ids_of(groups: list[list[Completion]]) -> list[list[tuple[int, ...]]]:
    return [[completion.ids for completion in group] for group in groups]


WAVES, CRAMPED = {"max_rows": 3}, {"cache_tokens": 90}


@pytest.mark.parametrize(
    ("arch", "settings"),
    [*((arch, WAVES) for arch in ARCHITECTURES), *((arch, CRAMPED) for arch in ("gpt2", "gemma3")), ("mistral", {})],
)
def test_greedy_decoding_is_what_full_forwards_give(arch: str, settings: dict[str, int]) -> None:
    assert SLIDING_WINDOW < 24
    model, prompts = tiny_model(arch), some_prompts()
    engine = NativeEngine(model, **settings)
    for prompt, group in zip(prompts, engine.generate(prompts, GREEDY, completions_per_prompt=2), strict=True):
        assert group[0].ids == group[1].ids
        logprobs = fresh_logprobs(model, prompt, group[0].ids)
        # Each id is the likeliest after those before it: by induction, decoding one by one gives the same.
        assert logprobs.argmax(dim=-1).tolist() == list(group[0].ids)
        taken = logprobs.gather(1, torch.tensor(group[0].ids)[:, None])[:, 0]
        assert torch.allclose(taken, torch.tensor(group[0].logprobs), atol=1e-5)
    assert engine.path == "cached"


def test_results_do_not_depend_on_how_batches_are_filled() -> None:
    model, prompts = tiny_model(), some_prompts(8)
    whole = NativeEngine(model).generate(prompts, PLAIN, completions_per_prompt=3)
    waves = NativeEngine(model, max_rows=4, prefill_tokens=20).generate(prompts, PLAIN, completions_per_prompt=3)
    cramped_engine = NativeEngine(model, cache_tokens=120)
    cramped = cramped_engine.generate(prompts, PLAIN, completions_per_prompt=3)
    backwards = NativeEngine(model).generate(prompts[::-1], PLAIN, completions_per_prompt=3)[::-1]
    alone = [NativeEngine(model).generate([prompt], PLAIN, completions_per_prompt=3)[0] for prompt in prompts]
    fewer = NativeEngine(model).generate(prompts, PLAIN, completions_per_prompt=2)
    for other in (waves, cramped, backwards, alone):
        assert ids_of(other) == ids_of(whole)
    assert ids_of(fewer) == [group[:2] for group in ids_of(whole)]


def test_rows_that_outgrow_the_cache_wait_and_come_back_the_same() -> None:
    model, prompts = tiny_model(), some_prompts(8, longest=10)
    longer = replace(PLAIN, max_new_tokens=60, stop_ids=frozenset())
    roomy, cramped = NativeEngine(model), NativeEngine(model, cache_tokens=180)
    assert ids_of(cramped.generate(prompts, longer)) == ids_of(roomy.generate(prompts, longer))
    assert cramped.stats.preempted > 0
    assert cramped.stats.peak_cells <= 180
    assert roomy.stats.preempted == 0


@pytest.mark.parametrize("settings", [{}, {"max_rows": 3}, {"prefill_tokens": 8}])
def test_a_prompt_is_prefilled_once_for_its_group(settings: dict[str, int]) -> None:
    engine, prompts = NativeEngine(tiny_model(), **settings), some_prompts()
    groups = engine.generate(prompts, PLAIN, completions_per_prompt=8)
    assert engine.stats.prefilled == sum(len(prompt) - 1 for prompt in prompts)
    assert engine.stats.decoded == sum(len(completion.ids) for group in groups for completion in group)


def test_equal_prompts_share_their_prefill_and_not_their_draws() -> None:
    engine, prompt = NativeEngine(tiny_model()), some_prompts()[1]
    first, second = engine.generate([prompt, prompt], PLAIN)
    assert engine.stats.prefilled == len(prompt) - 1
    assert first[0].ids != second[0].ids


def test_the_seed_decides() -> None:
    engine, prompts = NativeEngine(tiny_model()), some_prompts()
    first = ids_of(engine.generate(prompts, PLAIN))
    assert ids_of(engine.generate(prompts, PLAIN)) == first
    assert ids_of(engine.generate(prompts, replace(PLAIN, seed=5))) != first


def test_truncated_and_penalised_sampling_draw_from_their_distribution() -> None:
    model, prompt = tiny_model(), some_prompts()[1]
    sampling = replace(PLAIN, top_k=4, repetition_penalty=1.3, frequency_penalty=0.2)
    completion = NativeEngine(model).generate([prompt], sampling)[0][0]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *completion.ids]])).logits[0, len(prompt) - 1 : -1]
    answers = [completion.ids[:step] for step in range(len(completion.ids))]
    expected = sampling.log_probs(logits, prompts=[prompt] * len(answers), answers=answers)
    taken = expected.gather(1, torch.tensor(completion.ids)[:, None])[:, 0]
    assert torch.allclose(taken, torch.tensor(completion.logprobs), atol=1e-5)


# ---------------------------------------------------------------- how completions end


def test_reasons_to_finish() -> None:
    model, prompts = tiny_model(), some_prompts(3)
    everything = frozenset(range(VOCABULARY))
    empty = NativeEngine(model).generate(prompts, replace(PLAIN, stop_ids=everything))
    assert all(c.finish is FinishReason.EMPTY and len(c.ids) == 1 and c.answer_ids == () for (c,) in empty)
    cut = NativeEngine(model).generate(prompts, replace(PLAIN, stop_ids=frozenset()))
    assert all(c.finish is FinishReason.LENGTH and len(c.ids) == 14 and c.answer_ids == c.ids for (c,) in cut)
    third = cut[0][0].ids[2]
    ended = NativeEngine(model).generate(prompts[:1], replace(PLAIN, stop_ids=frozenset({third})))[0][0]
    assert ended.finish is FinishReason.STOP_TOKEN
    assert ended.ids == cut[0][0].ids[: cut[0][0].ids.index(third) + 1]
    assert ended.answer_ids == ended.ids[:-1]


def test_learned_positions_end_a_completion() -> None:
    engine = NativeEngine(tiny_model("gpt2", n_positions=20))
    sampling = replace(PLAIN, stop_ids=frozenset())
    assert len(engine.generate([[1] * 15], sampling)[0][0].ids) == 5
    with pytest.raises(ConfigError, match="longer than the model") as refused:
        engine.generate([[1, 2], [1] * 20], sampling)
    assert refused.value.where == "prompt 1"


def test_prompts_that_cannot_be_served_are_refused() -> None:
    engine = NativeEngine(tiny_model(), cache_tokens=30)
    with pytest.raises(ConfigError, match="no tokens"):
        engine.generate([[]], PLAIN)
    with pytest.raises(ConfigError, match="cache does not hold"):
        engine.generate([[1] * 17], PLAIN)
    with pytest.raises(ConfigError, match="at least one"):
        engine.generate([[1]], PLAIN, completions_per_prompt=0)
    assert engine.generate([], PLAIN) == []


def test_a_cache_that_is_exactly_full_is_enough() -> None:
    model, sampling = tiny_model(), replace(PLAIN, max_new_tokens=5, stop_ids=frozenset())
    roomy = NativeEngine(model).generate([[1, 2, 3]], sampling)
    assert NativeEngine(model, cache_tokens=8).generate([[1, 2, 3]], sampling)[0][0].ids == roomy[0][0].ids
    with pytest.raises(ConfigError, match="cache does not hold") as refused:
        NativeEngine(model, cache_tokens=7).generate([[1, 2, 3]], sampling)
    assert refused.value.found == "3 tokens + 5 new ones"


def test_broken_weights_are_named_and_not_sampled() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.get_output_embeddings().weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="not finite"):
        NativeEngine(model).generate(some_prompts(), PLAIN)


def test_an_aborted_call_gives_back_what_there_is() -> None:
    engine, finished = NativeEngine(tiny_model(), max_rows=2), []

    def stop_after_the_first(prompt: int, completion: int, result: Completion) -> None:
        finished.append(result.finish)
        engine.abort()

    groups = engine.generate(some_prompts(8), PLAIN, on_finish=stop_after_the_first)
    reasons = [completion.finish for (completion,) in groups]
    assert len(finished) == len(reasons) == 8
    assert reasons.count(FinishReason.ABORTED) >= 6
    assert all(len(c.ids) == len(c.logprobs) for (c,) in groups)
    assert all(c.finish is not FinishReason.ABORTED for (c,) in engine.generate(some_prompts(8), PLAIN))


def test_streaming_gives_the_same_completion_token_by_token() -> None:
    engine, prompt = NativeEngine(tiny_model()), some_prompts()[1]
    whole = engine.generate([prompt], PLAIN)[0][0].ids
    seen = []
    for number in engine.stream(prompt, PLAIN):
        seen.append(number)
        assert torch.is_grad_enabled()
    assert tuple(seen) == whole


# ---------------------------------------------------------------- the trainer's model stays the trainer's


def test_modes_are_restored_and_dropout_is_off_while_sampling() -> None:
    still, model = tiny_model("llama"), tiny_model("llama", attention_dropout=0.5)
    model.train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    assert ids_of(NativeEngine(model).generate(some_prompts(), PLAIN)) == ids_of(
        NativeEngine(still).generate(some_prompts(), PLAIN)
    )
    assert [module.training for module in model.modules()] == before


def test_training_goes_on_after_sampling_even_inside_inference_mode() -> None:
    model, engine = tiny_model(), None
    engine = NativeEngine(model)
    with torch.inference_mode():
        inside = ids_of(engine.generate(some_prompts(), PLAIN))
    assert ids_of(engine.generate(some_prompts(), PLAIN)) == inside
    loss = model(input_ids=torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_weights_of_the_moment_are_sampled_and_the_version_travels() -> None:
    model = tiny_model()
    engine = NativeEngine(model, policy_version=3)
    before = engine.generate(some_prompts(), GREEDY)
    with torch.no_grad():
        model.get_output_embeddings().weight.neg_()
    engine.policy_version = 4
    after = engine.generate(some_prompts(), GREEDY)
    assert ids_of(before) != ids_of(after)
    assert before[0][0].versions == (3, 3)
    assert after[0][0].versions == (4, 4)


def test_a_lora_adapter_is_sampled_with() -> None:
    base = tiny_model()
    plain = ids_of(NativeEngine(base).generate(some_prompts(), GREEDY))
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    group = NativeEngine(model).generate(some_prompts(), GREEDY)
    assert ids_of(group) != plain
    logprobs = fresh_logprobs(model, some_prompts()[1], group[1][0].ids)
    assert logprobs.argmax(dim=-1).tolist() == list(group[1][0].ids)


# ---------------------------------------------------------------- where the cache is wrong


def test_a_cache_that_computes_something_else_is_switched_off(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, prompts = tiny_model(), some_prompts()
    right = ids_of(NativeEngine(model).generate(prompts, GREEDY))
    proper = decode.own_cells
    # The planted fault: rows also see the cells of their neighbours.
    monkeypatch.setattr(decode, "own_cells", lambda lengths, device: torch.ones_like(proper(lengths, device)))
    engine = NativeEngine(model)
    with caplog.at_level(logging.WARNING):
        assert ids_of(engine.generate(prompts, GREEDY)) == right
    assert engine.path == "recomputed"
    assert "LlamaForCausalLM is sampled without a cache" in caplog.text


def recurrent_model() -> PreTrainedModel:
    tokens = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    config = Lfm2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        layer_types=["conv", "full_attention"],
        **tokens,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def test_a_model_with_another_kind_of_state_is_recomputed() -> None:
    model, prompts = recurrent_model(), some_prompts(4, longest=8)
    engine = NativeEngine(model, max_rows=3)
    assert engine.path == "recomputed"
    for prompt, group in zip(prompts, engine.generate(prompts, GREEDY, completions_per_prompt=2), strict=True):
        logprobs = fresh_logprobs(model, prompt, group[1].ids)
        assert logprobs.argmax(dim=-1).tolist() == list(group[1].ids)


def test_an_encoder_decoder_is_refused() -> None:
    model = tiny_model()
    model.config.is_encoder_decoder = True
    with pytest.raises(ModelError, match="causal language models"):
        NativeEngine(model)
