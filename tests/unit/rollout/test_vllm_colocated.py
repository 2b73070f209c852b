"""Requests one by one on vLLM in the trainer's process (a fake module): what is refused while they are in flight."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import ConfigError, EngineError
from posttrain.rollout.engine import Completion, FinishReason, Request
from posttrain.rollout.vllm_colocated import ColocatedEngine
from posttrain.sampling import SamplingDistribution
from tests.fake_vllm import fake_module
from tests.fixtures import tiny_model

PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
LONG = SamplingDistribution(temperature=0.7, max_new_tokens=20, seed=4)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model(max_position_embeddings=64)


@pytest.fixture
def engine(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ColocatedEngine]:
    model.save_pretrained(tmp_path / "start")
    monkeypatch.setitem(sys.modules, "vllm", fake_module())
    yield ColocatedEngine(tmp_path / "start", folder=tmp_path / "weights", policy_version=4)


def test_requests_in_flight_refuse_a_batch_other_weights_and_sleep(engine: ColocatedEngine, model: Any) -> None:
    """vLLM's own loop would take a request's outputs for a prompt of its batch, and keep keys and values of the old
    weights."""
    refused: list[Callable[[], Any]] = [
        lambda: engine.generate(PROMPTS, LONG),
        lambda: engine.score([1, 2], [3]),
        lambda: engine.update_weights(model, 5),
        engine.sleep,
    ]

    async def ask() -> Completion:
        task = asyncio.create_task(engine.generate_one(Request(PROMPTS[0], LONG)))
        for _ in range(3):
            await asyncio.sleep(0)
        for call in refused:
            with pytest.raises(EngineError, match="while requests are in flight"):
                call()
        return await task

    completion = asyncio.run(ask())
    assert len(completion.ids) == 20 and completion.versions == (4, 4)
    for call in refused:
        call()


def test_an_aborted_request_gives_back_what_it_had(engine: ColocatedEngine) -> None:
    whole = engine.generate(PROMPTS[:1], LONG)[0][0]
    request = Request(PROMPTS[0], LONG)

    async def ask() -> Completion:
        task = asyncio.create_task(engine.generate_one(request))
        for _ in range(6):
            await asyncio.sleep(0)
        engine.abort(request)
        return await task

    aborted = asyncio.run(ask())
    assert aborted.finish is FinishReason.ABORTED and aborted.versions == (4, 4)
    assert 3 <= len(aborted.ids) < 20 and aborted.ids == whole.ids[: len(aborted.ids)]
    assert not engine._llm.llm_engine.running


def test_one_bad_output_is_the_error_of_its_request_alone(
    engine: ColocatedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [group[0].ids for group in engine.generate(PROMPTS, LONG)]
    step = engine._llm.llm_engine.step

    def spoiled() -> list[Any]:
        outputs: list[Any] = step()
        for output in outputs:
            if output.prompt_token_ids == PROMPTS[1]:
                output.outputs[0].finish_reason = "a bug" if output.finished else None
        return outputs

    monkeypatch.setattr(engine._llm.llm_engine, "step", spoiled)

    async def ask() -> list[Completion | BaseException]:
        requests = [engine.generate_one(Request(prompt, LONG)) for prompt in PROMPTS]
        return await asyncio.gather(*requests, return_exceptions=True)

    first, bad, last = asyncio.run(ask())
    assert isinstance(bad, EngineError) and "unknown reason" in str(bad)
    assert [first.ids, last.ids] == [expected[0], expected[2]]  # type: ignore[union-attr]
    assert engine.in_flight == 0


def test_an_engine_that_sleeps_refuses_a_request(engine: ColocatedEngine) -> None:
    engine.sleep()
    with pytest.raises(EngineError, match="it sleeps"):
        asyncio.run(engine.generate_one(Request(PROMPTS[0], LONG)))
    engine.wake()
    assert len(asyncio.run(engine.generate_one(Request(PROMPTS[0], LONG))).ids) == 20


def test_text_is_made_for_stop_strings_alone_and_not_without_a_tokenizer(
    engine: ColocatedEngine, model: Any, tmp_path: Path
) -> None:
    stopping = replace(LONG, stop=("x",))
    asked: list[bool] = []
    parameters = engine._parameters
    engine._parameters = lambda **fields: asked.append(fields["detokenize"]) or parameters(**fields)
    engine.generate(PROMPTS, LONG)
    engine.generate(PROMPTS, stopping)
    assert asked == [False] * 3 + [True] * 3
    bare = ColocatedEngine(tmp_path / "start", folder=tmp_path / "weights", skip_tokenizer_init=True)
    for refused in (
        lambda: bare.generate(PROMPTS, stopping),
        lambda: asyncio.run(bare.generate_one(Request(PROMPTS[0], stopping))),
    ):
        with pytest.raises(ConfigError, match="started without one"):
            refused()
    assert len(bare.generate(PROMPTS, LONG)) == 3


def test_an_abort_before_the_first_token_has_no_alternatives(engine: ColocatedEngine) -> None:
    request = Request(PROMPTS[0], replace(LONG, temperature=1.0), alternatives=3)

    async def ask() -> Completion:
        task = asyncio.create_task(engine.generate_one(request))
        await asyncio.sleep(0)
        engine.abort(request)
        return await task

    aborted = asyncio.run(ask())
    assert (aborted.ids, aborted.alternatives, aborted.finish) == ((), (), FinishReason.ABORTED)
