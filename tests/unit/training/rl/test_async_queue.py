"""The parts of an asynchronous rollout alone: what is asked, what may wait, what trains next, what is on disk."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from posttrain.rewards.rubric import Scored
from posttrain.rollout.engine import Completion, FinishReason, Versions
from posttrain.training.order import stream_seed
from posttrain.training.rl.asks import Ask, AskOrder
from posttrain.training.rl.background import LoadMeter
from posttrain.training.rl.group_queue import GroupQueue, LiveGroup, age_shares
from posttrain.training.rl.queue_files import QueueFiles, group_of, newest_version
from posttrain.training.rl.rollouts import Group, Prompt, Response
from posttrain.training.rl.tasks import TaskOrder
from tests.online import tasks_of

PROMPTS = [Prompt(task, (1, 10 + index % 4), index) for index, task in enumerate(tasks_of(8))]


def group_with(*versions: tuple[int, int], prompt: Prompt = PROMPTS[0]) -> Group:
    responses = [
        Response(Completion((5, 6), (-0.5, -1.5), FinishReason.STOP_TOKEN, Versions(*both)), "56", Scored(1.0), 1.0)
        for both in versions
    ]
    return Group(prompt, tuple(responses))


def live(number: int, *, started: int | None = None, oldest: int | None = None) -> LiveGroup:
    group = None if oldest is None else group_with((oldest, oldest))
    return LiveGroup(Ask(number, 0, 0, number, 0, 0), PROMPTS[0], started, group)


def queue_of(
    *groups: LiveGroup, size: int = 2, staleness: int = 1, late: Literal["drop", "wait"] = "drop"
) -> GroupQueue:
    queue = GroupQueue(size, staleness, late)
    for one in groups:
        queue.add(one)
    return queue


# ---------------------------------------------------------------- what is asked


def test_tasks_are_asked_in_the_order_and_under_the_seeds_of_a_run_in_turns() -> None:
    order = TaskOrder(tasks=8, prompts_per_step=3, steps=4, seed=5)
    asks = AskOrder(order, PROMPTS)
    asked = [asks.next() for _ in range(12)]
    assert [ask.task for ask in asked] == [task for step in range(4) for task in order.at(step)]
    assert [ask.number for ask in asked] == list(range(12))
    assert [ask.seed(5) for ask in asked] == [
        stream_seed(5, "sampling", step, 0) for step in range(4) for _ in range(3)
    ]
    assert len({ask.key for ask in asked}) == 12


def test_equal_prompts_of_a_block_are_told_apart_as_a_batch_tells_them() -> None:
    asks = AskOrder(TaskOrder(tasks=8, prompts_per_step=8, steps=1, seed=0), PROMPTS)
    asked = [asks.next() for _ in range(8)]
    seen: dict[tuple[int, ...], int] = {}
    for ask in asked:  # eight tasks with four different prompts
        ids = PROMPTS[ask.task].ids
        assert ask.occurrence == seen.get(ids, 0)
        seen[ids] = ask.occurrence + 1
    assert sorted(ask.occurrence for ask in asked) == [0] * 4 + [1] * 4


def test_others_for_a_step_are_those_of_a_run_in_turns() -> None:
    order = TaskOrder(tasks=8, prompts_per_step=3, steps=4, seed=5)
    asks = AskOrder(order, PROMPTS)
    first = [asks.next() for _ in range(3)]
    others = asks.more(0, 1, 2, [ask.task for ask in first])
    assert [ask.task for ask in others] == order.more(0, 1, 2, order.at(0))
    assert [(ask.block, ask.round, ask.number) for ask in others] == [(0, 1, 3), (0, 1, 4)]
    assert others[0].seed(5) == stream_seed(5, "sampling", 0, 1)
    assert asks.next().block == 1


def test_the_order_goes_on_from_its_state_within_a_block() -> None:
    order = TaskOrder(tasks=8, prompts_per_step=3, steps=4, seed=5)
    whole, half = AskOrder(order, PROMPTS), AskOrder(order, PROMPTS)
    expected = [whole.next() for _ in range(9)]
    begun = [half.next() for _ in range(4)]
    state = json.loads(json.dumps(half.state_dict()))
    half.next()  # what happens afterwards is no part of the state
    resumed = AskOrder(order, PROMPTS)
    resumed.load_state_dict(state)
    assert begun + [resumed.next() for _ in range(5)] == expected


# ---------------------------------------------------------------- what may wait


@pytest.mark.parametrize("staleness", [0, 1, 2, 5])
def test_asked_and_trained_in_order_nothing_is_ever_too_old_and_the_oldest_is_just_young_enough(staleness: int) -> None:
    """The bound is tight: by hand, in the worst case that every group begins the moment it is asked."""
    queue, number, ages = GroupQueue(4, staleness, "drop"), 0, []
    for step in range(20):
        assert queue.stale(step) == []
        for _ in range(queue.room(step, 20)):
            queue.add(live(number, oldest=step))
            number += 1
        taken = queue.ready(step, 4)
        assert taken is not None and len(queue) <= 4 * (staleness + 1)
        for one in taken:
            assert one.oldest is not None
            ages.append(step - one.oldest)
            queue.remove(one)
    assert max(ages) == staleness and not len(queue) and number == 80


def test_no_more_is_asked_than_the_steps_that_are_left_train() -> None:
    assert [GroupQueue(4, 2, "drop").room(step, 10) for step in (0, 7, 8, 9)] == [12, 12, 8, 4]
    assert queue_of(live(0), live(1), live(2), size=2, staleness=1).room(9, 10) == 0


def test_what_is_too_old_is_too_old_whether_it_is_whole_or_not() -> None:
    queue = queue_of(live(0, started=3), live(1, oldest=4), live(2, started=5), live(3))
    assert [one.ask.number for one in queue.stale(5)] == [0]
    assert [one.ask.number for one in queue.stale(6)] == [0, 1]
    assert [one.ask.number for one in queue.stale(99)] == [0, 1, 2]  # what nothing has sampled yet has no age


def test_the_age_of_a_group_is_that_of_its_oldest_completion() -> None:
    one = LiveGroup(Ask(0, 0, 0, 0, 0, 0), PROMPTS[0], 1, group_with((5, 7), (3, 4), (6, 6)))
    assert one.oldest == 3 and newest_version(group_with((5, 7), (3, 4), (6, 6))) == 7


# ---------------------------------------------------------------- what trains next


def numbers(taken: Sequence[LiveGroup] | None) -> list[int] | None:
    return None if taken is None else [one.ask.number for one in taken]


def test_of_the_groups_that_are_whole_those_that_were_asked_first_train() -> None:
    queue = queue_of(live(9, oldest=0), live(2, started=0), live(4, oldest=0), live(7, oldest=0))
    assert numbers(queue.ready(0, 2)) == [4, 7]
    assert numbers(queue.ready(0, 4)) is None


def test_a_late_group_is_passed_over_or_waited_for() -> None:
    groups = live(2, started=0), live(4, oldest=1), live(7, oldest=1)
    assert numbers(queue_of(*groups).ready(1, 2)) == [4, 7]
    waiting = queue_of(*groups, late="wait")
    assert numbers(waiting.ready(0, 2)) == [4, 7]  # in step 0 it may still train in the next
    assert waiting.ready(1, 2) is None
    groups[0].group = group_with((0, 1))
    assert numbers(waiting.ready(1, 2)) == [2, 4]


def test_shares_of_each_age() -> None:
    assert age_shares({0: 1, 2: 3}, 2) == {"staleness_0": 0.25, "staleness_1": 0.0, "staleness_2": 0.75}
    assert age_shares({}, 1) == {}


def test_the_load_is_counted_over_time() -> None:
    now = [0.0]
    meter = LoadMeter(lambda: now[0])
    meter.add(2)
    now[0] = 1.0
    meter.add(2)
    now[0] = 1.5
    meter.add(-4)
    now[0] = 4.0
    load = meter.take()
    assert (load.seconds, load.busy, load.in_flight) == (4.0, 1.5, (2 * 1.0 + 4 * 0.5) / 4)
    meter.add(1)
    meter.stand_still(True)
    now[0] = 6.0
    assert meter.take().busy == 0.0


# ---------------------------------------------------------------- on disk


def files_of(folder: Path, run: str = "5c1f") -> QueueFiles:
    return QueueFiles(folder, folder / "checkpoints", run)


def odd_group() -> Group:
    """A tool's ids among the policy's, a cut completion, one that nobody judged, one that is empty and aborted."""
    nan = math.nan
    tool = Completion((5, 90, 2), (-0.1, nan, -1 / 3), FinishReason.STOP_TOKEN, Versions(3, 4), (True, False, True))
    cut = Completion((5, 6), (-1e-17, -0.25), FinishReason.STOP_STRING, Versions(4, 4), stopped_by="\n\n")
    none = Completion((), (), FinishReason.ABORTED, Versions(4, 4))
    return Group(
        PROMPTS[3],
        (
            Response(tool, "a\x00b", Scored(0.1 + 0.2, {"math": 1.0, "judge": None}), 0.1),
            Response(cut, "é", Scored(None, {}), None),
            Response(none, "", Scored(None), None),
        ),
    )


def test_a_group_comes_back_from_disk_to_the_last_bit(tmp_path: Path) -> None:
    files, ask, group = files_of(tmp_path), Ask(41, 5, 0, 1, 3, 0), odd_group()
    files.write(ask, group)
    found, strange = files_of(tmp_path).read()
    assert list(found) == [ask.key] and not strange
    again = group_of(found[ask.key], PROMPTS[3])
    assert again is not None
    for ours, theirs in zip(group.responses, again.responses, strict=True):
        np.testing.assert_array_equal(ours.completion.logprobs, theirs.completion.logprobs)
        for name in ("ids", "finish", "versions", "trains", "stopped_by"):
            assert getattr(ours.completion, name) == getattr(theirs.completion, name)
        assert (ours.text, ours.scored, ours.reward) == (theirs.text, theirs.scored, theirs.reward)


def test_a_group_of_another_task_is_no_group_of_this_one(tmp_path: Path) -> None:
    files, ask = files_of(tmp_path), Ask(41, 5, 0, 1, 3, 0)
    files.write(ask, odd_group())
    assert group_of(files.read()[0][ask.key], PROMPTS[2]) is None


@pytest.mark.parametrize("damage", ["torn", "short", "other run", "no log-prob", "odd finish"])
def test_a_file_that_cannot_be_trained_on_is_named_and_not_read(tmp_path: Path, damage: str) -> None:
    files, ask = files_of(tmp_path), Ask(0, 0, 0, 0, 3, 0)
    files.write(ask, odd_group())
    path = tmp_path / "queue" / f"{ask.key}.json"
    content = json.loads(path.read_text())
    first = content["completions"][0]
    match damage:
        case "torn":
            path.write_text(path.read_text()[:40])
        case "short":
            first["ids"] = first["ids"][:-1]
        case "no log-prob":
            first["logprobs"][0] = None
        case "odd finish":
            first["finish"] = "tired"
    if damage != "torn":
        path.write_text(json.dumps(content))
    found, strange = files_of(tmp_path, "other" if damage == "other run" else "5c1f").read()
    assert not found and strange == [path.name]


@pytest.mark.parametrize(
    ("checkpoint", "kept"), [(2, False), (3, True), (5, True), (6, False)], ids=lambda value: str(value)
)
def test_a_trained_group_stays_for_a_checkpoint_that_would_train_on_it_again(
    tmp_path: Path, checkpoint: int, kept: bool
) -> None:
    """Sampled by version 3, trained in step 5: a run that goes on after 3, 4 or 5 steps meets it again."""
    files, ask = files_of(tmp_path), Ask(0, 0, 0, 0, 0, 0)
    (tmp_path / "checkpoints" / f"step-{checkpoint:08d}").mkdir(parents=True)
    files.write(ask, group_with((3, 3)))
    files.trained(ask.key, 3, 5)
    files.sweep()
    assert (ask.key in files.read()[0]) is kept
    (tmp_path / "checkpoints" / f"step-{checkpoint:08d}").rmdir()
    files.sweep()
    assert not files.read()[0]
