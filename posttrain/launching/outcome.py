"""How a job ended, from how its ranks did: the exit code of the whole, and whether starting again could help."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from posttrain.parallel.failure import FAULT, FOLLOWED, REFUSED, Failure
from posttrain.parallel.stopping import exit_code, signal_of

FAILED_SECONDS = 10.0
"""How long the other ranks may take to write their stacks and end, once one has failed."""
STOP_SECONDS = 600.0
"""How long they may take to end the step under way and save, after a signal; whoever sent it may be less patient."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Outcome(143, may_restart=False): stopped by SIGTERM, with a checkpoint."""

    code: int
    may_restart: bool


def outcome(codes: Iterable[int], failure: Failure | None, asked: int | None) -> Outcome:
    """
    Args:
        codes: of the ranks that have ended; negative for a signal that killed one.
        failure: what they said of it.
        asked: the signal that the launcher was sent.
    """
    codes = list(codes)
    stop = asked or next((number for code in codes if (number := signal_of(code))), None)
    # A rank that is stopped on purpose may take another down with it: the purpose counts.
    if stop is not None and (failure is None or asked is not None):
        return Outcome(exit_code(stop), may_restart=False)
    if failure is not None:
        return Outcome(failure.code, failure.is_transient)
    if not any(codes):
        return Outcome(0, may_restart=False)
    own = [code for code in codes if code not in (0, FOLLOWED)]
    # Without a failure's own word all ranks have raised the same error, and the command line has shown it.
    return Outcome(own[0] if own else FAULT, may_restart=not own or own[0] != REFUSED)


def is_own(code: int) -> bool:
    """Whether the command line or the watch ended the process, and so has said why."""
    return code in (0, FAULT, REFUSED, FOLLOWED) or signal_of(code) is not None
