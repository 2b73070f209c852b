"""What a trainer asks of a real vLLM server: weights and their proof, changes in mid-flight, refusals, its death."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.data.trees import collate
from posttrain.errors import ConfigError, EngineError, ServerLostError, WeightSyncError
from posttrain.models.tree.logprobs import Policy
from posttrain.rollout.engine import Completion, FinishReason, Request, Versions
from posttrain.rollout.native import NativeEngine
from posttrain.rollout.turns import completion_tree
from posttrain.rollout.vllm_launch import LaunchedServers
from posttrain.rollout.vllm_pool import ServerPool
from posttrain.rollout.vllm_served import ServedEngine
from posttrain.rollout.weight_sync import WeightSync, sample_probe
from posttrain.sampling import SamplingDistribution
from posttrain.types import RowRef, Wants
from tests.vllm.conftest import served_model

PROMPT = [1, 5, 9, 33, 17]
PLAIN = SamplingDistribution(temperature=0.7, max_new_tokens=24, stop_ids=frozenset({3}), seed=4)
LONG = replace(PLAIN, max_new_tokens=400, stop_ids=frozenset())


@contextmanager
def moved(model: Any, scale: float = 0.02, seed: int = 1) -> Iterator[None]:
    """The model with every weight changed; as it was afterwards."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    try:
        yield
    finally:
        model.load_state_dict(before)


def gap_to_trainer(model: Any, completions: list[Completion], last: int | None = None) -> float:
    """Nats by which the engine's log-probs of what it sampled, or of its end, differ from the trainer's at most."""
    tree = completion_tree(PROMPT, completions, RowRef("rollout", 0))
    with torch.no_grad():
        trainer_N = Policy(model)(collate([tree]), Wants(temperature=0.7)).logprobs_N
    sampler_N = torch.tensor([value for completion in completions for value in completion.logprobs])
    return float((trainer_N - sampler_N)[-(last or 0) :].abs().max())


# ---------------------------------------------------------------- weights


def test_weights_arrive_and_a_probe_proves_it(served: ServedEngine, model: Any) -> None:
    policy = Policy(model)
    sync = WeightSync(served, policy, sample_probe(NativeEngine(model), PROMPT))
    first = sync.start(0)
    with moved(model):
        second = sync.sync(1)
        (group,) = served.generate([PROMPT], PLAIN, completions_per_prompt=4)
        sampled = gap_to_trainer(model, group)
    print(f"\nsync gap {first.gap:.1e}, after an update {second.gap:.1e} nats; sampled log-probs {sampled:.1e} at most")
    assert max(first.gap, second.gap, sampled) < 1e-4
    assert second.trainer_moved > 0.01 and second.engine_moved == pytest.approx(second.trainer_moved, abs=1e-3)


