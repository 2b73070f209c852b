"""T27, T29, T36 in the loop: sampler and trainer are one distribution, whatever the model folder says.

Sampled at temperature 0.6 from a folder whose generation_config.json would bend everything, and trained with
micro-batches of any size: the first update's ratios are 1 and the sampler's log-probs are the trainer's.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.online import lines, loop_of, run, save_start

BENT = {"repetition_penalty": 1.1, "temperature": 0.1, "top_k": 1, "do_sample": True}


@pytest.fixture
def start(tmp_path: Path) -> Path:
    folder = save_start(tmp_path / "start")
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **BENT}))
    return folder


@pytest.mark.parametrize("tokens", [8, 10_000])
@pytest.mark.parametrize("temperature", [0.6, 1.0])
@pytest.mark.parametrize("adapter", [None, {"kind": "lora", "rank": 4, "dropout": 0.1}])
def test_every_ratio_is_one(start: Path, tmp_path: Path, tokens: int, temperature: float, adapter: object) -> None:
    loop = loop_of(
        start,
        tmp_path / "run",
        adapter=adapter,
        sampling={"temperature": temperature, "max_new_tokens": 6},
        compute={"tokens_per_microbatch": tokens},
        steps=3,
        held_out=0,
    )
    run(loop)
    for record in loop.folder.metrics("train"):
        values = record.values
        assert values["ratio_mean"] == pytest.approx(1, abs=1e-6) and values["ratio_max"] == pytest.approx(1, abs=1e-5)
        assert values["sampler_gap_max"] < 1e-4 and values["sampler_ratio_max"] == pytest.approx(1, abs=1e-4)
    completions = {tuple(line["ids"]) for line in lines(tmp_path / "run", "rollouts.jsonl") if line["step"] == 1}
    assert len(completions) > 8  # top_k 1 would have given one


def test_old_log_probs_of_later_updates_are_the_trainers(start: Path, tmp_path: Path) -> None:
    loop = run(loop_of(start, tmp_path / "run", updates_per_rollout=2, steps=2, held_out=0))
    for record in loop.folder.metrics("train"):
        assert record.values["ratio_max"] > 1.001  # the second update has moved
        assert record.values["sampler_gap_max"] < 1e-4  # and still starts where the sampler was
    for line in lines(tmp_path / "run", "rollouts.jsonl"):
        assert line["old_logprobs"] == pytest.approx(line["sampler_logprobs"], abs=1e-4)
