"""Raw log-probs of sampled tokens and of prompts, and tokens handed on as they are sampled."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from torch import nn

from posttrain.data.trees import collate
from posttrain.errors import ConfigError, EngineError, NonFiniteError
from posttrain.models.tree.logprobs import Policy
from posttrain.models.tree.projection import Head
from posttrain.rollout import prompt_scores as scores_module
from posttrain.rollout.engine import Alternatives, Completion, FinishReason, Request, SampledToken
from posttrain.rollout.native import NativeEngine
from posttrain.sampling import SamplingDistribution
from tests.fixtures import make_tree, tiny_model
from tests.unit.rollout.test_native_engine import ids_of, recurrent_model, some_prompts

LONG = SamplingDistribution(temperature=0.7, max_new_tokens=20, seed=4)
BENT = replace(LONG, temperature=1.7, top_k=5, top_p=0.9, repetition_penalty=1.4, frequency_penalty=0.3)


def raw_logprobs(model: nn.Module, ids: Sequence[int]) -> torch.Tensor:
    """log softmax [T, V] of a full forward: row t is of what follows the first t + 1 tokens."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0, -len(ids) :]
    return torch.log_softmax(logits.double(), dim=-1)


def assert_scored(scores: Sequence[Alternatives], logprobs_TV: torch.Tensor, ids: Sequence[int], top: int) -> None:
    torch.testing.assert_close(
        torch.tensor([one.logprob for one in scores], dtype=torch.float64),
        logprobs_TV.gather(1, torch.tensor(ids)[:, None])[:, 0],
        atol=1e-5,
        rtol=0,
    )
    likeliest = logprobs_TV.topk(min(top, logprobs_TV.shape[1]))
    assert [[number for number, _ in one.top] for one in scores] == likeliest.indices.tolist()
    given = torch.tensor([[value for _, value in one.top] for one in scores], dtype=torch.float64)
    torch.testing.assert_close(given, likeliest.values, atol=1e-5, rtol=0)


# ---------------------------------------------------------------- of sampled tokens


@pytest.mark.parametrize("sampling", [LONG, BENT, replace(BENT, temperature=0.0)], ids=["plain", "bent", "greedy"])
def test_alternatives_are_raw_whatever_the_distribution_draws_from(sampling: SamplingDistribution) -> None:
    model, prompts = tiny_model(), some_prompts(4)
    engine = NativeEngine(model)
    tops: list[int | None] = [3, 0, None, 7]
    plain = [group[0] for group in engine.generate(prompts, sampling)]

    async def ask() -> list[Completion]:
        requests = [Request(prompt, sampling, alternatives=top) for prompt, top in zip(prompts, tops, strict=True)]
        return await asyncio.gather(*map(engine.generate_one, requests))

    for prompt, top, answer, without in zip(prompts, tops, asyncio.run(ask()), plain, strict=True):
        assert answer.ids == without.ids and without.alternatives == ()
        assert answer.logprobs == pytest.approx(without.logprobs, abs=1e-6)
        if top is None:
            assert answer.alternatives == ()
            continue
        logprobs_TV = raw_logprobs(model, [*prompt, *answer.ids])[len(prompt) - 1 : -1]
        assert_scored(answer.alternatives, logprobs_TV, answer.ids, top)


def test_more_alternatives_than_ids_are_all_of_them_and_fewer_than_none_are_refused() -> None:
    engine = NativeEngine(tiny_model())
    answer = asyncio.run(engine.generate_one(Request([1, 2], LONG, alternatives=1000)))
    assert all(len(one.top) == 97 for one in answer.alternatives)
    with pytest.raises(ConfigError, match="`alternatives` is out of range"):
        Request([1, 2], LONG, alternatives=-1)


def test_a_completion_with_alternatives_at_some_ids_is_refused() -> None:
    with pytest.raises(ValueError, match="alternatives at 1 of them"):
        Completion((1, 2), (-1.0, -1.0), FinishReason.LENGTH, alternatives=(Alternatives(-1.0),))


# ---------------------------------------------------------------- handed on


