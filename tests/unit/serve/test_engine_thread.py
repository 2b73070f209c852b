"""The queue before the engines: who joins, who leaves, and who is told to come back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from posttrain.rollout.engine import Completion
from posttrain.sampling import SamplingDistribution
from posttrain.serve.engine_thread import EngineThread, Event, Row
from posttrain.serve.metrics import Meter
from posttrain.serve.refusals import RequestRefused
from tests.unit.serve.kit import ScriptedEngine, encoder_of

SAMPLING = SamplingDistribution(max_new_tokens=50)


def engine(*answers: str) -> ScriptedEngine:
    return ScriptedEngine(encoder_of(), answers)


def rows(of: ScriptedEngine, count: int = 1) -> list[Row]:
    return [Row(of, (5, 6), SAMPLING, completion=index) for index in range(count)]


@asynccontextmanager
async def running(max_rows: int = 2, max_waiting: int = 2) -> Any:
    thread = EngineThread(max_rows, max_waiting)
    thread.start()
    try:
        yield thread
    finally:
        await thread.close()


async def events(thread: EngineThread, asked: Sequence[Row]) -> list[Event]:
    found: list[Event] = []
    async with thread.submit(asked) as job:
        async for batch in job:
            found += batch
    return found


async def until(condition: Any) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never came to that")


def test_tokens_come_in_order_and_the_end_comes_last() -> None:
    async def main() -> None:
        async with running() as thread:
            found = await events(thread, rows(engine("one", "two"), 2))
            for row, text in enumerate(("one", "two")):
                own = [event for event in found if event.row == row]
                ids = [event.token.id for event in own[:-1] if event.token is not None]
                assert isinstance(own[-1].ended, Completion) and list(own[-1].ended.ids) == ids
                assert ids[:-1] == encoder_of().tokens.ids(text)
            meter = thread.meter
            assert (meter.running, meter.waiting, meter.sampled_tokens, meter.prompt_tokens) == (0, 0, 8, 4)
            assert meter.finishes == {"stop_token": 2} and meter.rate() > 0

    asyncio.run(main())


def test_who_leaves_is_out_of_the_batch() -> None:
    async def main() -> None:
        async with running() as thread:
            held = engine("a long answer")
            held.held = True
            async with thread.submit(rows(held, 2)):
                await until(lambda: held.in_flight == 2)
                assert (thread.meter.waiting, thread.meter.running) == (2, 0)
            await until(lambda: held.in_flight == 0)
            assert thread.meter.finishes == {"cancelled": 2} and thread.meter.waiting == 0
            # Its room is free again.
            assert await events(thread, rows(engine("x"), 4))

    asyncio.run(main())


def test_a_full_queue_says_when_to_come_back() -> None:
    async def main() -> None:
        async with running() as thread:
            held = engine("a long answer")
            held.held = True
            async with thread.submit(rows(held, 3)):
                with pytest.raises(RequestRefused, match="the queue is full") as told:
                    thread.submit(rows(held, 2))
                assert told.value.status == 429 and 1 <= int(told.value.headers["Retry-After"]) <= 60
                assert told.value.headers["Retry-After"] == "1", "nothing is known of its speed yet"
                # 10 tokens/s for two seconds, whatever was before; 150 tokens to come, of which a row is 50.
                thread.meter.busy_since -= 2
                thread.meter.count_tokens(20)
                with pytest.raises(RequestRefused) as told:
                    thread.submit(rows(held, 2))
                assert told.value.headers["Retry-After"] in ("5", "6")
                with pytest.raises(RequestRefused, match="more completions than the queue holds") as told:
                    thread.submit(rows(held, 5))
                assert told.value.status == 400
                held.held = False
            await until(lambda: held.in_flight == 0)

    asyncio.run(main())


def test_idle_seconds_slow_no_queue() -> None:
    """A small request, nine idle seconds, and then a hundred tokens in one: 100 tokens/s, not 10."""
    meter = Meter()
    now = time.monotonic()
    meter._recent.extend([(now - 9.5, 5), (now - 0.5, 50), (now - 0.2, 50)])
    meter._in_span = 105
    meter.busy_since = now - 1
    assert meter.busy_rate() == pytest.approx(100, rel=0.1)
    assert meter.rate() == pytest.approx(105 / 9.5, rel=0.1)


def test_a_row_that_fails_ends_alone() -> None:
    async def main() -> None:
        async with running() as thread:
            broken, whole = engine("x"), engine("y")
            broken.failure = RuntimeError("broken")
            found = await asyncio.gather(events(thread, rows(broken)), events(thread, rows(whole)))
            assert [str(event.ended) for event in found[0]] == ["broken"]
            assert isinstance(found[1][-1].ended, Completion)

    asyncio.run(main())


def test_calls_run_in_the_engines_thread_and_raise_where_they_were_asked_for() -> None:
    async def main() -> None:
        async with running(1, 0) as thread:
            import threading

            names = await thread.call(lambda: threading.current_thread().name)
            assert names == "posttrain-engine"
            with pytest.raises(ZeroDivisionError):
                await thread.call(lambda: 1 // 0)
            assert await thread.call(lambda: 3) == 3, "the room of one that failed is free"

    asyncio.run(main())


def test_a_server_that_ends_takes_nothing_new_and_ends_what_runs() -> None:
    async def main() -> None:
        async with running() as thread:
            held = engine("a long answer")
            held.held = True
            task = asyncio.create_task(events(thread, rows(held)))
            await until(lambda: held.in_flight == 1)
            thread.refuse_new()
            with pytest.raises(RequestRefused, match="the server is ending") as told:
                thread.submit(rows(held))
            assert told.value.status == 503
            thread.abort()
            ended = (await task)[-1].ended
            assert isinstance(ended, Completion) and str(ended.finish) == "aborted"

    asyncio.run(main())
