"""When a rank is lost or stuck, judged from the beats of all ranks: pure functions of what was seen and when.

- **lost**: no beat for `lost_after` seconds, by the clock of the rank that watches it (its neighbour): the process was
  stopped, its machine is gone, or native code keeps Python's lock. A process of the same machine that is not there any
  more is lost at once.
- **stuck**: a rank waits in a collective operation, and nothing has moved on any rank for `patience` seconds. The rank
  that is not waiting is the one that the others wait for; where all wait, the one that has begun the fewest operations.

A rank that moves is never stuck, however long the others wait for it; a single call of a user's function that takes
longer than `patience` without a word of progress cannot be told from one that never ends.
"""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.parallel.beats import Beat
from posttrain.runs.progress import clock

LOST_SECONDS = 120.0


class Seen:
    """When another rank's beat last changed, by one's own clock."""

    def __init__(self, now: float):
        self.beat: Beat | None = None
        self._changed = now
        self._looked = now

    def look(self, beat: Beat, now: float, interval: float) -> float:
        """Seconds for which the beat has been the same.

        Args:
            interval: between two looks. A watcher that was itself stopped (the whole machine slept) has seen nothing
                in the meantime, and must not take that for the other's silence.
        """
        slept = now - self._looked > 4 * interval + 2.0
        self._looked = now
        if slept or self.beat is None or beat.count != self.beat.count:
            self._changed = now
        self.beat = beat
        return now - self._changed


def stuck(beats: Sequence[Beat], patience: float) -> tuple[int, str] | None:
    """The rank that keeps the job, and why it is taken for it; None while anything moves.

    stuck([waiting, waiting, computing], 600.0) -> (2, "nothing has moved for 10:00; ranks 0, 1 wait for it")
    """
    here = [rank for rank, beat in enumerate(beats) if not beat.has_left]
    waiting = [rank for rank in here if beats[rank].is_waiting]
    if not waiting or any(beats[rank].still < patience for rank in here):
        return None
    for_long = f"nothing has moved for {clock(min(beats[rank].still for rank in here))}"
    if gone := [rank for rank, beat in enumerate(beats) if beat.has_left]:
        return gone[0], f"{for_long}: {_ranks(waiting)} in a collective operation, and this rank has ended"
    if busy := [rank for rank in here if not beats[rank].is_waiting]:
        # Of several that compute, the one that has been still the longest.
        worst = max(busy, key=lambda rank: beats[rank].still)
        return worst, f"{for_long}; {_ranks(waiting)} for it in a collective operation"
    behind = min(here, key=lambda rank: beats[rank].collectives)
    ahead = max(beats[rank].collectives for rank in here)
    if beats[behind].collectives == ahead:
        return behind, f"{for_long}: all ranks wait in the same collective operation (the {ahead:,}th): the network?"
    return behind, (
        f"{for_long}: all ranks wait in collective operations, and not in the same one: this rank in its "
        f"{beats[behind].collectives:,}th, others in their {ahead:,}th"
    )


def _ranks(ranks: Sequence[int]) -> str:
    """_ranks([0]) -> "rank 0 waits", _ranks([0, 1]) -> "ranks 0, 1 wait"."""
    if len(ranks) == 1:
        return f"rank {ranks[0]} waits"
    shown = ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
    return f"ranks {shown} wait"