def test_tokens_are_handed_on_in_order_before_the_completion() -> None:
    engine, prompts, events = NativeEngine(tiny_model()), some_prompts(3), list[tuple[int, object]]()

    async def ask(number: int) -> Completion:
        request = Request(
            prompts[number],
            LONG,
            alternatives=2 if number == 1 else None,
            on_token=lambda token: events.append((number, token)),
        )
        completion = await engine.generate_one(request)
        events.append((number, completion))
        return completion

    async def ask_all() -> list[Completion]:
        return await asyncio.gather(*map(ask, range(3)))

    for number, completion in enumerate(asyncio.run(ask_all())):
        *tokens, last = [event for of, event in events if of == number]
        alternatives = completion.alternatives or [None] * len(completion.ids)
        expected = zip(completion.ids, completion.logprobs, alternatives, strict=True)
        assert tokens == [SampledToken(*token) for token in expected]
        assert last is completion
    # Handed on as they are sampled: those of the three stand between each other.
    assert [of for of, event in events if isinstance(event, SampledToken)][:6] == [0, 1, 2, 0, 1, 2]


def test_what_is_handed_on_to_may_record_gradients() -> None:
    engine, seen = NativeEngine(tiny_model()), set[tuple[bool, bool]]()
    engine.model.train()
    request = Request([1, 2], LONG, on_token=lambda _: seen.add((torch.is_grad_enabled(), engine.model.training)))
    asyncio.run(engine.generate_one(request))
    assert seen == {(True, True)}


def test_an_on_token_that_raises_ends_its_own_request_alone() -> None:
    engine, prompts = NativeEngine(tiny_model()), some_prompts(3)
    expected = ids_of(engine.generate(prompts, LONG))
    count = 0

    def broken(token: SampledToken) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise BrokenPipeError("the reader has gone")

    async def ask() -> list[Completion | BaseException]:
        requests = [Request(prompt, LONG, on_token=broken if i == 1 else None) for i, prompt in enumerate(prompts)]
        return await asyncio.gather(*map(engine.generate_one, requests), return_exceptions=True)

    first, failed, last = asyncio.run(ask())
    assert isinstance(failed, EngineError) and "`on_token` raised" in str(failed) and "has gone" in str(failed)
    assert isinstance(failed.__cause__, BrokenPipeError)
    assert count == 3 and engine.in_flight == 0
    assert isinstance(first, Completion) and isinstance(last, Completion)
    assert [[first.ids], [last.ids]] == [expected[0], expected[2]]


def test_an_on_token_may_abort_its_request_and_cancel_its_task() -> None:
    engine, prompts = NativeEngine(tiny_model()), some_prompts(3)
    expected = ids_of(engine.generate(prompts, LONG))
    seen: list[list[int]] = [[], [], []]

    async def ask() -> list[Completion | BaseException]:
        def end(number: int) -> None:
            if len(seen[number]) == 5 and number < 2:
                engine.abort(requests[number]) if number == 0 else tasks[number].cancel()

        def take(number: int, token: SampledToken) -> None:
            seen[number].append(token.id)
            end(number)

        requests = [
            Request(prompt, LONG, on_token=lambda token, number=number: take(number, token))  # type: ignore[misc]
            for number, prompt in enumerate(prompts)
        ]
        tasks = [asyncio.create_task(engine.generate_one(request)) for request in requests]
        return await asyncio.gather(*tasks, return_exceptions=True)

    aborted, cancelled, whole = asyncio.run(ask())
    assert isinstance(aborted, Completion) and aborted.finish is FinishReason.ABORTED
    assert list(aborted.ids) == seen[0] == list(expected[0][0][:5])
    assert isinstance(cancelled, asyncio.CancelledError) and seen[1] == list(expected[1][0][:5])
    assert isinstance(whole, Completion) and [whole.ids] == expected[2] == [tuple(seen[2])]


# ---------------------------------------------------------------- of prompts


@pytest.mark.parametrize("arch", ["llama", "gemma2", "gpt2", "qwen3_moe", "gpt_neox"])
@pytest.mark.parametrize("settings", [{}, {"prefill_tokens": 30}], ids=str)
def test_prompts_are_scored_as_a_full_forward_does(arch: str, settings: dict[str, int]) -> None:
    model, prompts = tiny_model(arch, dtype=torch.float64), some_prompts(6)
    engine = NativeEngine(model, **settings)
    for prompt, scores in zip(prompts, engine.prompt_scores(prompts, top=4), strict=True):
        assert scores[0] is None and len(scores) == len(prompt)
        if len(prompt) > 1:
            assert_scored(scores[1:], raw_logprobs(model, prompt)[:-1], prompt[1:], 4)  # type: ignore[arg-type]


