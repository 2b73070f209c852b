"""A lost rank and a stuck one, by hand-made beats."""

from __future__ import annotations

from dataclasses import replace

from posttrain.parallel.beats import Beat
from posttrain.parallel.judging import Seen, stuck

WAITING = Beat(
    count=9,
    pid=1,
    born=0.0,
    host="node1",
    machine="node1",
    phase="`update`, at 3 of 8 steps of sft: training",
    still=700.0,
    collectives=118,
    is_waiting=True,
    stack="",
    has_left=False,
)
BUSY = replace(WAITING, is_waiting=False)
THROUGH = replace(WAITING, is_waiting=False, has_left=True, still=0.0)
PATIENCE = 600.0


def test_the_rank_that_computes_keeps_those_that_wait() -> None:
    found = stuck([WAITING, WAITING, BUSY], PATIENCE)
    assert found == (2, "nothing has moved for 11:40; ranks 0, 1 wait for it in a collective operation")


def test_of_several_that_compute_the_one_that_is_still_the_longest() -> None:
    found = stuck([replace(BUSY, still=601.0), WAITING, BUSY], PATIENCE)
    assert found is not None and found[0] == 2


def test_whoever_moves_is_not_stuck_and_the_others_wait() -> None:
    assert stuck([WAITING, WAITING, replace(BUSY, still=599.9)], PATIENCE) is None
    assert stuck([WAITING, replace(WAITING, still=0.0)], PATIENCE) is None


def test_nobody_waits_for_anybody() -> None:
    """Each asks its own judge; a single process would be left alone as well."""
    assert stuck([BUSY, BUSY], PATIENCE) is None
    assert stuck([BUSY, THROUGH], PATIENCE) is None


def test_ranks_that_wait_in_different_operations() -> None:
    found = stuck([WAITING, replace(WAITING, collectives=117), WAITING], PATIENCE)
    assert found is not None and found[0] == 1
    assert "this rank in its 117th, others in their 118th" in found[1]


def test_all_wait_in_the_same_one() -> None:
    found = stuck([WAITING, WAITING], PATIENCE)
    assert found is not None and "the same collective operation (the 118th): the network?" in found[1]


def test_a_rank_that_has_ended_is_waited_for_in_vain() -> None:
    found = stuck([WAITING, BUSY, THROUGH], PATIENCE)
    assert found is not None and found[0] == 2
    assert found[1].endswith("rank 0 waits in a collective operation, and this rank has ended")


def test_silence_is_counted_from_the_last_change() -> None:
    seen = Seen(100.0)
    assert seen.look(BUSY, 100.5, 0.5) == 0.0
    assert seen.look(BUSY, 101.0, 0.5) == 0.5
    assert seen.look(BUSY, 101.5, 0.5) == 1.0
    assert seen.look(replace(BUSY, count=10), 102.0, 0.5) == 0.0


def test_who_slept_itself_has_seen_nothing() -> None:
    """The whole machine was suspended, or this process was."""
    seen = Seen(100.0)
    seen.look(BUSY, 100.5, 0.5)
    assert seen.look(BUSY, 900.0, 0.5) == 0.0
    assert seen.look(BUSY, 900.5, 0.5) == 0.5
