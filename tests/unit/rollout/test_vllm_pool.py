"""Several servers as one engine: who is asked, what a lost server's requests become, and how it comes back."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.errors import ConfigError, EngineError, WeightSyncError
from posttrain.models.tree.logprobs import Policy
from posttrain.rollout.engine import Completion, FinishReason, Request, Versions
from posttrain.rollout.vllm_pool import ServerPool
from posttrain.rollout.vllm_served import ServedEngine
from posttrain.rollout.vllm_weights import SharedLook
from posttrain.rollout.weight_sync import Probe, WeightSync
from posttrain.sampling import SamplingDistribution
from tests.fake_vllm import FakeServer
from tests.fixtures import tiny_model

PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9], [2, 2]]
PLAIN = SamplingDistribution(temperature=0.7, max_new_tokens=6, stop_ids=frozenset({3, 5, 7}), seed=4)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model(max_position_embeddings=64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model: Any) -> Path:
    path = tmp_path_factory.mktemp("pool")
    model.save_pretrained(path)
    return path


@pytest.fixture
def servers(folder: Path) -> Iterator[list[FakeServer]]:
    with FakeServer(folder) as first, FakeServer(folder) as second:
        yield [first, second]


def pool_of(servers: list[FakeServer], folder: Path, **options: Any) -> ServerPool:
    engines = [ServedEngine(server.url, patience=0.2, timeout=30.0) for server in servers]
    return ServerPool(engines, **{"folder": folder / "weights", "patience": 5.0, **options})


def asked(server: FakeServer) -> int:
    return len(server.bodies("/v1/completions"))


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def answers_of(pool: ServerPool, requests: list[Request]) -> list[Completion]:
    async def ask() -> list[Completion]:
        return await asyncio.gather(*map(pool.generate_one, requests))

    return asyncio.run(ask())


def test_requests_go_to_the_server_with_the_fewest(servers: list[FakeServer], tmp_path: Path) -> None:
    pool = pool_of(servers, tmp_path)
    expected = ServedEngine(servers[0].url).generate(PROMPTS, PLAIN)
    go_on, waiting = threading.Event(), threading.Semaphore(0)

    def hold() -> None:
        waiting.release()
        assert go_on.wait(20)

    for server in servers:
        pool._members.all[servers.index(server)].engine.score([1], [2])  # its name and its proof, out of the way
        server.on_completion = hold
    before = [asked(server) for server in servers]

    async def ask() -> list[Completion]:
        tasks = [asyncio.create_task(pool.generate_one(Request(prompt, PLAIN))) for prompt in PROMPTS]
        for _ in PROMPTS:
            await asyncio.to_thread(waiting.acquire)
        assert [asked(server) - had for server, had in zip(servers, before, strict=True)] == [2, 2]
        go_on.set()
        return await asyncio.gather(*tasks)

    assert [answer.ids for answer in asyncio.run(ask())] == [group[0].ids for group in expected]
    assert [member.load for member in pool._members.all] == [0, 0]


def test_a_batch_is_shared_and_its_seeds_are_those_of_one_server(servers: list[FakeServer], tmp_path: Path) -> None:
    prompts = [*PROMPTS, PROMPTS[0]]  # an equal prompt is drawn apart, whichever server has it
    expected = ServedEngine(servers[0].url).generate(prompts, PLAIN, completions_per_prompt=3)
    before = [asked(server) for server in servers]
    got = pool_of(servers, tmp_path).generate(prompts, PLAIN, completions_per_prompt=3)
    assert [[own.ids for own in group] for group in got] == [[own.ids for own in group] for group in expected]
    assert all(asked(server) > had for server, had in zip(servers, before, strict=True))


def test_weights_are_written_once_and_reach_every_server(servers: list[FakeServer], tmp_path: Path) -> None:
    pool, other = pool_of(servers, tmp_path), tiny_model(max_position_embeddings=64, seed=3)
    pool.update_weights(other, 5)
    paths = {server.bodies("/collective_rpc")[-1]["kwargs"]["weights_path"] for server in servers}
    assert len(paths) == 1 and pool.policy_version == 5
    for server in servers:
        for name, value in other.state_dict().items():
            assert torch.equal(server.engine.model.state_dict()[name], value), name
    assert {own.versions for group in pool.generate(PROMPTS, PLAIN) for own in group} == {Versions(5, 5)}
    pool.close()
    assert not list((tmp_path / "weights").iterdir())


def test_every_server_is_proven(servers: list[FakeServer], tmp_path: Path, model: Any) -> None:
    pool, policy = pool_of(servers, tmp_path), Policy(tiny_model(max_position_embeddings=64))
    sync = WeightSync(pool, policy, Probe((1, 2, 3), (9, 8, 7)), score_each=pool.score_each)
    sync(0)
    servers[1].engine.noop_sync = True  # one of two keeps its weights
    with torch.no_grad():
        policy.model.get_input_embeddings().weight.add_(0.1)
    with pytest.raises(WeightSyncError, match="other weights") as stopped:
        sync(1)
    assert "policy version 1, server 1" in str(stopped.value)


def test_what_a_lost_server_had_is_asked_of_the_others(
    servers: list[FakeServer], folder: Path, tmp_path: Path, model: Any
) -> None:
    lines: list[str] = []
    back = threading.Event()
    third = FakeServer(folder)

    def revive(index: int, why: str) -> str:
        assert index == 0 and "cannot be reached" in why
        assert back.wait(20)
        third.__enter__()
        return third.url

    pool = pool_of(servers, tmp_path, revive=revive, say=lines.append)
    pool.update_weights(tiny_model(max_position_embeddings=64, seed=3), 4)
    expected = [[own.ids for own in group] for group in pool.generate(PROMPTS * 3, PLAIN)]
    servers[0].dies_after = 1
    groups = pool.generate(PROMPTS * 3, PLAIN)
    assert [[own.ids for own in group] for group in groups] == expected
    assert pool.counts.ready == 1 and pool.counts.asked_again >= 1 and pool.counts.restarts == 0
    # One request at a time, too; and weights that come meanwhile are those that the lost one gets.
    pool.update_weights(model, 5)
    assert [answer.versions for answer in answers_of(pool, [Request(PROMPTS[0], PLAIN)])] == [Versions(5, 5)]
    back.set()
    until(lambda: pool.counts.ready == 2)
    for name, value in model.state_dict().items():
        assert torch.equal(third.engine.model.state_dict()[name], value), name
    assert pool.counts.restarts == 1 and "server 0" in lines[0] and "policy version 5" in lines[-1]
    before = asked(third)
    assert {own.versions for group in pool.generate(PROMPTS * 3, PLAIN) for own in group} == {Versions(5, 5)}
    assert asked(third) > before
    pool.close()
    third.stop()


def test_a_server_that_somebody_restarts_is_waited_for_and_given_its_weights(folder: Path, tmp_path: Path) -> None:
    """As with `urls`: at the same address, with the weights that it was started with."""
    first = FakeServer(folder).__enter__()
    pool = pool_of([first], tmp_path)
    pool.update_weights(tiny_model(max_position_embeddings=64, seed=3), 4)
    expected = [[own.ids for own in group] for group in pool.generate(PROMPTS, PLAIN)]
    first.stop()
    again = FakeServer(folder, port=first.port)
    timer = threading.Timer(0.5, again.__enter__)
    timer.start()
    groups = pool.generate(PROMPTS, PLAIN)
    timer.join()
    assert [[own.ids for own in group] for group in groups] == expected
    assert pool.counts.restarts == 1
    pool.close()
    again.stop()


def test_a_server_that_was_restarted_unseen_is_lost_too(servers: list[FakeServer], tmp_path: Path) -> None:
    pool = pool_of(servers, tmp_path)
    pool.update_weights(tiny_model(max_position_embeddings=64, seed=3), 4)
    expected = [[own.ids for own in group] for group in pool.generate(PROMPTS, PLAIN)]
    servers[0].engine.label = "default"  # what a new vLLM says
    servers[0].engine.model.load_state_dict(tiny_model(max_position_embeddings=64).state_dict())
    groups = pool.generate(PROMPTS, PLAIN)
    assert [[own.ids for own in group] for group in groups] == expected
    until(lambda: pool.counts.restarts == 1)
    pool.close()


def test_a_server_that_comes_back_with_other_weights_ends_the_pool(
    servers: list[FakeServer], folder: Path, tmp_path: Path
) -> None:
    liar = FakeServer(folder)
    liar.engine.noop_sync = True

    def revive(index: int, why: str) -> str:
        liar.__enter__()
        return liar.url

    pool = pool_of(servers[:1], tmp_path, revive=revive)
    policy = Policy(tiny_model(max_position_embeddings=64, seed=3))
    sync = WeightSync(pool, policy, Probe((1, 2, 3), (9, 8, 7)), score_each=pool.score_each)
    pool.prove_with(sync.prove)
    sync(0)
    servers[0].dies_after = 0
    with pytest.raises(EngineError, match="does not come back") as ended:
        pool.generate(PROMPTS, PLAIN)
    assert "other weights than the trainer's" in str(ended.value)
    pool.close()
    liar.stop()


def test_lost_servers_that_stay_away_end_everything_that_waits(servers: list[FakeServer], tmp_path: Path) -> None:
    pool = pool_of(servers, tmp_path, patience=0.5)
    pool.generate(PROMPTS, PLAIN)
    for server in servers:
        server.stop()
    began = time.monotonic()
    with pytest.raises(EngineError, match="it did not answer for"):
        pool.generate(PROMPTS, PLAIN)
    with pytest.raises(EngineError, match="does not come back"):
        answers_of(pool, [Request(PROMPTS[0], PLAIN)])
    with pytest.raises(EngineError, match="does not come back"):
        pool.update_weights(tiny_model(max_position_embeddings=64), 1)
    assert time.monotonic() - began < 10


def test_a_bug_in_the_revival_is_no_silence(servers: list[FakeServer], tmp_path: Path) -> None:
    def revive(index: int, why: str) -> str:
        raise ZeroDivisionError("a bug")

    pool = pool_of(servers[:1], tmp_path, revive=revive)
    servers[0].dies_after = 0
    with pytest.raises(EngineError, match="ZeroDivisionError"):
        pool.generate(PROMPTS, PLAIN)


def test_an_error_of_a_request_is_no_loss(servers: list[FakeServer], tmp_path: Path) -> None:
    pool = pool_of(servers, tmp_path)
    with pytest.raises(ConfigError, match="maximum context length"):
        pool.generate([[1] * 64], PLAIN)
    servers[0].mangle = servers[1].mangle = lambda answer: {"choices": []}
    with pytest.raises(EngineError, match="no completions"):
        pool.generate(PROMPTS, PLAIN)
    assert (pool.counts.ready, pool.counts.asked_again) == (2, 0)


def test_a_request_that_waits_for_a_server_can_be_aborted(servers: list[FakeServer], tmp_path: Path) -> None:
    forever = threading.Event()

    def revive(index: int, why: str) -> str:
        forever.wait(30)
        raise EngineError("gone", remedy="none")

    pool = pool_of(servers[:1], tmp_path, revive=revive)
    pool.lose(0, "planted")

    async def ask() -> Completion:
        request = Request(PROMPTS[0], PLAIN)
        task = asyncio.create_task(pool.generate_one(request))
        await asyncio.sleep(0.2)
        assert pool.in_flight == 1 and not task.done()
        pool.abort(request)
        return await task

    assert asyncio.run(ask()).finish is FinishReason.ABORTED and pool.in_flight == 0
    forever.set()


def test_a_closed_pool_says_so(servers: list[FakeServer], tmp_path: Path) -> None:
    pool = pool_of(servers, tmp_path)
    pool.close()
    with pytest.raises(EngineError, match="is closed"):
        pool.generate(PROMPTS, PLAIN)


# ---------------------------------------------------------------- weights in mid-flight


@pytest.mark.parametrize(
    ("mode", "pause", "reset"),
    [
        ("wait", {"mode": ["wait"]}, {}),
        ("keep", {"mode": ["keep"], "clear_cache": ["false"]}, {}),
        ("recompute", {"mode": ["keep"]}, {"reset_running_requests": ["true"]}),
    ],
)
def test_what_a_push_asks_of_requests_in_flight(
    servers: list[FakeServer], tmp_path: Path, model: Any, mode: Any, pause: Any, reset: Any
) -> None:
    engine = ServedEngine(servers[0].url, folder=tmp_path)
    engine.update_weights(model, 1, mode)
    assert servers[0].queries("/pause")[-1] == pause and servers[0].queries("/reset_prefix_cache")[-1] == reset
    engine.close()


def test_a_cache_that_is_kept_is_an_error_unless_its_salt_is_old(
    servers: list[FakeServer], tmp_path: Path, model: Any
) -> None:
    """vLLM answers 200 and `success: false` where a request holds a part of the cache."""
    engine = ServedEngine(servers[0].url, folder=tmp_path)
    servers[0].keeps_cache = True
    with pytest.raises(EngineError, match="kept what it had cached"):
        engine.update_weights(model, 1)
    assert [path for path, _ in servers[0].requests[-2:]] == ["/pause", "/resume"]  # nothing is held for ever
    with pytest.raises(EngineError, match="did not take the weights"):
        engine.generate(PROMPTS, PLAIN)
    engine.update_weights(model, 2, "keep")
    engine.generate(PROMPTS[:1], PLAIN)
    first = servers[0].bodies("/v1/completions")[-1]["cache_salt"]
    engine.update_weights(model, 3, "keep")
    engine.generate(PROMPTS[:1], PLAIN)
    assert first != servers[0].bodies("/v1/completions")[-1]["cache_salt"]
    engine.close()


def test_one_look_serves_all_who_asked_before_it_began() -> None:
    looks, go_on, begun = [], threading.Event(), threading.Event()
    shared = SharedLook()

    def look() -> None:
        looks.append(1)
        begun.set()
        assert go_on.wait(10)

    threads = [threading.Thread(target=shared, args=(look,)) for _ in range(8)]
    threads[0].start()
    assert begun.wait(10)
    for thread in threads[1:]:  # they ask while the first look is under way: it may be too old for them
        thread.start()
    time.sleep(0.1)
    go_on.set()
    for thread in threads:
        thread.join()
    assert len(looks) == 2


def test_a_look_that_fails_is_everybody_s_error() -> None:
    shared = SharedLook()

    def look() -> None:
        raise EngineError("changed", remedy="none")

    for _ in range(3):
        with pytest.raises(EngineError):
            shared(look)


def test_a_tied_head_that_a_server_packed_is_written_apart(tmp_path: Path) -> None:
    """vLLM 0.32 on a CPU packs the head once: of a tied pair, only a head of its own is packed again."""
    tied = tiny_model(max_position_embeddings=64, tie_word_embeddings=True)
    policy = Policy(tied)
    from posttrain.rollout.weight_folder import write_whole

    for untied in (False, True):
        write_whole(tied, tmp_path / str(untied), untied=untied)
        with FakeServer(tmp_path / str(untied)) as server:
            server.engine.packs_tied_head = True
            pool = ServerPool([ServedEngine(server.url, patience=1.0)], folder=tmp_path / "w", untied=untied)
            sync = WeightSync(pool, policy, Probe((1, 2, 3), (9, 8, 7)), score_each=pool.score_each)
            sync(0)
            before = tied.get_input_embeddings().weight.detach().clone()
            with torch.no_grad():
                tied.get_input_embeddings().weight.mul_(1.3)
            if untied:
                assert sync(1) < 1e-5
            else:
                with pytest.raises(WeightSyncError):
                    sync(1)
            with torch.no_grad():
                tied.get_input_embeddings().weight.copy_(before)
            pool.close()
    assert tied.config.tie_word_embeddings and tied.get_output_embeddings().weight is tied.get_input_embeddings().weight


def test_sampling_is_the_same_from_either_server(servers: list[FakeServer], tmp_path: Path) -> None:
    warm = replace(PLAIN, temperature=1.3, top_k=8)
    one, two = (ServedEngine(server.url).generate(PROMPTS, warm, completions_per_prompt=2) for server in servers)
    assert one == two == pool_of(servers, tmp_path).generate(PROMPTS, warm, completions_per_prompt=2)
