"""T36 and T48 in the loop: at the first update of a rollout every ratio is 1 and the loss about 0, whatever the
micro-batch; its gradient is not, and later updates of the same rollout move the ratios.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from posttrain.diagnostics.metrics import values
from posttrain.training.loop import Loop
from tests.online import loop_of, save_start

SPLITS = [{"tokens_per_microbatch": 64}, {"tokens_per_microbatch": 4096, "logprobs": "padded"}]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_start(tmp_path_factory.mktemp("start"))


def updates(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, float]]:
    """The metrics of every update of a run, and what the gradient's norm was."""
    found: list[dict[str, float]] = []
    own = loop._update

    def watched(*args: Any) -> Any:
        measured, update = own(*args)
        found.append({**values(measured.metrics), "grad_norm": update.grad_norm})
        return measured, update

    monkeypatch.setattr(loop, "_update", watched)
    try:
        loop.run()
    finally:
        loop.folder.close()
    return found


@pytest.mark.parametrize("compute", SPLITS)
@pytest.mark.parametrize(("method", "more"), [("grpo", {}), ("ppo", {"completions_per_prompt": 2})])
def test_t36_the_first_update_of_a_rollout_is_on_policy(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, more: Any, compute: Any
) -> None:
    options = {"updates_per_rollout": 3, "steps": 3, "held_out": 0, "compute": compute, **more}
    found = updates(loop_of(start, tmp_path, method, **options), monkeypatch)
    assert len(found) == 9
    for index, update in enumerate(found):
        if index % 3 == 0:
            assert update["ratio_mean"] == pytest.approx(1, abs=1e-5) and update["ratio_max"] < 1 + 1e-4
            assert update["clip_share_low"] == update["clip_share_high"] == 0
        else:
            assert update["ratio_max"] > 1 + 1e-4 and update["kl_k3_old"] > 0


@pytest.mark.parametrize("compute", SPLITS)
def test_t48_a_loss_of_0_moves_the_weights(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compute: Any
) -> None:
    """Without a KL, a mean over responses of their means is 0 at ratio 1: advantages of a group add up to 0."""
    options = {"steps": 2, "held_out": 0, "choices": {"kl": "none"}, "compute": compute, "learning_rate": 1e-5}
    for update in updates(loop_of(start, tmp_path, **options), monkeypatch):
        assert abs(update["policy_loss"]) < 1e-5 < 1e-2 < update["grad_norm"]
        assert update["advantage_magnitude"] > 0.5
