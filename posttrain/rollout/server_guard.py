"""Stands between a trainer and a server that it started, so that the server never outlives the trainer.

    python -I server_guard.py TRAINER_PID LOG COMMAND...

It starts COMMAND in a process group of its own, with its output in LOG, writes the group's number on its own output,
and ends the whole group when it is told to (SIGTERM), when the trainer is gone (also by `kill -9`: nobody else can tell
then), or when the command itself has ended. Its exit code is the command's.

A file that is run, not imported: the standard library alone, and no second in which the server is unguarded.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

POLL_SECONDS = 0.3
TERM_SECONDS = 8.0


def end_group(group: int, seconds: float = TERM_SECONDS) -> None:
    """SIGTERM to every process of a group, and SIGKILL to what is left of it after `seconds`."""
    deadline = time.monotonic() + seconds
    number = signal.SIGTERM
    while True:
        try:
            os.killpg(group, number)
        except (ProcessLookupError, PermissionError):  # nobody is left; macOS says the latter of zombies
            return
        if number == signal.SIGKILL:
            return
        while time.monotonic() < deadline:
            time.sleep(0.05)
            if not _is_alive(group):
                return
        number = signal.SIGKILL


def _is_alive(group: int) -> bool:
    with suppress(ChildProcessError):
        os.waitpid(-group, os.WNOHANG)  # a child that has ended counts as a member until it is waited for
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def main(arguments: list[str]) -> int:
    trainer, log, command = int(arguments[0]), arguments[1], arguments[2:]
    told = threading.Event()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, lambda *_: told.set())
    with open(log, "ab") as output:
        server = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    sys.stdout.write(f"{server.pid}\n")
    sys.stdout.flush()
    while server.poll() is None and os.getppid() == trainer and not told.is_set():
        told.wait(POLL_SECONDS)
    ended = server.poll()
    end_group(server.pid)  # also after its own end: what it started may still run
    code = ended if ended is not None else 128 + signal.SIGTERM
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
