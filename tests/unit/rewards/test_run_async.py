"""The event loop of rewards and strategies, and a signal that arrives inside one of its tasks."""

from __future__ import annotations

import asyncio
import gc

import pytest

from posttrain.rewards.scorer import run_async


async def _stopped():
    raise KeyboardInterrupt("stopped by SIGTERM")


def test_a_stop_inside_a_task_is_raised_and_prints_no_traceback_of_asyncio(caplog):
    async def work():
        async with asyncio.TaskGroup() as group:
            group.create_task(_stopped())

    with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
        run_async(work())
    gc.collect()  # asyncio speaks when the task is collected
    assert "never retrieved" not in caplog.text


def test_another_error_that_nobody_asked_for_is_still_said(caplog):
    async def failing():
        raise ValueError("lost")

    async def work():
        task = asyncio.create_task(failing())
        await asyncio.sleep(0)
        del task

    run_async(work())
    gc.collect()
    assert "never retrieved" in caplog.text and "lost" in caplog.text
