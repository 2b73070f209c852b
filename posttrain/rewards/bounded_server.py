"""The process that works on responses under a limit of time: `python -I bounded_server.py MODULE...`.

One JSON line in, one out. A response is written by a policy, and a pattern, a schema or a task's own rule may need
years for it. Two timers of the processor's time, which a busy machine does not shorten, end that: the first raises
where Python's own code runs, the second has the kernel end the process where one long operation of C does. So the
process that works is a fork of one that waits for it, and the next is there within a millisecond. Run by path: it
imports nothing of posttrain.
"""

import base64
import importlib
import json
import os
import pickle
import re
import resource
import signal
import sys
import time
from types import FrameType
from typing import Any

MEMORY = 4 << 30
GRACE = 0.1
"""Seconds between the two timers."""


REPLIES = os.dup(1)
"""Where replies go. What a rule prints to the usual place must be no reply."""
REFUSED = ("subprocess.", "socket.", "shutil.", "ctypes.", "pty.", "webbrowser.", "urllib.", "ftplib.", "smtplib.")
HARMLESS = ("os.listdir", "os.scandir", "os.walk", "os.fwalk", "os.putenv", "os.unsetenv")
"""What an import does."""


class LateError(BaseException):
    """The time is over; no `Exception`, which the code that is being timed may catch."""


def refuse(event: str, arguments: tuple[Any, ...]) -> None:
    """Ends what no reward does: processes, the network, changes of files.

    Nine of reasoning-gym's rules evaluate an answer as Python. This stops what an answer does by the front door; it is
    no sandbox, and nothing that is meant to run a policy's programs (`code` has one that is).
    """
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if writes or event.startswith(REFUSED) or (event.startswith("os.") and event not in HARMLESS):
        raise PermissionError(f"{event} is not for rewards")


def count(pattern: str, flags: int, text: str, whole: bool, most: int) -> int:
    """How often the pattern occurs, up to `most`; of a match of the whole text, whether."""
    compiled = re.compile(pattern, flags)
    if whole:
        return int(compiled.fullmatch(text) is not None)
    if most == 1:
        return int(compiled.search(text) is not None)
    return sum(1 for _ in compiled.finditer(text))


def fits(text: str, schema: str) -> bool | dict[str, str]:
    """Whether JSON fits a schema; its text and not its value, so that the reading counts as well."""
    import jsonschema
    import referencing
    import referencing.exceptions

    value, wanted = json.loads(text), json.loads(schema)
    # A registry of its own, since the default one looks for schemas that it does not know on the network.
    checker = jsonschema.validators.validator_for(wanted)(wanted, registry=referencing.Registry())
    try:
        return bool(checker.is_valid(value))
    except referencing.exceptions.Unresolvable as error:
        return {"refused": f"$ref {error.ref!r} leads nowhere"}
    # Infinity is no multiple of anything, and what is nested too deeply to be looked at fits nothing.
    except (RecursionError, OverflowError, ValueError):
        return False


DATASETS: dict[tuple[str, str], Any] = {}


def prepare_gym(name: str, settings: str, **_: Any) -> None:
    from reasoning_gym.factory import create_dataset

    if (name, settings) not in DATASETS:
        DATASETS[name, settings] = create_dataset(name, **json.loads(settings))


def gym(name: str, settings: str, entry: str, answer: str | None) -> float | dict[str, str]:
    """The score of a task's own rule; its exception as text, for rules expect an answer of their own form."""
    given = pickle.loads(base64.b64decode(entry))
    try:
        return float(DATASETS[name, settings].score_answer(answer, given))
    except Exception as error:  # the boundary: other people's rules on what a policy wrote
        return {"raised": f"{type(error).__name__}: {error}"[:200]}


WORK: dict[str, Any] = {"count": count, "fits": fits, "gym": gym}
PREPARED: dict[str, Any] = {"gym": prepare_gym}
"""What is done before the time begins: the same for every response."""


def late(number: int, frame: FrameType | None) -> None:
    raise LateError


def serve() -> None:
    signal.signal(signal.SIGVTALRM, late)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    sys.addaudithook(refuse)
    for line in sys.stdin:
        work, seconds, arguments = json.loads(line)
        PREPARED.get(work, lambda **_: None)(**arguments)
        began = time.process_time()
        try:
            signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
            # No handler: this one ends the process, whatever runs.
            signal.setitimer(signal.ITIMER_PROF, seconds + GRACE)
            value = WORK[work](**arguments)
            reply = {"value": value, "seconds": time.process_time() - began}
        except LateError:
            reply = {"ended": "timeout"}
        except (MemoryError, RecursionError) as error:
            reply = {"ended": type(error).__name__}
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            signal.setitimer(signal.ITIMER_PROF, 0)
        say(reply)


def say(reply: Any) -> None:
    os.write(REPLIES, json.dumps(reply).encode() + b"\n")


def main() -> None:
    # Ctrl-C reaches every process of the terminal; the trainer decides what it ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    for module in sys.argv[1:]:
        importlib.import_module(module)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    say({"value": "ready"})
    while True:
        worker = os.fork()
        if worker == 0:
            try:
                serve()
            except BaseException:  # the boundary: whatever it was, the process that waits says that it died
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(worker, 0)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
            return
        timed_out = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF
        say({"ended": "timeout" if timed_out else "died"})


if __name__ == "__main__":
    main()
