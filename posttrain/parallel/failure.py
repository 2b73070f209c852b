"""What ends a job: which rank, in which phase, by which error. It travels as JSON through the job's store."""

from __future__ import annotations

import json
import os
import platform
import time
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import psutil

from posttrain.errors import EngineError, PosttrainError, RankError, RewardError

FOLLOWED = 75
"""Exit code of a rank that ended because another one failed (EX_TEMPFAIL of sysexits.h)."""
FAULT, REFUSED = 1, 2
"""Exit codes of the command line: an error that nobody foresaw, and one of posttrain's own."""
STACK_LINES = 40


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a job ended.

    Failure(rank=2, size=4, host="node1", phase="`score`, at 12 of 30 steps of grpo: training",
            problem="ValueError: no number in the answer", stack="Traceback ...", log="runs/x/logs/rank-2.log", code=1,
            is_transient=True)
    """

    rank: int
    size: int
    host: str
    phase: str
    problem: str
    stack: str = ""
    log: str = ""
    code: int = FAULT
    """With which the command ends."""
    is_transient: bool = True
    """Whether starting again could help; it cannot where a recipe or the data is refused."""
    remedy: str = ""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Failure:
        found = json.loads(text)
        return cls(**{field.name: found[field.name] for field in fields(cls) if field.name in found})

    @property
    def sentence(self) -> str:
        """rank 2 of 4 on node1 failed (`score`, at 12 of 30 steps of grpo: training): ValueError: no number in it"""
        return f"rank {self.rank} of {self.size} on {self.host} failed ({self.phase}): {self.problem}"

    def shown(self) -> str:
        """For a terminal, in the form of posttrain's errors; one of those keeps its own, which needs no stack."""
        if self.code == REFUSED:
            return f"{self.sentence}\n  log:      {self.log}" if self.log else self.sentence
        stack = "\n".join(f"    {line}" for line in self.stack.splitlines())
        remedy = self.remedy or "the stack names the place"
        return str(
            RankError(
                self.sentence,
                found=f"\n{stack}" if stack else None,
                remedy=f"{remedy}; the rank's whole log is {self.log}" if self.log else remedy,
            )
        )


def problem_of(error: BaseException) -> str:
    """As the command line words it: posttrain's own errors whole, of another its class too."""
    return str(error) if isinstance(error, PosttrainError) else f"{type(error).__name__}: {error}"


def code_of(error: BaseException) -> int:
    return REFUSED if isinstance(error, PosttrainError) else FAULT


def is_transient(error: BaseException) -> bool:
    """An error that may be gone when the job is started again: a server that was down, a fault, a network. What
    posttrain refuses stays refused, and each attempt would cost the loading of the models."""
    return not isinstance(error, PosttrainError) or isinstance(error, EngineError | RewardError | RankError)


def stack_of(error: BaseException) -> str:
    """The end of the traceback: that is where it happened."""
    lines = "".join(traceback.format_exception(error)).splitlines()
    return "\n".join(lines[-STACK_LINES:])


def report_to_torchrun(failed: Failure, *, is_own: bool) -> None:
    """In the file from which torchrun takes what it reports, in its own form; nothing elsewhere.

    Args:
        is_own: whether this process is the one that failed: torchrun names the earliest, by the second.
    """
    path = os.environ.get("TORCHELASTIC_ERROR_FILE", "")
    if not path:
        return
    more = {"py_callstack": failed.stack, "timestamp": str(int(time.time()) + (0 if is_own else 60))}
    with suppress(OSError):  # torchrun's own place for temporary files; the failure is told without it too
        Path(path).write_text(json.dumps({"message": {"message": failed.sentence, "extraInfo": more}}))


# ---------------------------------------------------------------- is a process there


def machine_tag() -> str:
    """This machine and its table of processes: two containers of one machine do not see each other's."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        space = ""
    return f"{platform.node()} {space}".strip()


def is_gone(pid: int, born: float) -> bool:
    """Whether the process of this number has ended; a zombie has, and a younger one of the same number is another."""
    try:
        process = psutil.Process(pid)
        return process.status() == psutil.STATUS_ZOMBIE or abs(process.create_time() - born) > 1.0
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:
        return False
