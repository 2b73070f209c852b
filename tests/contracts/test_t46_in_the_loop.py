"""T46 in a real loop: the larger beta, the smaller the KL to the start at the end, wherever the KL stands.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.online import WHOLE, loop_of, run, save_start

OPTIONS: dict[str, Any] = {**WHOLE, "steps": 14, "held_out": 0, "prompts_per_step": 4, "completions_per_prompt": 6}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_start(tmp_path_factory.mktemp("start"))


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("grpo", {}),
        ("grpo", {"choices": {"kl": "exact"}}),
        ("rloo", {}),
        ("ppo", {"updates_per_rollout": 2}),
    ],
)
def test_t46(start: Path, tmp_path: Path, method: str, more: dict[str, Any]) -> None:
    def final(beta: float) -> float:
        loop = run(loop_of(start, tmp_path / str(beta), method, kl_beta=beta, **OPTIONS, **more))
        last = [record.values["kl_k3_reference"] for record in loop.folder.metrics("train")][-4:]
        return sum(last) / len(last)

    free, held = final(0.001), final(2.0)
    assert held < 0.7 * free and free > 0.005, (free, held)
