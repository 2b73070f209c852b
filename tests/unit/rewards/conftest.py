"""The sandbox that these tests run programs in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from posttrain.rewards.sandbox import Limits, Sandbox, lane
from tests.unit.rewards.programs import FILES


@pytest.fixture(scope="module", params=["namespaces", "without"])
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """With all layers that this machine has, and without namespaces."""
    wanted = None if request.param == "namespaces" else False
    with Sandbox(Limits(seconds=1.0, memory_mb=128), namespaces=wanted) as one:
        yield one


@pytest.fixture(scope="module", params=["namespaces", "without", "old kernel"])
def layers(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """The same, and without namespaces on a Landlock as old as Debian 12's, which has no right for emptying a file."""
    old = "from posttrain.rewards.sandbox.inside import linux\nlinux.landlock_version = lambda: 2\nrun(int("
    wanted = None if request.param == "namespaces" else False
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "old kernel":
            assert "\nrun(int(" in lane._START
            patch.setattr(lane, "_START", lane._START.replace("\nrun(int(", "\n" + old))
        with Sandbox(Limits(seconds=1.0, memory_mb=256, files=FILES), namespaces=wanted) as one:
            yield one
