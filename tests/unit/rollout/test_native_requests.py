"""Requests that come one by one to the native engine: they join and leave a running batch, whatever its memory."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch

from posttrain.errors import ConfigError, EngineError, NonFiniteError
from posttrain.rollout.engine import Completion, FinishReason, Request, SampledToken, Versions
from posttrain.rollout.native import NativeEngine
from posttrain.rollout.native_requests import NativeStepSampler
from posttrain.rollout.requests import RequestQueue
from posttrain.sampling import SamplingDistribution
from tests.fixtures import tiny_model
from tests.unit.rollout.test_native_engine import fresh_logprobs, ids_of, recurrent_model, some_prompts

LONG = SamplingDistribution(temperature=0.7, max_new_tokens=30, seed=4)
GREEDY = replace(LONG, temperature=0.0)


async def turns(count: int) -> None:
    """Let everybody else have `count` turns; the engine takes one step in each."""
    for _ in range(count):
        await asyncio.sleep(0)


async def staggered(engine: NativeEngine, prompts: Sequence[Sequence[int]], gap: int) -> list[Completion]:
    """Each `gap` steps after the one before."""
    tasks = []
    for prompt in prompts:
        tasks.append(asyncio.create_task(engine.generate_one(Request(prompt, LONG))))
        await turns(gap)
    return await asyncio.gather(*tasks)


@pytest.mark.parametrize("order", [1, -1], ids=["longer later", "shorter later"])
@pytest.mark.parametrize(
    "settings", [{}, {"max_rows": 3}, {"cache_tokens": 130}, {"cache_tokens": 60}, {"prefill_tokens": 8}], ids=str
)
def test_rows_that_come_late_are_sampled_as_in_a_batch(settings: dict[str, int], order: int) -> None:
    model, prompts = tiny_model(), sorted(some_prompts(8), key=len)[::order]
    expected = [group[0].ids for group in NativeEngine(model).generate(prompts, LONG)]
    engine = NativeEngine(model, **settings)
    answers = asyncio.run(staggered(engine, prompts, 3))
    assert [answer.ids for answer in answers] == expected
    assert engine.path == "cached"
    assert engine.stats.peak_cells <= settings.get("cache_tokens", 32_768)


@pytest.mark.parametrize("arch", ["gpt2", "gemma3", "mistral"])
def test_windows_and_positions_hold_for_rows_that_come_late(arch: str) -> None:
    model, prompts = tiny_model(arch), sorted(some_prompts(6), key=len)
    for prompt, answer in zip(prompts, asyncio.run(staggered(NativeEngine(model), prompts, 2)), strict=True):
        logprobs = fresh_logprobs(model, prompt, answer.ids)
        expected = LONG.log_probs(logprobs).gather(1, torch.tensor(answer.ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(answer.logprobs), expected, atol=1e-5, rtol=0)


def test_a_model_without_a_cache_answers_requests_too() -> None:
    model, prompts = recurrent_model(), some_prompts(4, longest=8)
    expected = [group[0].ids for group in NativeEngine(model).generate(prompts, LONG)]
    answers = asyncio.run(staggered(NativeEngine(model, max_rows=2), prompts, 2))
    assert [answer.ids for answer in answers] == expected


@pytest.mark.parametrize("late", [1, 60])
def test_requests_share_their_steps(late: int) -> None:
    """Eight rows of thirty tokens are thirty steps, not 240, and a row that comes at the tenth ends at the fortieth,
    also one whose prompt is longer than all that is live."""
    engine, prompts = NativeEngine(tiny_model()), [*some_prompts(8), [5] * late]

    async def ask() -> None:
        tasks = [asyncio.create_task(engine.generate_one(Request(prompt, LONG))) for prompt in prompts[:8]]
        while engine.stats.steps != 10 or engine.in_flight < 8:
            await asyncio.sleep(0)
        tasks.append(asyncio.create_task(engine.generate_one(Request(prompts[8], LONG))))
        await asyncio.gather(*tasks)

    engine.generate([[1, 2]], LONG)  # the proof of the cache has its own steps
    asyncio.run(ask())
    assert 40 <= engine.stats.steps <= 42
    assert engine.stats.decoded == 9 * 30


def test_others_have_their_turn_between_two_steps() -> None:
    engine = NativeEngine(tiny_model())

    async def ask() -> int:
        task = asyncio.create_task(engine.generate_one(Request([1, 2], LONG)))
        count = 0
        while not task.done():
            count += 1
            assert torch.is_grad_enabled()
            await asyncio.sleep(0)
        return count

    assert asyncio.run(ask()) >= 30


def test_equal_prompts_that_come_together_are_prefilled_once() -> None:
    engine, prompt = NativeEngine(tiny_model()), some_prompts()[1]
    engine.generate([[1, 2]], LONG)

    async def ask() -> list[Completion]:
        return await asyncio.gather(*(engine.generate_one(Request(prompt, LONG, k)) for k in range(4)))

    answers = asyncio.run(ask())
    assert engine.stats.prefilled == len(prompt) - 1
    assert len({answer.ids for answer in answers}) == 4


# ---------------------------------------------------------------- slots


def test_a_cancelled_row_gives_its_slot_to_one_that_waits() -> None:
    engine, prompts = NativeEngine(tiny_model(), max_rows=1), some_prompts(3)
    expected = ids_of(engine.generate(prompts[1:], LONG))

    async def ask() -> list[Completion]:
        first, *others = [asyncio.create_task(engine.generate_one(Request(prompt, LONG))) for prompt in prompts]
        await turns(4)
        first.cancel()
        return await asyncio.gather(*others)

    answers = asyncio.run(ask())
    assert [[answer.ids] for answer in answers] == expected
    assert engine.stats.steps < 2 * 30 + 6  # the first was not sampled to its end


def test_a_row_that_waits_can_be_cancelled_and_aborted() -> None:
    engine, prompts = NativeEngine(tiny_model(), max_rows=1), some_prompts(3)
    requests = [Request(prompt, LONG) for prompt in prompts]

    async def ask() -> Completion:
        tasks = [asyncio.create_task(engine.generate_one(request)) for request in requests]
        await turns(4)
        tasks[1].cancel()
        engine.abort(requests[2])
        aborted = await tasks[2]
        assert len((await tasks[0]).ids) == 30
        return aborted

    assert asyncio.run(ask()) == Completion((), (), FinishReason.ABORTED)
    assert engine.in_flight == 0


def test_an_aborted_row_gives_back_what_it_had() -> None:
    engine, prompt = NativeEngine(tiny_model()), some_prompts()[1]
    expected = engine.generate([prompt], LONG)[0][0]
    request = Request(prompt, LONG)

    async def ask() -> Completion:
        task = asyncio.create_task(engine.generate_one(request))
        while engine.stats.steps != 7 or not engine.in_flight:
            await asyncio.sleep(0)
        threading.Thread(target=engine.abort, args=(request,)).start()
        return await task

    aborted = asyncio.run(ask())
    assert aborted.finish is FinishReason.ABORTED and 7 <= len(aborted.ids) <= 30
    assert aborted.ids == expected.ids[: len(aborted.ids)]


def test_an_idle_engine_holds_no_cache() -> None:
    engine = NativeEngine(tiny_model())
    asyncio.run(engine.generate_one(Request([1, 2, 3], LONG)))
    assert engine._requests._sampler._decoder is None  # type: ignore[attr-defined]


def test_a_batch_may_be_asked_for_meanwhile() -> None:
    engine, prompts = NativeEngine(tiny_model()), some_prompts()
    expected = ids_of(engine.generate(prompts, LONG))

    async def ask() -> Completion:
        task = asyncio.create_task(engine.generate_one(Request(prompts[3], LONG)))
        await turns(5)
        assert ids_of(engine.generate(prompts, LONG)) == expected
        return await task

    assert [asyncio.run(ask()).ids] == expected[3]


# ---------------------------------------------------------------- errors


def test_a_row_that_is_not_finite_fails_alone() -> None:
    model = tiny_model()
    expected = ids_of(NativeEngine(model).generate([[1, 2, 3], [7, 8, 9]], GREEDY))
    engine = NativeEngine(model)
    engine.generate([[1, 2]], GREEDY)
    sampled = {number for group in expected for ids in group for number in ids}
    absent = next(number for number in range(10, 97) if number not in sampled)
    prompts = [[1, 2, 3], [4, absent, 6], [7, 8, 9]]
    with torch.no_grad():
        model.get_input_embeddings().weight[absent] = float("nan")

    async def ask() -> list[Completion | BaseException]:
        requests = [engine.generate_one(Request(prompt, GREEDY)) for prompt in prompts]
        return await asyncio.gather(*requests, return_exceptions=True)

    first, broken, last = asyncio.run(ask())
    assert isinstance(broken, NonFiniteError)
    assert [[first.ids], [last.ids]] == expected  # type: ignore[union-attr]
    assert engine.in_flight == 0


@pytest.mark.parametrize("wrong", [97, -1, 10**9])
def test_an_id_that_the_model_lacks_is_the_error_of_its_request_alone(wrong: int) -> None:
    engine = NativeEngine(tiny_model())
    expected = engine.generate([[1, 2]], LONG)[0][0]

    async def ask() -> list[Completion | BaseException]:
        requests = [engine.generate_one(Request(prompt, LONG)) for prompt in ([1, 2], [1, wrong, 2])]
        return await asyncio.gather(*requests, return_exceptions=True)

    well, refused = asyncio.run(ask())
    assert well == expected
    assert isinstance(refused, ConfigError) and "token 1" in str(refused) and "0 to 96" in str(refused)
    for call in (lambda: engine.generate([[1], [wrong]], LONG), lambda: engine.prompt_scores([[1], [wrong]])):
        with pytest.raises(ConfigError, match="prompt 1, token 0"):
            call()


def test_a_step_that_fails_is_an_error_of_all_and_the_next_request_begins_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine, prompts = NativeEngine(tiny_model()), some_prompts(3)
    expected = ids_of(engine.generate(prompts, LONG))

    async def ask() -> list[Completion | BaseException]:
        requests = [engine.generate_one(Request(prompt, LONG)) for prompt in prompts]
        return await asyncio.gather(*requests, return_exceptions=True)

    def out_of_memory(**inputs: object) -> None:
        raise torch.OutOfMemoryError("no memory left")

    with monkeypatch.context() as patch:
        patch.setattr(engine._lm, "last_logits", out_of_memory)
        assert all(isinstance(answer, torch.OutOfMemoryError) for answer in asyncio.run(ask()))
    assert engine.in_flight == 0
    assert [[answer.ids] for answer in asyncio.run(ask())] == expected  # type: ignore[union-attr]


def test_requests_of_another_event_loop_are_refused() -> None:
    engine = NativeEngine(tiny_model())
    engine.generate([[1, 2]], LONG)

    async def ask() -> None:
        task = asyncio.create_task(engine.generate_one(Request([1, 2], LONG)))
        await turns(2)
        with pytest.raises(EngineError, match="another event loop"):
            await asyncio.to_thread(asyncio.run, engine.generate_one(Request([3, 4], LONG)))
        assert len((await task).ids) == 30

    asyncio.run(ask())


class OneStep:
    """Ends each request in its first step, during which somebody else may do something."""

    def __init__(self, meanwhile: Callable[[], None]):
        self.meanwhile = meanwhile
        self.requests: list[Request] = []

    def add(self, request: Request) -> None:
        self.requests.append(request)

    def step(self) -> list[tuple[Request, Completion]]:
        self.meanwhile()
        ended, self.requests = self.requests, []
        return [(request, Completion((5,), (-0.5,), FinishReason.LENGTH)) for request in ended]

    def remove(self, request: Request) -> Completion:
        self.requests.remove(request)
        return Completion((), (), FinishReason.ABORTED)


def test_an_abort_in_a_requests_last_step_is_not_of_the_next_time_that_it_is_asked_for() -> None:
    request, sampler = Request([1], LONG), OneStep(lambda: None)
    queue = RequestQueue(sampler)

    async def ask_twice() -> list[FinishReason]:
        sampler.meanwhile = lambda: queue.abort(request)
        first = await queue.complete(request)
        sampler.meanwhile = lambda: None
        return [first.finish, (await queue.complete(request)).finish]

    assert asyncio.run(ask_twice()) == [FinishReason.LENGTH, FinishReason.LENGTH]


def test_an_abort_while_another_is_carried_out_is_not_lost() -> None:
    """From any thread means at any moment: here while the queue takes the first of two out of the batch."""
    first, second = Request([1], LONG), Request([2], LONG)

    class Removing(OneStep):
        steps = 0

        def step(self) -> list[tuple[Request, Completion]]:
            self.steps += 1  # an abort that is lost shows: the request ends by itself, later
            return super().step() if self.steps == 9 else []

        def remove(self, request: Request) -> Completion:
            if request is first:
                queue.abort(second)
            return super().remove(request)

    queue = RequestQueue(Removing(lambda: None))

    async def ask() -> list[FinishReason]:
        tasks = [asyncio.create_task(queue.complete(request)) for request in (first, second)]
        await turns(1)
        queue.abort(first)
        return [(await task).finish for task in tasks]

    assert asyncio.run(ask()) == [FinishReason.ABORTED, FinishReason.ABORTED]


# ---------------------------------------------------------------- many, as a server has them


@pytest.mark.parametrize("settings", [{}, {"max_rows": 9, "cache_tokens": 700}], ids=str)
def test_sixty_four_requests_that_come_and_go_are_answered_as_if_each_were_alone(settings: dict[str, int]) -> None:
    """Each has its own seed, length and distribution; some are cancelled, some aborted, some fail at a token."""
    model, rng = tiny_model(), random.Random(3)
    engine, alone = NativeEngine(model, **settings), NativeEngine(model)
    prompts = some_prompts(64)
    samplings = [
        replace(
            LONG,
            seed=number,
            max_new_tokens=rng.randrange(1, 16),
            temperature=rng.choice([0.0, 0.7, 1.0]),
            top_k=rng.choice([None, 5]),
        )
        for number in range(64)
    ]
    expected = [alone.generate([p], s)[0][0].ids for p, s in zip(prompts, samplings, strict=True)]
    seen: list[list[int]] = [[] for _ in prompts]
    ways = [rng.choice(["whole", "whole", "whole", "cancelled", "aborted", "failed"]) for _ in prompts]
    ends = [rng.randrange(1, 9) for _ in prompts]

    async def ask(number: int) -> Completion:
        await turns(rng.randrange(24))
        request: Request
        task = asyncio.current_task()
        assert task is not None

        def take(token: SampledToken) -> None:
            seen[number].append(token.id)
            if len(seen[number]) == ends[number]:
                if ways[number] == "cancelled":
                    task.cancel()
                elif ways[number] == "aborted":
                    engine.abort(request)
                elif ways[number] == "failed":
                    raise BrokenPipeError

        request = Request(prompts[number], samplings[number], on_token=take)
        return await engine.generate_one(request)

    async def ask_all() -> list[Completion | BaseException]:
        return await asyncio.gather(*map(ask, range(64)), return_exceptions=True)

    for way, end, answer, ids, own in zip(ways, ends, asyncio.run(ask_all()), expected, seen, strict=True):
        assert tuple(own) == ids[: len(own)]
        if way == "whole" or len(ids) < end:
            assert isinstance(answer, Completion) and answer.ids == ids == tuple(own)
        elif way == "cancelled":
            assert isinstance(answer, asyncio.CancelledError) and len(own) == end
        elif way == "failed":
            assert isinstance(answer, EngineError) and len(own) == end
        elif len(ids) > end:
            assert isinstance(answer, Completion) and answer.finish is FinishReason.ABORTED and len(answer.ids) == end
    assert engine.in_flight == 0
    sampler: NativeStepSampler = engine._requests._sampler  # type: ignore[assignment]
    assert not sampler._rows and not sampler._requests and not sampler._waiting and sampler._decoder is None


def test_a_cancelled_row_is_out_of_the_batch_at_the_next_turn() -> None:
    engine = NativeEngine(tiny_model())
    engine.generate([[1, 2]], LONG)

    async def ask() -> None:
        tasks = [asyncio.create_task(engine.generate_one(Request(prompt, LONG))) for prompt in some_prompts(4)]
        await turns(5)
        before, rows = engine.stats.steps, engine._requests._sampler._decoder.rows  # type: ignore[attr-defined]
        assert len(rows) == 4
        tasks[1].cancel()
        tasks[2].cancel()
        await turns(1)
        assert len(rows) == engine.in_flight == 2 and engine.stats.steps <= before + 1
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(ask())


def test_the_queue_does_no_work_for_those_that_wait() -> None:
    """Thousands of them: what is looked at per step is the batch, and per request itself."""
    looked = 0

    class Counted(dict[Request, object]):
        def values(self):  # type: ignore[no-untyped-def]
            nonlocal looked
            looked += len(self)
            return super().values()

        def items(self):  # type: ignore[no-untyped-def]
            nonlocal looked
            looked += len(self)
            return super().items()

    queue = RequestQueue(OneStep(lambda: None))
    queue._futures = Counted()

    async def ask() -> None:
        await asyncio.gather(*(queue.complete(Request([1], LONG)) for _ in range(200)))

    asyncio.run(ask())
    assert looked == 0


# ---------------------------------------------------------------- weights that change meanwhile


def test_versions_say_which_weights_sampled_and_the_cache_is_of_the_newest() -> None:
    """An update after ten tokens: they stay, and what follows is what the new weights say of the whole sequence."""
    model, prompts = tiny_model(), some_prompts(3)
    engine = NativeEngine(model, policy_version=6)
    before = engine.generate(prompts, GREEDY)
    tokens = GREEDY.max_new_tokens

    async def ask() -> list[Completion]:
        tasks = [asyncio.create_task(engine.generate_one(Request(prompt, GREEDY))) for prompt in prompts]
        while engine.stats.steps != 10 or engine.in_flight < 3:
            await asyncio.sleep(0)
        with torch.no_grad():  # the keys and values, too, are others afterwards
            model.get_input_embeddings().weight.mul_(-1.5)
        engine.policy_version = 7
        late = asyncio.create_task(engine.generate_one(Request(prompts[0], GREEDY)))
        return await asyncio.gather(*tasks, late)

    *across, late = asyncio.run(ask())
    assert late.versions == Versions(7, 7)
    for prompt, old, answer in zip(prompts, before, across, strict=True):
        assert answer.versions == Versions(oldest=6, newest=7)
        kept = next(i for i in range(tokens + 1) if answer.ids[:i] != old[0].ids[:i]) - 1 if answer != old[0] else 0
        assert kept >= 10 and answer.ids[:10] == old[0].ids[:10]
        new = fresh_logprobs(model, prompt, answer.ids)[11:]
        assert new.argmax(dim=-1).tolist() == list(answer.ids[11:])
        taken = new.gather(1, torch.tensor(answer.ids[11:])[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(answer.logprobs[11:]), taken, atol=1e-5, rtol=0)
