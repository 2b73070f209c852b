"""T30, T33 in the loop: ids train as they were sampled; a cut completion gets no EOS, and with `truncated: drop` the
loss is that of the finished ones alone.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.data.trees import collate, count
from posttrain.losses.online import ONLINE
from posttrain.losses.policy import policy_loss
from posttrain.rollout.engine import Completion, FinishReason
from posttrain.training.loop import Loop
from posttrain.training.rl.engines import Sampler
from tests.online import loop_of, save_start, source_of

ENDED, CUT, NOTHING = (65, 66), (65, 66, 67, 68, 69, 70), ()


@dataclass
class Scripted:
    """An engine that answers each prompt with an ended completion, a cut one, and an empty one of only a stop token."""

    stop: int
    policy_version: int = 0
    asked: list[Any] = field(default_factory=list)

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Any, *, completions_per_prompt: int = 1, on_finish: Any = None
    ) -> list[list[Completion]]:
        self.asked.append(sampling)
        ended = (*ENDED, self.stop)
        one = [
            Completion(ended, (-1.0,) * 3, FinishReason.STOP_TOKEN),
            Completion(CUT, (-1.0,) * 6, FinishReason.LENGTH),
            Completion((self.stop,), (-1.0,), FinishReason.EMPTY),
            Completion(NOTHING, (), FinishReason.ABORTED),
        ]
        return [one for _ in prompts]


def right_if_short(prompt: Any, completion: str, task: Any) -> float:
    return float(0 < len(completion) < 4)


@pytest.fixture
def start(tmp_path: Path) -> Path:
    return save_start(tmp_path / "start")


def trees_of(loop: Loop) -> Any:
    source = source_of(loop)
    stop = max(source.setup.encoder.stop_ids)
    object.__setattr__(source.setup, "sampler", Sampler(Scripted(stop)))
    try:
        (batch,) = source.at(0)
    finally:
        loop.folder.close()
    return batch, stop


def loss_of(loop: Loop, trees: Any) -> torch.Tensor:
    batch = collate(trees)
    return policy_loss(
        ONLINE["dapo"], ONLINE["dapo"].resolve({}), loop.work.policy(batch), batch, count(trees), on_policy=True
    ).loss


OPTIONS: dict[str, Any] = {"rewards": [right_if_short], "choices": {"groups": "keep", "shaping": "none"}}


def test_ids_are_those_that_were_sampled(start: Path, tmp_path: Path) -> None:
    batch, stop = trees_of(loop_of(start, tmp_path / "run", "dapo", **OPTIONS))
    for tree in batch:
        assert [tuple(branch.ids.tolist()) for branch in tree.branches] == [(*ENDED, stop), CUT, (stop,)]
        assert all(branch.loss_mask.all() for branch in tree.branches)


def test_dropped_completions_are_as_if_they_had_not_been(start: Path, tmp_path: Path) -> None:
    loop = loop_of(start, tmp_path / "run", "dapo", truncated="drop", **OPTIONS)
    batch, stop = trees_of(loop)
    for tree in batch:
        assert [tuple(branch.ids.tolist()) for branch in tree.branches] == [(*ENDED, stop), (stop,)]
    advantages = {round(float(branch.columns["advantages"][0]), 3) for tree in batch for branch in tree.branches}
    # rewards 1, 0, 0: the cut one and the empty one stay in the mean (1/3) and in the spread (sqrt(1/3))
    assert advantages == {1.155, -0.577}
    alone = [
        tree.__class__(tree.prompt_ids, (tree.branches[0], tree.branches[1]), tree.key, tree.row) for tree in batch
    ]
    assert torch.equal(loss_of(loop, batch), loss_of(loop, alone))
    assert count(batch).branches == 2 * len(batch)
