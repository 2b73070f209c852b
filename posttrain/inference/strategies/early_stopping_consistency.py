"""Early-stopping self-consistency (ESC): windows of answers, until all answers of one agree.

    repeat n / w times:  draw w answers;  stop if they all say the same
    give the majority of all that was drawn                       Li et al. 2024, arXiv:2401.10480, section 3.1

The draws are the first ones of self-consistency with the same seed: it gives what that gives on so many draws.

Deviations:
1. An answer that ends on nothing agrees with none. The authors' code counts what its parser could not read as an answer
   in some of its tasks, so that a window of such answers stops the sampling.
2. The authors' code gives the answer of the window that agreed; we give the majority of all windows, which may be
   another one where earlier windows agreed on it without being unanimous.
3. n is a multiple of w; theirs leaves the rest out.
"""

from __future__ import annotations

from posttrain.config.strategies import EarlyStoppingConsistency
from posttrain.inference.choosing import vote_of
from posttrain.inference.solution import Solution, Stopped
from posttrain.inference.solving import Solving, SpendingEnded
from posttrain.inference.strategies.self_consistency import elected


async def solve(solving: Solving, settings: EarlyStoppingConsistency) -> Solution:
    stopped, equality = Stopped.DONE, solving.asked.equality(settings.answers)
    try:
        for drawn in range(settings.window, settings.n + 1, settings.window):
            window = await solving.sample(settings.window)
            vote = vote_of(window, equality)
            # After the last window there is nothing left to stop.
            if vote.count == settings.window and drawn < settings.n:
                stopped = Stopped.AGREED
                break
    except SpendingEnded as ended:
        stopped = ended.reason
    return elected(solving, settings, equality, stopped)
