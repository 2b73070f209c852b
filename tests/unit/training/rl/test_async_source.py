"""Sampling beside training: equal to turns at a staleness of 0, whole at every other, and honest about what fails."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from posttrain.errors import ConfigError, EngineError, RewardError
from posttrain.rollout.engine import Request
from posttrain.training import checkpoint
from posttrain.training.loop import Loop
from posttrain.types import Task
from tests.async_runs import COMPLETIONS, PROMPTS, async_loop, async_source, check_run, groups_of_ranks, trained_groups
from tests.fake_vllm import FakeServer
from tests.online import WHOLE, early_letters, lines, loop_of, run, save_start, source_of
from tests.ranks import ranks
from tests.timed_engine import TimedEngine

TURNS: dict[str, Any] = {**WHOLE, "steps": 4}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_start(tmp_path_factory.mktemp("start"))


def weights(loop: Loop) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in loop.work.policy.model.named_parameters()}


def often_tied(prompt: Any, completion: str, task: Task) -> float:
    """Most groups of four have no signal."""
    return float(completion[:1] < "0")


def values(loop: Loop, name: str) -> list[float]:
    return [line.values[name] for line in loop.folder.metrics("train")]


# ---------------------------------------------------------------- a staleness of 0


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("grpo", {}),
        ("grpo", {"updates_per_rollout": 3, "prompts_per_update": 1}),
        ("grpo", {"curriculum": {"pass_at": 0.3}, "kl_target": 0.01}),
        ("dapo", {"rewards": [often_tied], "resample_rounds": 2}),
        ("rloo", {"choices": {"groups": "drop"}, "rewards": [often_tied]}),
        ("ppo", {"completions_per_prompt": 2}),
        ("online_dpo", {}),
        ("rft", {"least_reward": 0.3}),
        ("gkd", {"rewards": (), "teacher": "START"}),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value) or "plain",
)
def test_at_a_staleness_of_0_a_run_is_the_one_in_turns(
    start: Path, tmp_path: Path, method: str, options: dict[str, Any]
) -> None:
    given = {**TURNS, **options, **({"teacher": str(start)} if "teacher" in options else {})}
    turns = run(loop_of(start, tmp_path / "sync", method, **given))
    beside = run(loop_of(start, tmp_path / "async", method, **given, rollout={"mode": "async", "max_staleness": 0}))
    expected, found = weights(turns), weights(beside)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    for name in ("loss", "reward", "score", "groups", "groups_trained", "curriculum_pass_rate", "kl_coefficient"):
        here, there = ([line.values.get(name) for line in one.folder.metrics()] for one in (turns, beside))
        assert here == there or np.array_equal(np.array(here, float), np.array(there, float), equal_nan=True), name
    ours, theirs = (lines(tmp_path / one, "rollouts.jsonl") for one in ("sync", "async"))
    assert len(ours) == len(theirs)
    for line, other in zip(ours, theirs, strict=True):
        # Rounding: the rows of a batch lie in another order.
        np.testing.assert_allclose(line.pop("sampler_logprobs"), other.pop("sampler_logprobs"), atol=2e-6)
        assert line.keys() == other.keys()
        assert all(line[name] == other[name] for name in line if name != "kl_rewards"), line["row"]
    assert lines(tmp_path / "sync", "examinations.jsonl") == lines(tmp_path / "async", "examinations.jsonl")


def test_at_a_staleness_of_0_nothing_is_sampled_while_the_trainer_trains(start: Path, tmp_path: Path) -> None:
    loop = async_loop(start, tmp_path, staleness=0, steps=4)
    run(loop)
    check_run(loop, tmp_path)
    assert values(loop, "queue_depth") == [0.0] * 4 and values(loop, "groups_dropped_stale") == [0.0] * 4
    assert {line["staleness"] for line in lines(tmp_path, "rollouts.jsonl")} == {0}
    assert "waiting_share" not in loop.folder.metrics("train")[0].values  # nothing to be said of a run in turns


# ---------------------------------------------------------------- beside training


def test_sampling_goes_on_while_the_trainer_trains(start: Path, tmp_path: Path) -> None:
    engine = TimedEngine(60, lambda request: 0.0)
    loop = async_loop(start, tmp_path, staleness=1, engine=engine, steps=4)
    source, during = async_source(loop), []
    hooks = loop.hooks.after_update

    def look(trees: Any, index: int) -> Any:
        deadline = time.monotonic() + 10  # the trainer is busy
        while len(source.queue.whole) < (PROMPTS if index < 3 else 0) and time.monotonic() < deadline:
            time.sleep(0.01)
        during.append(len(source.queue.whole))
        return hooks(trees, index)

    loop.hooks = replace(loop.hooks, after_update=look)
    run(loop)
    check_run(loop, tmp_path)
    assert during == [PROMPTS, PROMPTS, PROMPTS, 0]
    assert values(loop, "staleness") == [0.0, 1.0, 1.0, 1.0]
    assert values(loop, "staleness_1") == [0.0, 1.0, 1.0, 1.0] and values(loop, "staleness_max") == [0, 1, 1, 1]


def slow_first(until: int) -> TimedEngine:
    """One completion of the very first prompt ends when the engine has the weights of version `until`."""
    engine = TimedEngine(60, lambda request: 0.0)

    def held(request: Request) -> bool:
        first = engine.asked[0]
        same = tuple(request.prompt) == tuple(first.prompt) and request.sampling.seed == first.sampling.seed
        return same and request.completion == 2 and engine.policy_version < until

    engine.held = held
    return engine


def test_a_slow_prompt_holds_no_step_back_and_trains_when_it_is_there(start: Path, tmp_path: Path) -> None:
    loop = async_loop(start, tmp_path, staleness=3, engine=slow_first(until=2), steps=6)
    update = loop.hooks.after_update
    loop.hooks = replace(loop.hooks, after_update=lambda trees, index: time.sleep(0.3) or update(trees, index))
    run(loop)
    check_run(loop, tmp_path)
    slow = lines(tmp_path, "rollouts.jsonl")
    first_asked = async_source(loop).setup.prompts[async_source(loop).setup.order.at(0)[0]].task
    steps = [line["step"] for line in slow if line["row"] == str(first_asked.row) and line["versions"][0] == 0]
    assert set(steps) <= {3, 4} and len(steps) == COMPLETIONS
    versions = {tuple(line["versions"]) for line in slow if line["step"] == steps[0] and line["versions"][0] == 0}
    assert versions == {(0, 0), (0, 2)}
    assert sum(values(loop, "groups_dropped_stale")) == 0


def test_a_group_that_is_too_old_is_dropped_counted_and_another_asked(start: Path, tmp_path: Path) -> None:
    engine = slow_first(until=1000)  # it would never end
    loop = async_loop(start, tmp_path, staleness=1, engine=engine, steps=5)
    run(loop)
    check_run(loop, tmp_path)
    assert values(loop, "groups_dropped_stale") == [0.0, 0.0, 1.0, 0.0, 0.0]
    assert async_source(loop).state_dict()["queue"]["asks"]["number"] == 5 * PROMPTS + 1
    assert engine.in_flight == 0  # its request was given up


def test_a_late_group_is_waited_for_where_the_stage_says_so(start: Path, tmp_path: Path) -> None:
    loop = async_loop(start, tmp_path, engine=slow_first(until=1), staleness=1, steps=4, rollout={"late": "wait"})
    run(loop)
    check_run(loop, tmp_path)
    assert sum(values(loop, "groups_dropped_stale")) == 0
    (line,) = [one for one in lines(tmp_path, "rollouts.jsonl") if one["number"] == 2 and one["step"] == 2][:1]
    assert line["versions"] == [0, 1]


def test_no_more_prompts_are_in_flight_than_the_stage_says(start: Path, tmp_path: Path) -> None:
    most = 0
    engine = TimedEngine(60, lambda request: 0.02)

    def note(request: Request) -> None:
        nonlocal most
        most = max(most, engine.in_flight)

    engine.fails = note
    loop = async_loop(start, tmp_path, engine=engine, steps=3, rollout={"in_flight": 2})
    check_run(run(loop), tmp_path)
    assert most == 2 * COMPLETIONS


def test_resampling_takes_the_next_groups_and_asks_others_where_there_are_none(start: Path, tmp_path: Path) -> None:
    options = {"rewards": [often_tied], "resample_rounds": 2, "steps": 4}
    loop = loop_of(start, tmp_path, "dapo", **{**TURNS, **options, "held_out": 0}, rollout="async")
    run(loop)
    groups = values(loop, "groups")
    assert max(groups) > PROMPTS and max(groups) <= PROMPTS * 3
    assert all(kept <= PROMPTS for kept in values(loop, "groups_trained"))
    keys = [key for _, key in trained_groups(tmp_path)]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("method", ["grpo", "ppo", "dr_grpo", "online_dpo", "rft", "gkd"])
def test_every_kind_of_learner_trains_on_stale_completions(start: Path, tmp_path: Path, method: str) -> None:
    more = {"gkd": {"teacher": str(start), "rewards": ()}, "rft": {"least_reward": 0.0}}.get(method, {})
    loop = loop_of(start, tmp_path, method, **{**TURNS, **more, "held_out": 0}, rollout="async")
    before = weights(loop)
    run(loop)
    assert max(values(loop, "staleness_max")) == 2
    assert all(np.isfinite(loss) for loss in values(loop, "loss"))
    assert any(not torch.equal(before[name], after) for name, after in weights(loop).items())


# ---------------------------------------------------------------- the engine on the trainer's weights


def test_the_native_engine_goes_on_with_a_completion_under_new_weights(start: Path, tmp_path: Path) -> None:
    """In turns with the trainer: it stands still during an update, and its versions say that it went on afterwards."""
    options = {**TURNS, "sampling": {"max_new_tokens": 24}, "steps": 6, "compute": {"tokens_per_microbatch": 2048}}
    loop = loop_of(start, tmp_path, **options, held_out=0, rollout={"mode": "async", "max_staleness": 3})
    run(loop)
    versions = [tuple(line["versions"]) for line in lines(tmp_path, "rollouts.jsonl")]
    assert any(oldest < newest for oldest, newest in versions)
    assert max(line["staleness"] for line in lines(tmp_path, "rollouts.jsonl")) <= 3


def test_ratios_of_stale_completions_begin_at_the_log_probs_of_the_engine(start: Path, tmp_path: Path) -> None:
    loop = run(loop_of(start, tmp_path, **{**TURNS, "held_out": 0}, rollout={"mode": "async", "max_staleness": 1}))
    assert "old_logprobs" not in lines(tmp_path, "rollouts.jsonl")[-1]  # nothing is computed again for it
    assert values(loop, "ratio_max")[0] == pytest.approx(1.0, abs=1e-5)
    assert max(values(loop, "ratio_max")[1:]) > 1.01


def test_under_a_correction_they_begin_at_the_trainer_s_own(start: Path, tmp_path: Path) -> None:
    options = {**TURNS, "held_out": 0, "choices": {"correction": "truncated"}}
    loop = run(loop_of(start, tmp_path, **options, rollout={"mode": "async", "max_staleness": 1}))
    assert max(values(loop, "ratio_max")) == pytest.approx(1.0, abs=1e-5)
    assert max(values(loop, "sampler_gap_max")[1:]) > 1e-3  # the weight of the correction is between the two


# ---------------------------------------------------------------- a server


@pytest.mark.parametrize("on_update", ["recompute", "continue"])
def test_it_trains_through_a_server_that_goes_on_sampling(start: Path, tmp_path: Path, on_update: str) -> None:
    rollout = {"mode": "async", "max_staleness": 1, "on_update": on_update}
    with FakeServer(start) as server:
        engine = {"kind": "vllm_served", "url": server.url, "patience": 0}
        options = {**TURNS, "steps": 5, "examine": {"every_steps": 5, "keep": "last"}, "engine": engine}
        loop = run(loop_of(start, tmp_path, **options, rollout=rollout))
        asked = [path for path, _ in server.requests]
        salts = {body["cache_salt"] for body in server.bodies("/v1/completions")}
    assert max(values(loop, "sync_gap")) < 1e-5 and max(values(loop, "staleness_max")) == 1
    assert asked.count("/pause") == asked.count("/resume") >= 5
    assert len(salts) >= 5  # keys and values of older weights are found by no later prompt
    for line in lines(tmp_path, "rollouts.jsonl"):
        assert line["step"] - 2 <= line["versions"][0] <= line["versions"][1] <= line["version"]
    assert not [thread for thread in threading.enumerate() if thread.name == "posttrain-rollout"]


# ---------------------------------------------------------------- what fails


def test_an_engine_that_fails_in_the_background_is_the_trainer_s_error(start: Path, tmp_path: Path) -> None:
    engine = TimedEngine(60, lambda request: 0.01)
    gone = EngineError("the engine is gone", remedy="start it")
    engine.fails = lambda request: gone if engine.policy_version == 2 else None
    loop = async_loop(start, tmp_path, engine=engine)
    with pytest.raises(EngineError, match="the engine is gone"):
        run(loop)
    saved = checkpoint.latest(tmp_path / "checkpoints")
    assert saved is not None and saved.step in (2, 3, 4)
    assert not [thread for thread in threading.enumerate() if thread.name == "posttrain-rollout"]


def test_a_reward_that_raises_in_the_background_keeps_what_is_whole(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("posttrain.training.stages.sampling_inputs.content_of", lambda function: "the same")
    left = [30]

    def reward(prompt: Any, completion: str, task: Task) -> float:
        left[0] -= 1
        if left[0] == 0:
            raise KeyError("level")
        return early_letters(prompt, completion, task)

    engine = TimedEngine(60, lambda request: 0.0)
    with pytest.raises(RewardError, match="raised KeyError"):
        run(async_loop(start, tmp_path, engine=engine, rewards=[reward]))
    kept = {path.name for path in (tmp_path / "queue").glob("*.json")}
    again = TimedEngine(60, lambda request: 0.0)
    loop = async_loop(start, tmp_path, engine=again, rewards=[reward])
    resumed = checkpoint.latest(tmp_path / "checkpoints")
    check_run(run(loop), tmp_path)
    asked = {(tuple(request.prompt), request.sampling.seed, request.completion) for request in again.asked}
    assert len(asked) == len(again.asked)
    if resumed is not None:  # an error in the first step leaves no checkpoint, and the run begins anew
        assert kept and len(again.asked) < len(engine.asked) + 8 * PROMPTS * COMPLETIONS


@pytest.mark.parametrize("engine", ["vllm_colocated"])
def test_an_engine_that_cannot_go_on_is_refused_when_the_recipe_is_read(
    start: Path, tmp_path: Path, engine: str
) -> None:
    with pytest.raises(ConfigError, match="sleeps while the trainer trains"):
        loop_of(start, tmp_path, rollout="async", engine=engine)


def test_a_method_without_a_ratio_is_refused_unless_it_is_corrected(start: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="completions of older weights"):
        loop_of(start, tmp_path, "rloo", rollout="async")
    loop_of(start, tmp_path, "rloo", rollout={"mode": "async", "max_staleness": 0})
    loop_of(start, tmp_path, "rloo", rollout="async", choices={"correction": "truncated"})


def test_examinations_ask_the_weights_of_their_step_while_others_are_sampled(start: Path, tmp_path: Path) -> None:
    engine = TimedEngine(60, lambda request: 0.05)
    seen: list[int] = []
    generate = engine.generate

    def noted(*given: Any, **options: Any) -> Any:
        seen.append(engine.policy_version)
        return generate(*given, **options)

    engine.generate = noted  # type: ignore[method-assign]
    loop = async_loop(start, tmp_path, engine=engine, held_out=0.25, steps=4, examine={"every_steps": 2})
    check_run(run(loop), tmp_path)
    assert seen == [0, 2, 4]


def test_the_source_is_the_one_of_its_mode(start: Path, tmp_path: Path) -> None:
    assert type(source_of(loop_of(start, tmp_path / "a"))).__name__ == "OnlineSource"
    assert type(source_of(loop_of(start, tmp_path / "b", rollout="async"))).__name__ == "AsyncSource"


@pytest.mark.slow
def test_of_several_ranks_one_has_the_queue_and_all_train_on_its_groups(start: Path, tmp_path: Path) -> None:
    (first, asked), (second, of_the_other) = ranks(2).run(groups_of_ranks, str(start), str(tmp_path))
    assert first == second and len(first) == 2 and len(first[0]) == PROMPTS * COMPLETIONS
    assert asked > 0 and of_the_other == 0