def test_a_sync_that_does_nothing_is_caught(served: ServedEngine, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sync = WeightSync(served, Policy(model), sample_probe(NativeEngine(model), PROMPT))
    sync(0)
    monkeypatch.setattr(served, "load_weights", lambda *_: None)
    with moved(model), pytest.raises(WeightSyncError, match="other weights"):
        sync(1)


def test_weights_of_another_run_are_noticed(served: ServedEngine, servers: LaunchedServers, model: Any) -> None:
    other = ServedEngine(servers.urls[0], patience=5.0)
    with moved(model):
        other.update_weights(model, 0)
    other.close()
    with pytest.raises(EngineError, match="or got others") as refused:
        served.generate([PROMPT], PLAIN)
    assert not isinstance(refused.value, ServerLostError)  # asking elsewhere would not help
    served.update_weights(model, 1)
    assert gap_to_trainer(model, served.generate([PROMPT], PLAIN)[0]) < 1e-4


@pytest.mark.parametrize("level", [1, 2])
def test_sleep_and_wake(served: ServedEngine, model: Any, level: int) -> None:
    """The CPU build has no sleep mode: it takes the request, stops sampling, and frees nothing."""
    expected = [completion.ids for completion in served.generate([PROMPT], PLAIN, completions_per_prompt=4)[0]]
    served.sleep(level)
    with pytest.raises(EngineError, match="sleeps"):
        served.generate([PROMPT], PLAIN)
    if level == 1:
        served.wake()
    else:
        served.update_weights(model, 1)
    assert [own.ids for own in served.generate([PROMPT], PLAIN, completions_per_prompt=4)[0]] == expected


# ---------------------------------------------------------------- in mid-flight


@pytest.mark.parametrize("mode", ["wait", "keep", "recompute"])
def test_weights_change_while_requests_are_in_flight(served: ServedEngine, model: Any, mode: Any) -> None:
    async def ask() -> tuple[list[Completion], Completion]:
        tasks = [asyncio.create_task(served.generate_one(Request(PROMPT, LONG, number))) for number in range(48)]
        while served.in_flight < 48:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        await asyncio.to_thread(served.update_weights, model, 1, mode)
        late = await served.generate_one(Request(PROMPT, LONG, 99))
        return await asyncio.gather(*tasks), late

    with moved(model):
        answers, late = asyncio.run(ask())
        fresh = gap_to_trainer(model, [late])
        crossing = [answer for answer in answers if answer.versions == Versions(0, 1)]
        mixed = gap_to_trainer(model, crossing[:1]) if crossing else 0.0
        # The last tokens came after the update; what they saw of those before was computed anew, or was not.
        tail = max((gap_to_trainer(model, [own], last=20) for own in crossing), default=0.0)
    print(
        f"\n{mode}: {len(crossing)} of {len(answers)} crossed the update; nats from the trainer: after it {fresh:.1e}, "
        f"of those that crossed {mixed:.1e}, of their last tokens {tail:.1e}"
    )
    assert {len(answer.ids) for answer in answers} == {LONG.max_new_tokens}
    assert {answer.versions for answer in answers} <= {Versions(0, 0), Versions(0, 1), Versions(1, 1)}
    # What comes after the update is of the new weights alone, although its prompt was cached under the old ones.
    assert late.versions == Versions(1, 1) and fresh < 1e-3
    if mode == "wait":
        assert {answer.versions for answer in answers} <= {Versions(0, 0), Versions(0, 1)}
    else:
        assert crossing and mixed > 0.01  # it began under other weights
        assert tail < 1e-3 if mode == "recompute" else tail > 1e-3


def test_pause_holds_what_is_in_flight(served: ServedEngine) -> None:
    async def ask() -> list[Completion]:
        tasks = [asyncio.create_task(served.generate_one(Request(PROMPT, LONG, number))) for number in range(8)]
        await asyncio.sleep(0.3)
        await asyncio.to_thread(served.pause)
        ended = sum(task.done() for task in tasks)
        await asyncio.sleep(1.0)
        assert sum(task.done() for task in tasks) <= ended + 1  # one may have been on its way
        await asyncio.to_thread(served.resume)
        return await asyncio.gather(*tasks)

    assert {len(answer.ids) for answer in asyncio.run(ask())} == {LONG.max_new_tokens}


def test_an_abort_gives_back_what_was_sampled(served: ServedEngine) -> None:
    longest = replace(LONG, max_new_tokens=500)

    async def ask() -> list[Completion]:
        tasks = [asyncio.create_task(served.generate_one(Request(PROMPT, longest, number))) for number in range(4)]
        await asyncio.sleep(0.3)
        await asyncio.to_thread(served.abort)
        return await asyncio.gather(*tasks)

    answers = asyncio.run(ask())
    assert {answer.finish for answer in answers} == {FinishReason.ABORTED}
    assert all(len(answer.ids) == len(answer.logprobs) < 500 for answer in answers)


# ---------------------------------------------------------------- refusals


def test_another_name_is_refused(servers: LaunchedServers) -> None:
    with pytest.raises(ConfigError, match="serves another model"):
        ServedEngine(servers.urls[0], served_name="other").generate([PROMPT], PLAIN)


def test_the_server_s_own_words_reach_the_user(served: ServedEngine) -> None:
    with pytest.raises(ConfigError, match="refuses the request") as refused:
        served.generate([[1] * 600], PLAIN)
    assert "maximum context length" in str(refused.value)
    with pytest.raises(ConfigError, match="refuses the request"):
        served.generate([[100_000]], PLAIN)


# ---------------------------------------------------------------- its death


def test_a_server_that_is_killed_comes_back_with_its_weights(servers: LaunchedServers, model: Any) -> None:
    """What it had is asked again, and nothing comes of the weights that it was started with."""
    lines: list[str] = []
    pool = ServerPool([ServedEngine(servers.urls[0], patience=1.0)], revive=servers.revive, say=lines.append)
    servers.watch(pool)
    with moved(model):
        sync = WeightSync(pool, Policy(model), sample_probe(NativeEngine(model), PROMPT), score_each=pool.score_each)
        pool.prove_with(sync.prove)
        sync(3)
        (pid,) = servers.pids
        assert pid is not None
        threading.Timer(0.4, os.killpg, (pid, signal.SIGKILL)).start()
        groups = pool.generate([PROMPT] * 12, LONG, completions_per_prompt=8)
        gap = gap_to_trainer(model, groups[0][:2])
    assert [len(own.ids) for group in groups for own in group] == [LONG.max_new_tokens] * 96
    assert {own.versions for group in groups for own in group} == {Versions(3, 3)} and gap < 1e-3
    assert pool.counts.restarts == 1 and pool.counts.asked_again >= 1
    assert "is lost" in lines[0] and "is back" in lines[-1]
    assert Path(servers.logs[0]).read_text().count("--- server 0, start") == 2
    pool.close()


def test_a_model_of_another_size_is_refused(servers: LaunchedServers, model: Any) -> None:
    """The last test here: vLLM does not recover from weights that it could not read, and has to be started again."""
    engine = ServedEngine(servers.urls[0], patience=5.0)
    with pytest.raises(EngineError, match="the engine failed") as failed:
        engine.update_weights(served_model(hidden_size=32, head_dim=16), 1)
    assert "restart it" in str(failed.value)
    with pytest.raises(EngineError, match="did not take the weights of policy version 1"):
        engine.generate([PROMPT], PLAIN)
    engine.close()
