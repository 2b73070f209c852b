"""What every engine promises, asked of all of them: native, served (a fake server), a pool of two, colocated (a fake
module). `tests/vllm/test_conformance.py` asks the same of a real vLLM.

The oracle is the plainest way to say it: full forwards of the same model, one sequence at a time.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.data.trees import collate
from posttrain.errors import ConfigError, EngineError
from posttrain.models.tree.logprobs import Policy
from posttrain.rollout.engine import Completion, FinishReason, Request, SampledToken
from posttrain.rollout.native import NativeEngine
from posttrain.rollout.text import completion_text
from posttrain.rollout.turns import completion_tree
from posttrain.rollout.vllm_colocated import ColocatedEngine
from posttrain.rollout.vllm_pool import ServerPool
from posttrain.rollout.vllm_served import ServedEngine
from posttrain.rollout.weight_sync import SyncedEngine
from posttrain.sampling import SamplingDistribution
from posttrain.types import RowRef, Wants
from tests.fake_vllm import FakeServer, fake_module, letters
from tests.fixtures import tiny_model

VOCABULARY = 97
PLAIN = SamplingDistribution(temperature=0.7, max_new_tokens=10, stop_ids=frozenset({3, 5, 7}), seed=4)
GREEDY = replace(PLAIN, temperature=0.0)
OF_THE_FOLDER = {"do_sample": True, "repetition_penalty": 1.1, "temperature": 0.1, "top_k": 1, "eos_token_id": [11]}
ENGINES = ("native", "served", "pool", "colocated")


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest, model: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Over a model folder whose generation_config.json would rule a careless engine."""
    folder: Path = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps(OF_THE_FOLDER))
    if request.param == "native":
        yield NativeEngine(model, max_rows=5, decode=letters)
    elif request.param == "served":
        with FakeServer(folder) as server:
            yield ServedEngine(server.url, folder=folder / "weights", patience=2.0)
    elif request.param == "pool":
        with FakeServer(folder) as first, FakeServer(folder) as second:
            engines = [ServedEngine(server.url, patience=1.0) for server in (first, second)]
            yield ServerPool(engines, folder=folder / "weights")
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "vllm", fake_module())
            yield ColocatedEngine(folder, folder=folder / "weights")


def some_prompts(count: int = 5, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(VOCABULARY) for _ in range(1 + 5 * index)] for index in range(count)]


def full_forward(model: Any, prompt: Sequence[int], ids: Sequence[int]) -> torch.Tensor:
    """Logits [T, V] at each answer token, from one forward over the whole sequence."""
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([[*prompt, *ids]]), use_cache=False).logits[0]
    return logits[len(prompt) - 1 : -1]


def ids_of(groups: list[list[Completion]]) -> list[list[tuple[int, ...]]]:
    return [[completion.ids for completion in group] for group in groups]


