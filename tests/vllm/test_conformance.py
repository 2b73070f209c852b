"""The conformance suite of all engines, asked of a real vLLM server."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from posttrain.rollout.vllm_launch import LaunchedServers
from posttrain.rollout.vllm_served import ServedEngine

SUITE = "tests.unit.rollout.test_engine_conformance"
pytest.register_assert_rewrite(SUITE)
# The tests alone: their fixtures are those of this module and of this folder.
TESTS = {name: test for name, test in vars(importlib.import_module(SUITE)).items() if name.startswith("test_")}
globals().update(TESTS)


@pytest.fixture(scope="module")
def engine(servers: LaunchedServers, model: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedEngine]:
    folder: Path = tmp_path_factory.mktemp("weights")
    served = ServedEngine(servers.urls[0], folder=folder, patience=5.0)
    served.update_weights(model, 0)
    yield served
    served.close()