def test_prompt_scores_are_the_policy_s_log_probs() -> None:
    model, prompts = tiny_model(dtype=torch.float64), [prompt for prompt in some_prompts(6) if len(prompt) > 1]
    trees = [make_tree(prompt[:1], prompt[1:], row=row) for row, prompt in enumerate(prompts)]
    scores = NativeEngine(model).prompt_scores(prompts)
    found = [one.logprob for row in scores for one in row[1:] if one is not None]
    # The tree's rotary angles are fp32; the rows' are the model's own.
    for path, tolerance in (("rows", 1e-12), ("tree", 1e-6)):
        with torch.no_grad():
            expected_N = Policy(model, path=path)(collate(trees)).logprobs_N  # type: ignore[arg-type]
        torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), expected_N, atol=tolerance, rtol=0)
    assert all(one.top == () for row in scores for one in row if one is not None)


@pytest.mark.parametrize("chunk", [1, 3])
def test_chunks_change_nothing_and_bound_the_logits(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts, seen = tiny_model("gemma2"), some_prompts(5), list[int]()
    expected = NativeEngine(model).prompt_scores(prompts, top=2)
    monkeypatch.setattr(scores_module, "chunk_rows", lambda vocabulary: chunk)
    original = scores_module.apply_head

    def counted(hidden: torch.Tensor, head: Head) -> torch.Tensor:
        seen.append(hidden[..., 0].numel())
        return original(hidden, head)

    monkeypatch.setattr(scores_module, "apply_head", counted)
    for row, wanted in zip(NativeEngine(model).prompt_scores(prompts, top=2), expected, strict=True):
        for one, other in zip(row[1:], wanted[1:], strict=True):
            assert one is not None and other is not None
            assert [number for number, _ in one.top] == [number for number, _ in other.top]
            assert one.logprob == pytest.approx(other.logprob, abs=1e-5)
    assert max(seen) <= max(chunk, len(prompts))


def test_a_head_that_is_not_all_is_shown_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The softcap is forgotten, as of a model that does to its logits what nobody knows of."""
    model, prompts = tiny_model("gemma2", dtype=torch.float64), some_prompts(4)
    monkeypatch.setattr(scores_module, "read_head", lambda model: Head(model.get_output_embeddings()))
    monkeypatch.setattr(scores_module, "LARGEST_LOGITS", 97 * 9)
    for prompt, scores in zip(prompts[1:], NativeEngine(model).prompt_scores(prompts, top=4)[1:], strict=True):
        assert_scored(scores[1:], raw_logprobs(model, prompt)[:-1], prompt[1:], 4)  # type: ignore[arg-type]


@pytest.mark.parametrize("config", [PromptTuningConfig, PrefixTuningConfig])
def test_virtual_tokens_and_recurrent_models_score_prompts_too(config: type) -> None:
    base, prompts = tiny_model(), some_prompts(3)
    model = get_peft_model(base, config(task_type="CAUSAL_LM", num_virtual_tokens=3))
    for scored in (model, recurrent_model()):
        for prompt, scores in zip(prompts[1:], NativeEngine(scored).prompt_scores(prompts, top=4)[1:], strict=True):
            assert_scored(scores[1:], raw_logprobs(scored, prompt)[:-1], prompt[1:], 4)  # type: ignore[arg-type]


def test_a_head_with_an_adapter_on_it_scores_prompts() -> None:
    model = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["lm_head", "q_proj"], init_lora_weights=False))
    (scores,) = NativeEngine(model).prompt_scores([[5, 6, 7, 8]], top=4)
    assert_scored(scores[1:], raw_logprobs(model, [5, 6, 7, 8])[:-1], [6, 7, 8], 4)  # type: ignore[arg-type]


def test_prompts_that_cannot_be_scored_are_named() -> None:
    model = tiny_model()
    engine = NativeEngine(model)
    assert engine.prompt_scores([]) == [] and engine.prompt_scores([[5]]) == [[None]]
    assert len(engine.prompt_scores([[5] * 512])[0]) == 512
    with pytest.raises(ConfigError, match="prompt 1"):
        engine.prompt_scores([[1, 2], []])
    with pytest.raises(ConfigError, match="prompt 1"):
        engine.prompt_scores([[1, 2], [5] * 513])
    with pytest.raises(ConfigError, match="`top` is out of range"):
        engine.prompt_scores([[1, 2]], top=-1)
    with torch.no_grad():
        model.get_input_embeddings().weight[6] = float("nan")
    with pytest.raises(NonFiniteError, match="prompt 1, token"):
        engine.prompt_scores([[1, 2, 3], [5, 6, 7]])


def test_prompts_that_change_the_rotary_angles_are_scored_alone() -> None:
    prompts = [[1] * 10, [1] * 9, [1] * 4, [1] * 3]
    assert scores_module._batches(prompts, 1000, None) == [[0, 1, 2, 3]]
    assert scores_module._batches(prompts, 1000, 5) == [[0], [1], [2, 3]]