def test_greedy_ids_are_the_oracle_s(engine: SyncedEngine, model: Any) -> None:
    prompts = some_prompts()
    groups = engine.generate(prompts, GREEDY, completions_per_prompt=2)
    for prompt, group in zip(prompts, groups, strict=True):
        assert group[0].ids == group[1].ids
        logits = full_forward(model, prompt, group[0].ids)
        assert logits.argmax(dim=-1).tolist() == list(group[0].ids)
        taken = torch.log_softmax(logits, -1).gather(1, torch.tensor(group[0].ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(group[0].logprobs), taken, atol=1e-5, rtol=0)


def test_log_probs_are_the_trainer_s(engine: SyncedEngine, model: Any) -> None:
    prompts = some_prompts()
    groups = engine.generate(prompts, PLAIN, completions_per_prompt=3)
    trees = [completion_tree(p, g, RowRef("rollout", i)) for i, (p, g) in enumerate(zip(prompts, groups, strict=True))]
    with torch.no_grad():
        trainer_N = Policy(model)(collate(trees), Wants(temperature=0.7)).logprobs_N
    sampler_N = torch.tensor([value for group in groups for completion in group for value in completion.logprobs])
    assert len(sampler_N) > 40
    assert (trainer_N - sampler_N).abs().max() < 1e-5


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0.5},
        {"temperature": 2.0},
        {"top_k": 3},
        {"top_p": 0.4},
        {"min_p": 0.2},
        {"repetition_penalty": 1.5},
        {"presence_penalty": 1.0},
        {"frequency_penalty": 0.7},
        {"temperature": 0.8, "top_k": 5, "top_p": 0.8, "repetition_penalty": 1.2, "frequency_penalty": 0.3},
    ],
    ids=str,
)
def test_every_field_is_honoured(engine: SyncedEngine, model: Any, fields: dict[str, Any]) -> None:
    prompt = some_prompts()[2]
    sampling = replace(PLAIN, stop_ids=frozenset(), max_new_tokens=12, **fields)
    for completion in engine.generate([prompt], sampling, completions_per_prompt=3)[0]:
        answers = [completion.ids[:step] for step in range(len(completion.ids))]
        logits = full_forward(model, prompt, completion.ids)
        expected = sampling.log_probs(logits, prompts=[prompt] * len(answers), answers=answers)
        taken = expected.gather(1, torch.tensor(completion.ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(completion.logprobs), taken, atol=1e-4, rtol=0)


def test_the_model_folder_s_defaults_rule_nothing(engine: SyncedEngine, model: Any) -> None:
    """T29: nothing set, and temperature=1 set, are both the plain distribution; the folder's eos ends nothing."""
    prompt = some_prompts()[2]
    for asked in ({}, {"temperature": 1.0}):
        sampling = SamplingDistribution(**asked, max_new_tokens=8)
        completions = engine.generate([prompt], sampling, completions_per_prompt=8)[0]
        assert len({completion.ids for completion in completions}) > 4
        for completion in completions:
            assert completion.finish is FinishReason.LENGTH
            plain = torch.log_softmax(full_forward(model, prompt, completion.ids), dim=-1)
            taken = plain.gather(1, torch.tensor(completion.ids)[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(completion.logprobs), taken, atol=1e-4, rtol=0)


def test_completions_end_for_the_reason_they_give(engine: SyncedEngine) -> None:
    prompts = some_prompts()
    everything = replace(PLAIN, stop_ids=frozenset(range(VOCABULARY)))
    for (completion,) in engine.generate(prompts, everything):
        assert (completion.finish, len(completion.ids), completion.answer_ids) == (FinishReason.EMPTY, 1, ())
    cut = engine.generate(prompts, replace(PLAIN, stop_ids=frozenset()))
    for (completion,) in cut:
        assert (completion.finish, len(completion.ids)) == (FinishReason.LENGTH, PLAIN.max_new_tokens)
    ids = cut[0][0].ids
    place = next(index for index in range(1, len(ids)) if ids[index] not in ids[:index])
    stopped = engine.generate(prompts[:1], replace(PLAIN, stop_ids=frozenset({ids[place]})))[0][0]
    assert (stopped.finish, stopped.ids) == (FinishReason.STOP_TOKEN, ids[: place + 1])
    assert stopped.answer_ids == ids[:place]


def test_groups_come_in_the_order_of_the_prompts(engine: SyncedEngine) -> None:
    prompts = some_prompts()
    groups = engine.generate(prompts, PLAIN, completions_per_prompt=3)
    assert [len(group) for group in groups] == [3] * len(prompts)
    assert all(len(completion.ids) == len(completion.logprobs) for group in groups for completion in group)
    backwards = engine.generate(prompts[::-1], PLAIN, completions_per_prompt=3)
    assert ids_of(backwards[::-1]) == ids_of(groups)
    assert engine.generate([], PLAIN) == []


def test_the_seed_decides_whatever_else_is_sampled(engine: SyncedEngine) -> None:
    prompts = some_prompts()
    together = ids_of(engine.generate(prompts, PLAIN, completions_per_prompt=3))
    alone = [ids_of(engine.generate([prompt], PLAIN, completions_per_prompt=3))[0] for prompt in prompts]
    assert alone == together
    assert ids_of(engine.generate(prompts, PLAIN, completions_per_prompt=2)) == [group[:2] for group in together]
    assert ids_of(engine.generate(prompts, replace(PLAIN, seed=5), completions_per_prompt=3)) != together


def test_equal_prompts_in_one_call_are_drawn_apart(engine: SyncedEngine) -> None:
    prompt = some_prompts()[2]
    first, second = ids_of(engine.generate([prompt, prompt], PLAIN, completions_per_prompt=4))
    assert first != second
    assert len(set(first)) > 1


def test_each_completion_is_announced_once(engine: SyncedEngine) -> None:
    told: dict[tuple[int, int], Completion] = {}

    def note(prompt: int, completion: int, result: Completion) -> None:
        assert (prompt, completion) not in told
        told[prompt, completion] = result

    groups = engine.generate(some_prompts(), PLAIN, completions_per_prompt=2, on_finish=note)
    assert told == {(i, k): one for i, group in enumerate(groups) for k, one in enumerate(group)}


def test_what_cannot_be_sampled_is_refused(engine: SyncedEngine, model: Any) -> None:
    with pytest.raises(ConfigError, match="no tokens"):
        engine.generate([[1], []], PLAIN)
    with pytest.raises(ConfigError, match="at least one"):
        engine.generate([[1]], PLAIN, completions_per_prompt=0)


def test_scores_are_those_of_full_forwards(engine: SyncedEngine, model: Any) -> None:
    prompt, ids = some_prompts()[3], [9, 8, 7, 3, 60, 2]
    logprobs = torch.log_softmax(full_forward(model, prompt, ids), dim=-1)
    expected = logprobs.gather(1, torch.tensor(ids)[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(engine.score(prompt, ids)), expected, atol=1e-5, rtol=0)


# ---------------------------------------------------------------- one request at a time

LONG = replace(PLAIN, max_new_tokens=40, stop_ids=frozenset())


def requests_of(prompts: Sequence[Sequence[int]], sampling: SamplingDistribution, completions: int) -> list[Request]:
    return [Request(tuple(prompt), sampling, k) for prompt in prompts for k in range(completions)]


def answers_of(engine: SyncedEngine, requests: Sequence[Request]) -> list[Completion]:
    async def ask() -> list[Completion]:
        return await asyncio.gather(*(engine.generate_one(request) for request in requests))

    return asyncio.run(ask())


def test_requests_get_what_the_batch_gets(engine: SyncedEngine) -> None:
    """Also where two requests ask for different distributions at the same time."""
    prompts, warm = some_prompts(), replace(PLAIN, temperature=1.3, top_k=8, seed=9)
    batches = [engine.generate(prompts, sampling, completions_per_prompt=3) for sampling in (PLAIN, warm)]
    expected = [completion for groups in batches for group in groups for completion in group]
    requests = [request for sampling in (PLAIN, warm) for request in requests_of(prompts, sampling, 3)]
    for got, wanted in zip(answers_of(engine, requests), expected, strict=True):
        assert (got.ids, got.finish, got.versions, got.trains) == (
            wanted.ids,
            wanted.finish,
            wanted.versions,
            wanted.trains,
        )
        torch.testing.assert_close(torch.tensor(got.logprobs), torch.tensor(wanted.logprobs), atol=1e-5, rtol=0)


def test_equal_prompts_are_told_apart_by_their_number(engine: SyncedEngine) -> None:
    prompt = some_prompts()[2]
    expected = ids_of(engine.generate([prompt, prompt], PLAIN, completions_per_prompt=2))
    requests = [Request(prompt, PLAIN, k, occurrence) for occurrence in (0, 1) for k in (0, 1)]
    ids = [completion.ids for completion in answers_of(engine, requests)]
    assert [ids[:2], ids[2:]] == expected


def test_greedy_requests_are_the_oracle_s(engine: SyncedEngine, model: Any) -> None:
    prompts = some_prompts()
    for prompt, completion in zip(prompts, answers_of(engine, requests_of(prompts, GREEDY, 1)), strict=True):
        assert full_forward(model, prompt, completion.ids).argmax(dim=-1).tolist() == list(completion.ids)


def test_requests_join_while_others_are_sampled(engine: SyncedEngine) -> None:
    """Longer ones after shorter ones, more of them than there are slots."""
    prompts = some_prompts(7)
    expected = [group[0].ids for group in engine.generate(prompts, LONG)]

    async def late(index: int) -> Completion:
        for _ in range(3 * index):
            await asyncio.sleep(0)
        return await engine.generate_one(Request(prompts[index], LONG))

    async def ask() -> list[Completion]:
        return await asyncio.gather(*map(late, range(len(prompts))))

    assert [completion.ids for completion in asyncio.run(ask())] == expected
    assert engine.in_flight == 0


def test_one_request_is_aborted_and_the_others_go_on(engine: SyncedEngine) -> None:
    prompts = some_prompts()
    expected = [group[0].ids for group in engine.generate(prompts, LONG)]
    requests = requests_of(prompts, LONG, 1)

    async def ask() -> list[Completion]:
        tasks = [asyncio.create_task(engine.generate_one(request)) for request in requests]
        await asyncio.sleep(0)
        engine.abort(requests[1])
        return await asyncio.gather(*tasks)

    answers = asyncio.run(ask())
    aborted = answers.pop(1)
    assert aborted.finish is FinishReason.ABORTED
    assert aborted.ids == expected.pop(1)[: len(aborted.ids)] and len(aborted.ids) < LONG.max_new_tokens
    assert [answer.ids for answer in answers] == expected
    assert engine.in_flight == 0
    engine.abort(requests[1])  # it has ended: nothing happens
    assert answers_of(engine, requests[:1])[0].ids == expected[0]


def test_an_abort_of_all_ends_every_request(engine: SyncedEngine) -> None:
    requests = requests_of(some_prompts(), LONG, 2)

    async def ask() -> list[Completion]:
        tasks = [asyncio.create_task(engine.generate_one(request)) for request in requests]
        await asyncio.sleep(0)
        engine.abort()
        return await asyncio.gather(*tasks)

    answers = asyncio.run(ask())
    # Engines behind threads may have answered some by then: what counts is that none is left, and that some were ended.
    assert any(answer.finish is FinishReason.ABORTED for answer in answers)
    assert engine.in_flight == 0
    assert engine.generate(some_prompts(), PLAIN)[0][0].finish is not FinishReason.ABORTED


def test_a_request_that_is_refused_leaves_the_others_alone(engine: SyncedEngine) -> None:
    prompts = some_prompts()
    expected = [group[0].ids for group in engine.generate(prompts, PLAIN)]
    too_long = Request([1] * 2_000, PLAIN)

    async def ask() -> list[Completion | BaseException]:
        requests = [Request((), PLAIN), *requests_of(prompts, PLAIN, 1), too_long]
        return await asyncio.gather(*map(engine.generate_one, requests), return_exceptions=True)

    empty, *answers, long = asyncio.run(ask())
    assert isinstance(empty, ConfigError) and "no tokens" in str(empty)
    assert isinstance(long, ConfigError | ValueError)
    assert [answer.ids for answer in answers] == expected  # type: ignore[union-attr]
    assert engine.in_flight == 0


def test_a_cancelled_request_frees_its_slot(engine: SyncedEngine) -> None:
    prompts = some_prompts()
    expected = [group[0].ids for group in engine.generate(prompts, LONG)]

    async def ask() -> list[Completion | BaseException]:
        tasks = [asyncio.create_task(engine.generate_one(request)) for request in requests_of(prompts, LONG, 1)]
        for _ in range(3):
            await asyncio.sleep(0)
        assert engine.in_flight == len(tasks)
        tasks[2].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[2]
        assert engine.in_flight <= len(tasks) - 1
        return await asyncio.gather(*tasks, return_exceptions=True)

    answers = asyncio.run(ask())
    assert isinstance(answers.pop(2), asyncio.CancelledError)
    assert expected.pop(2) and [answer.ids for answer in answers] == expected  # type: ignore[union-attr]
    assert engine.in_flight == 0


def test_a_time_limit_ends_a_request_and_the_engine_goes_on(engine: SyncedEngine) -> None:
    async def ask() -> None:
        async with asyncio.timeout(0):
            await engine.generate_one(Request([1, 2], LONG))

    with pytest.raises(TimeoutError):
        asyncio.run(ask())
    assert engine.in_flight == 0
    assert len(engine.generate([[1, 2]], LONG)[0][0].ids) == LONG.max_new_tokens


def test_a_request_cannot_be_asked_twice_at_a_time(engine: SyncedEngine) -> None:
    request = Request([1, 2], PLAIN)

    async def ask() -> list[Completion | BaseException]:
        both = (engine.generate_one(request), engine.generate_one(request))
        return await asyncio.gather(*both, return_exceptions=True)

    first, second = asyncio.run(ask())
    assert isinstance(first, Completion) and isinstance(second, ValueError)
    assert answers_of(engine, [request]) == [first]


# ---------------------------------------------------------------- strings, raw log-probs, token by token


def test_a_stop_string_ends_a_completion_and_all_its_ids_stay(engine: SyncedEngine) -> None:
    prompts = some_prompts(4)  # a server takes four strings
    whole = [group[0] for group in engine.generate(prompts, LONG)]
    strings = tuple(letters(one.ids)[7:9] for one in whole)
    sampling = replace(LONG, stop=strings)
    batch = [group[0] for group in engine.generate(prompts, sampling)]
    for one, answer, request in zip(whole, batch, answers_of(engine, requests_of(prompts, sampling, 1)), strict=True):
        first = min(letters(one.ids).find(string) % 1000 for string in strings)
        assert answer.finish is request.finish is FinishReason.STOP_STRING
        assert answer.ids == request.ids == answer.answer_ids == one.ids[: first + 2]
        assert answer.stopped_by == request.stopped_by == letters(one.ids)[first : first + 2]
        assert completion_text(answer, letters) == letters(one.ids[:first])


@pytest.mark.parametrize("top", [0, 1, 5])
def test_alternatives_are_raw_log_probs(engine: SyncedEngine, model: Any, top: int) -> None:
    prompts, sampling = some_prompts(), replace(LONG, temperature=1.0)
    expected = [group[0].ids for group in engine.generate(prompts, sampling)]
    answers = answers_of(engine, [Request(prompt, sampling, alternatives=top) for prompt in prompts])
    assert [answer.ids for answer in answers] == expected
    for prompt, answer in zip(prompts, answers, strict=True):
        raw = torch.log_softmax(full_forward(model, prompt, answer.ids), dim=-1)
        for logprobs, number, one in zip(raw, answer.ids, answer.alternatives, strict=True):
            assert one.logprob == pytest.approx(float(logprobs[number]), abs=1e-5)
            likeliest = logprobs.topk(top)
            assert [own for own, _ in one.top] == likeliest.indices.tolist()
            assert [value for _, value in one.top] == pytest.approx(likeliest.values.tolist(), abs=1e-5)


def test_alternatives_of_another_distribution_are_raw_or_refused(engine: SyncedEngine, model: Any) -> None:
    prompt = some_prompts()[2]
    request = Request(prompt, replace(LONG, temperature=0.7, top_k=5), alternatives=1)
    if not isinstance(engine, NativeEngine):
        with pytest.raises(ConfigError, match="alternatives are raw"):
            answers_of(engine, [request])
        return
    (answer,) = answers_of(engine, [request])
    raw = torch.log_softmax(full_forward(model, prompt, answer.ids), dim=-1)
    assert [one.top[0][0] for one in answer.alternatives] == raw.argmax(dim=-1).tolist()


def test_tokens_are_handed_on_or_the_request_is_refused(engine: SyncedEngine) -> None:
    tokens: list[SampledToken] = []
    request = Request(some_prompts()[2], replace(LONG, temperature=1.0), alternatives=2, on_token=tokens.append)
    if isinstance(engine, ServedEngine | ServerPool):
        with pytest.raises(ConfigError, match="not token by token"):
            answers_of(engine, [request])
        return
    (answer,) = answers_of(engine, [request])
    expected = zip(answer.ids, answer.logprobs, answer.alternatives, strict=True)
    assert tokens == [SampledToken(*one) for one in expected]


def test_an_on_token_that_raises_is_the_error_of_its_request(engine: SyncedEngine) -> None:
    if isinstance(engine, ServedEngine | ServerPool):
        return
    prompts = some_prompts()
    expected = [group[0].ids for group in engine.generate(prompts, LONG)]

    def broken(_: SampledToken) -> None:
        raise BrokenPipeError("gone")

    async def ask() -> list[Completion | BaseException]:
        requests = [Request(prompt, LONG, on_token=broken if k == 1 else None) for k, prompt in enumerate(prompts)]
        return await asyncio.gather(*map(engine.generate_one, requests), return_exceptions=True)

    answers = asyncio.run(ask())
    assert isinstance(failed := answers.pop(1), EngineError) and "`on_token` raised" in str(failed)
    assert expected.pop(1) and [answer.ids for answer in answers] == expected  # type: ignore[union-attr]
    assert engine.in_flight == 0


def test_new_weights_are_sampled_from_and_their_version_travels(engine: SyncedEngine, model: Any) -> None:
    """The last test here: a prompt that was seen under the old weights must not be answered from a stale cache."""
    prompts = some_prompts()
    before = engine.generate(prompts, GREEDY)
    with torch.no_grad():
        model.get_output_embeddings().weight.neg_()
    try:
        engine.update_weights(model, 7)
        after = engine.generate(prompts, GREEDY)
        assert ids_of(before) != ids_of(after)
        assert {completion.versions for (completion,) in after} == {(7, 7)}
        for prompt, (completion,) in zip(prompts, after, strict=True):
            assert full_forward(model, prompt, completion.ids).argmax(dim=-1).tolist() == list(completion.ids)
    finally:
        with torch.no_grad():
            model.get_output_embeddings().weight.neg_()
        engine.update_weights(model, 8)
    assert ids_of(engine.generate(prompts, GREEDY)) == ids_of(before)
