"""The queue of single requests: how it ends."""

from __future__ import annotations

import asyncio
import gc
import logging

import pytest

from posttrain.rollout.engine import Request
from posttrain.rollout.requests import RequestQueue
from posttrain.sampling import SamplingDistribution


class Interrupted:
    """A sampler in whose step somebody presses Ctrl-C."""

    def add(self, request):
        """Taken."""

    def remove(self, request):
        """Gone."""

    def step(self):
        raise KeyboardInterrupt


def test_an_interrupt_in_a_step_ends_the_loop_without_a_traceback_of_its_task(caplog) -> None:
    queue = RequestQueue(Interrupted())
    with caplog.at_level(logging.ERROR, logger="asyncio"), pytest.raises(KeyboardInterrupt):
        asyncio.run(queue.complete(Request((1,), SamplingDistribution())))
    del queue
    gc.collect()
    assert not caplog.records
