"""T74: after one RL step a readable file holds prompt, completion, ids, mask, rewards and advantage (verl PR#177).

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from posttrain.rewards import Scorer
from posttrain.types import Task
from tests.chat_templates import CHATML
from tests.fixtures import byte_tokenizer
from tests.online import early_letters, lines, loop_of, run, save_start


def short(prompt: Any, completion: str, task: Task) -> float:
    return -len(completion) / 100


@pytest.fixture
def start(tmp_path: Path) -> Path:
    return save_start(tmp_path / "start")


def test_t74(start: Path, tmp_path: Path) -> None:
    rewards = [early_letters, Scorer("short", short, 0.5)]
    run(loop_of(start, tmp_path / "run", rewards=rewards, steps=1))
    written = lines(tmp_path / "run", "rollouts.jsonl")
    assert len(written) == 12
    tokenizer = byte_tokenizer(CHATML, specials=("<|im_start|>", "<|im_end|>"))
    for line in written:
        assert (line["step"], line["version"]) == (1, 0)
        assert line["prompt"] in tokenizer.decode(line["prompt_ids"])
        assert line["completion"] in tokenizer.decode(line["ids"])
        assert line["finish"] in ("stop_token", "length", "empty")
        assert len(line["ids"]) == len(line["mask"]) == len(line["sampler_logprobs"]) == len(line["advantages"])
        assert len(line["ids"]) == len(line["reference_logprobs"])
        total = line["parts"]["early_letters"] + 0.5 * line["parts"]["short"]
        assert line["reward"] == pytest.approx(total)
    for row in {line["row"] for line in written}:
        group = [line for line in written if line["row"] == row]
        assert [line["number"] for line in group] == [0, 1, 2, 3]
        assert sum(line["advantages"][0] for line in group) == pytest.approx(0.0, abs=1e-4)
        best = max(group, key=lambda line: line["reward"])
        assert best["advantages"][0] == max(line["advantages"][0] for line in group)
