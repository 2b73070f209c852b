"""The rate by which waits are told: of the time in which the server works, and of nothing else."""

from __future__ import annotations

import asyncio

import pytest

from posttrain.serve import metrics
from posttrain.serve.metrics import Meter
from tests.unit.serve.test_engine_thread import engine, events, rows, running


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    return now


def test_idle_time_makes_no_rate_smaller(clock: list[float]) -> None:
    meter = Meter(busy_since=100.0)
    meter.count_tokens(4)
    clock[0] = meter.busy_since = 108.0  # eight seconds in which nobody asked
    clock[0] += 2.0
    meter.count_tokens(2000)
    assert meter.busy_rate() == 1000.0
    assert meter.rate() < 250.0


def test_the_first_moments_say_nothing(clock: list[float]) -> None:
    meter = Meter(busy_since=100.0)
    clock[0] = 100.1
    meter.count_tokens(1)
    assert meter.busy_rate() == 0.0


def test_only_the_last_ten_seconds_of_work_count(clock: list[float]) -> None:
    meter = Meter(busy_since=100.0)
    meter.count_tokens(9999)
    clock[0] = 115.0
    meter.count_tokens(50)
    assert meter.busy_rate() == 5.0


def test_work_begins_with_the_first_row_of_an_empty_server() -> None:
    async def main() -> None:
        async with running() as thread:
            thread.meter.busy_since = -1.0
            await events(thread, rows(engine("x"), 1))
            first = thread.meter.busy_since
            assert first > 0
            held = engine("a long answer")
            held.held = True
            async with thread.submit(rows(held, 1)):
                begun = thread.meter.busy_since
                async with thread.submit(rows(held, 1)):
                    assert thread.meter.busy_since == begun > first

    asyncio.run(main())
