"""What every test gets: no network, one thread, and a seed of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator

# Before anything imports transformers or tokenizers: a test never reaches for a hub, and never forks busy threads.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings

# Derandomised: the same examples on every machine, so that a failure is the code's and not the day's.
settings.register_profile(
    "posttrain", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("posttrain")


@pytest.fixture(autouse=True)
def _seeded(request: pytest.FixtureRequest) -> Iterator[None]:
    """Seeds torch where a test module uses it; modules that never import torch do not pay for it."""
    import sys

    if "torch" in sys.modules:
        import torch

        torch.manual_seed(0)
    yield
