"""What is shared within a stage: sampling, rewards, reference log-probs, an engine that rank 0 asks; a quiet folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.config.online import Online
from posttrain.data.trees import collate
from posttrain.errors import ConfigError, RewardError
from posttrain.models.reference import CachedReference
from posttrain.models.tree.logprobs import Policy
from posttrain.parallel.world import world
from posttrain.rewards.rubric import Rubric
from posttrain.rewards.scorer import Sampled, Scorer
from posttrain.rollout.native import NativeEngine
from posttrain.rollout.shared import SharedEngine, shares_of
from posttrain.runs.folder import StageFolder
from posttrain.runs.quiet import QuietFolder
from posttrain.runs.records.logs import MetricsLine
from posttrain.sampling import SamplingDistribution
from posttrain.training.rl.engines import Sampler
from posttrain.training.rl.main_engine import sampler_of_job
from posttrain.types import Message, RowRef, Task
from tests.fixtures import random_trees, tiny_model
from tests.ranks import ranks

VOCAB = 97
PROMPTS = [(5, 6, 7), (8, 9), (5, 6, 7), (11, 12, 13, 14), (8, 9), (5, 6, 7)]
"""Equal ones are drawn apart by how many stand before them."""
SAMPLING = SamplingDistribution(max_new_tokens=6, seed=3)


def test_equal_prompts_stay_together() -> None:
    assert shares_of([(1, 2), (1, 3), (1, 2)], 64, 2) == [[0, 2], [1]]
    for size in (1, 2, 3, 7):
        of_ranks = shares_of(PROMPTS, 8, size)
        assert sorted(index for own in of_ranks for index in own) == list(range(len(PROMPTS)))
        for prompt in set(PROMPTS):
            places = {index for index, one in enumerate(PROMPTS) if one == prompt}
            assert sum(bool(places & set(own)) for own in of_ranks) == 1
            assert all(own == sorted(own) for own in of_ranks)


def sampled(size: int = 3) -> tuple[list[list[tuple[int, ...]]], list[tuple[int, int]]]:
    engine = SharedEngine(NativeEngine(tiny_model(vocab=VOCAB)))
    told: list[tuple[int, int]] = []
    groups = engine.generate(
        PROMPTS, SAMPLING, completions_per_prompt=size, on_finish=lambda index, number, _: told.append((index, number))
    )
    return [[completion.ids for completion in group] for group in groups], sorted(told)


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_sample_what_one_process_samples(size: int) -> None:
    """Six prompts of three kinds, so that of four ranks one has nothing to do; rank 0 hears of every completion."""
    ((ids, told),) = ranks(1).run(sampled)
    found = ranks(size).run(sampled)
    assert all(own == ids for own, _ in found)
    assert len({str(group) for group in ids}) == len(ids), "equal prompts were drawn alike"
    assert found[0][1] == told == sorted((index, number) for index in range(6) for number in range(3))


def refused() -> None:
    SharedEngine(NativeEngine(tiny_model(vocab=VOCAB))).generate([*PROMPTS, (), (4,)], SAMPLING)


def test_a_prompt_that_is_refused_is_named_by_its_own_number() -> None:
    for error in ranks(2).outcomes(refused):
        assert isinstance(error, ConfigError) and error.where == "prompt 6"


# ---------------------------------------------------------------- rewards


def items() -> list[Sampled]:
    task = Task((Message("user", "a?"),), answer="a", row=RowRef("tasks.jsonl", 1))
    return [Sampled(task.prompt, "x" * (1 + i), task, tokens=1 + i, group=i // 2) for i in range(10)]


def scored(shared: bool) -> tuple[list[float | None], int]:
    """A reward of many at once that says what it was asked with: shared, or all by rank 0."""
    asked: list[int] = []

    def lengths(prompts: Any, completions: Any, tasks: Any) -> list[float]:
        asked.append(len(completions))
        assert world().is_alone
        return [float(len(text)) for text in completions]

    totals = [one.total for one in Rubric([Scorer("lengths", lengths, shared=shared)]).score(items())]
    return totals, sum(asked)


def test_rewards_are_scored_in_shares_or_by_rank_0() -> None:
    expected = [float(1 + i) for i in range(10)]
    shared = ranks(4).run(scored, True)
    assert all(totals == expected for totals, _ in shared)
    counts = [count for _, count in shared]
    assert sum(counts) == 10 and all(count % 2 == 0 for count in counts) and max(counts) < 10
    assert ranks(4).run(scored, False) == [(expected, 10), *[(expected, 0)] * 3]


def raising() -> None:
    def breaks(prompt: Any, completion: str, task: Any) -> float:
        if len(completion) == 9:
            raise ValueError("nine")
        return 0.0

    Rubric([Scorer("breaks", breaks, shared=True)]).score(items())


def test_a_shared_reward_that_raises_on_one_rank_is_everybodys_error() -> None:
    errors = ranks(3).outcomes(raising)
    assert all(isinstance(error, RewardError) and "nine" in str(error) for error in errors)
    assert len({error.ranks for error in errors}) == 1 and len(errors[0].ranks) == 1


# ---------------------------------------------------------------- the reference


def cached(folder: str) -> tuple[list[float], int]:
    policy = Policy(tiny_model(vocab=VOCAB))
    trees = random_trees(13, vocab=VOCAB, seed=3, branches=2)
    seen: list[int] = []
    reference = CachedReference.build(
        policy, trees, Path(folder), tokens_per_microbatch=60, progress=lambda done, total: seen.append(done)
    )
    return reference.logprobs(collate(trees)).tolist(), len(seen)


def test_the_reference_is_computed_in_shares_and_read_by_all(tmp_path: Path) -> None:
    ((values, passes),) = ranks(1).run(cached, str(tmp_path / "1"))
    for size in (2, 4):
        folder = tmp_path / str(size)
        found = ranks(size).run(cached, str(folder))
        for own, count in found:
            torch.testing.assert_close(torch.tensor(own), torch.tensor(values), rtol=1e-5, atol=1e-5)
            assert 0 < count < passes
        assert len(list(folder.glob("*/*.index"))) == size
        # A second time nothing is computed, by any number of processes.
        assert [count for _, count in ranks(2).run(cached, str(folder))] == [0, 0]


# ---------------------------------------------------------------- an engine that rank 0 asks


class Asked:
    """An engine that counts, in the place of a server."""

    policy_version = 0
    context_tokens = 64
    in_flight = 0

    def __init__(self) -> None:
        self.calls = 0

    def generate(self, prompts: Any, sampling: Any, *, completions_per_prompt: int = 1, on_finish: Any = None) -> Any:
        self.calls += 1
        return [[f"{len(prompt)}"] * completions_per_prompt for prompt in prompts]


class Pushed:
    noise: float | None = None

    def __call__(self, version: int) -> float:
        if version == 9:
            raise ConfigError("no such version", remedy="none")
        self.noise = 0.25
        return version / 8


def served(version: int) -> tuple[Any, ...]:
    made: list[Asked] = []
    sync: Any = Pushed()

    def start(whole: Policy) -> Sampler:
        made.append(Asked())
        return Sampler(made[0], sync)  # type: ignore[arg-type]

    stage = Online("grpo", engine={"kind": "vllm_served", "url": "http://127.0.0.1:9"})
    sampler = sampler_of_job(stage, Policy(tiny_model(vocab=VOCAB)), start)
    gap = sampler.sync_weights(version)
    groups = sampler.engine.generate([[1, 2], [3]], SAMPLING, completions_per_prompt=2)
    noise = sampler.sync.noise if sampler.sync else None
    return gap, noise, groups, sampler.engine.context_tokens, sum(engine.calls for engine in made)


def test_a_server_is_asked_by_rank_0_for_all() -> None:
    told = (0.5, 0.25, [["2", "2"], ["1", "1"]], 64)
    assert ranks(3).run(served, 4) == [(*told, 1), (*told, 0), (*told, 0)]
    assert all(isinstance(error, ConfigError) for error in ranks(2).outcomes(served, 9))


# ---------------------------------------------------------------- a quiet folder


def test_a_quiet_folder_reads_and_never_writes(tmp_path: Path) -> None:
    folder = StageFolder(tmp_path / "sft")
    line = MetricsLine(step=1, epoch=0.5, seconds=1.0, split="train", values={"loss": 1.0}, counts={})
    folder.append(line)
    folder.write_stage(name="sft", method="sft", status="running")
    folder.close()
    before = {path.name: path.read_bytes() for path in folder.path.iterdir()}
    quiet = QuietFolder(folder.path)
    assert quiet.write_stage(status="failed").status == "failed"
    quiet.append(replace(line, step=2))
    quiet.write_config("seed: 7\n")
    quiet.write(quiet.stage())
    quiet.truncate_after(0)
    quiet.forget_logs()
    quiet.sync()
    quiet.close()
    assert {path.name: path.read_bytes() for path in folder.path.iterdir()} == before
    assert quiet.stage().status == "running" and [one.step for one in quiet.metrics()] == [1]
