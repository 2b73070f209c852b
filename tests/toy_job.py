"""A job for tests of launching: `python -m tests.toy_job HOW FOLDER` is one rank of it, 40 steps of one exchange each.

HOW says what goes wrong, always on rank 1 at step 5, and `launch N RESTARTS HOW FOLDER` starts N of them.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

from posttrain.errors import ConfigError
from posttrain.parallel.failure import code_of
from posttrain.parallel.sameness import require_same
from posttrain.parallel.start import Member, joined
from posttrain.parallel.stopping import Stopped
from posttrain.runs.progress import Progress
from posttrain.training.interrupts import deferred_interrupt, ending_signals, heed

STEPS = 40
PATIENCE = 5.0


def main(how: str, folder: Path) -> None:
    try:
        with ending_signals(), joined(patience=PATIENCE) as here:
            rank(here, how, folder)
    except Stopped as stop:
        print(stop)
        sys.exit(stop.code)
    except Exception as error:  # the boundary of the toy, as that of the command line
        print(error, *getattr(error, "__notes__", ()), file=sys.stderr)
        sys.exit(code_of(error))


def rank(here: Member, how: str, folder: Path) -> None:
    assert here.job is not None
    require_same({"colour": "red" if how == "differ" and here.job.rank == 1 else "blue"}, here.world)
    here.log_to(folder)
    progress = Progress()
    here.follow(progress)
    with deferred_interrupt() as asked, progress.phase("toy: training", total=STEPS, unit="steps") as phase:
        for step in range(STEPS):
            with progress.doing("update"):
                if here.job.rank == 1 and step == 5:
                    go_wrong(here, how)
                if how == "main" and here.is_main and step == 5:
                    raise ValueError("no number in the answer")
                with here.world.together("a step"):
                    if how == "everywhere" and here.job.rank == 1 and step == 5:
                        raise ConfigError("the thing is wrong", remedy="mend it")
                assert here.world.gather(step) == [step] * here.world.size
            phase.advance()
            (folder / f"step-{here.job.rank}").write_text(str(step))
            time.sleep(0.05)
            if number := here.world.largest(asked() or 0):
                heed(number)
                raise Stopped(number, f"stopped after step {step + 1} of {STEPS}")
    if here.is_main:
        before = "" if here.ended_by is None else f" after {here.ended_by.sentence}"
        print(f"well: start {here.job.attempt + 1}{before}")


def go_wrong(here: Member, how: str) -> None:
    if how == "raise":
        raise ValueError("no number in the answer")
    if how == "refuse":
        raise ConfigError("the thing is wrong", remedy="mend it")
    if how == "kill" or (how == "kill_once" and here.job is not None and here.job.attempt == 0):
        time.sleep(1.2)  # two beats
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "exit":
        os._exit(3)
    if how == "freeze":
        time.sleep(1.2)
        os.kill(os.getpid(), signal.SIGSTOP)
    if how == "deadlock":
        threading.Lock().acquire() and locked_for_ever()
    if how == "early":
        sys.exit(0)
    if how == "child":
        import subprocess

        subprocess.Popen(["sleep", "987"])
        raise ValueError("with a child")


def locked_for_ever() -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def start(processes: int, restarts: int, how: str, folder: Path) -> int:
    from posttrain.launching.local import Launch, launch

    command = [sys.executable, "-m", "tests.toy_job", how, str(folder)]
    given = Launch(processes, restarts, folder / "logs")
    return launch(command, given, lambda text: print(f"launcher: {text}", file=sys.stderr, flush=True))


if __name__ == "__main__":
    if sys.argv[1] == "launch":
        sys.exit(start(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], Path(sys.argv[5])))
    main(sys.argv[1], Path(sys.argv[2]))
