"""What the tests of the sandbox share: a right program, its tests, and a way to ask a program what it got done."""

from __future__ import annotations

from pathlib import Path

from posttrain.rewards.sandbox import Sandbox

TESTS = "assert f(2) == 3\nassert f(5) == 6\nassert all(map(lambda n: f(n) == n + 1, range(20)))\n"
RIGHT = "def f(x):\n    return x + 1\n"
PATIENCE = 20.0
"""Wall time for what ends by itself: a busy machine may give a right program little of a second."""
FILES = 100
"""That a program may make in `layers`: few, for a disk may need milliseconds to remove each."""


def does(sandbox: Sandbox, program: str, **places: object) -> str:
    """What a program reports of its deed: f() returns a text."""
    for name, value in places.items():
        program = program.replace(name, repr(value))
    verdict = sandbox.run_tests(program, "raise ValueError(f())", seconds=5.0)
    return verdict.message.removeprefix("ValueError: ").split(" (line")[0]


TRY = """
import os
def f():
    done = []
    for deed in DEEDS:
        try:
            deed()
            done.append(deed.__name__)
        except BaseException as error:
            pass
    return ",".join(done) or "nothing"
"""


def children(pid: int) -> set[int]:
    """All processes below one, by /proc."""
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        for task in Path(f"/proc/{waiting.pop()}/task").glob("*/children"):
            own = {int(word) for word in task.read_text().split()}
            found |= own
            waiting += own
    return found
