"""What no algorithm bounds, bounded by time: patterns and schemas of the user's, on responses that a policy wrote.

    count(r"(a+)+$", "a" * 30 + "b", most=1)     # TooSlowError after SECONDS, where `re` needs an hour

The work is done by `bounded_server.py` in a process of its own, which is started when it is first needed and ends with
this one. Patterns whose time is bounded by their form (`is_quick`) are searched here.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import re
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from posttrain.errors import RewardError
from posttrain.types import Task

_LOG = logging.getLogger(__name__)

SECONDS = 0.2
"""Of the processor's time, for all that is asked about one response."""
PATIENCE = 120.0
"""Seconds on the clock after which a process that says nothing is ended: it waits for what never comes."""
START_SECONDS = 120.0


class TooSlowError(Exception):
    """The work on a response took too long, or too much memory; the caller says what that counts as."""


class Allowance:
    """Seconds for one response, whatever is asked about it: ten slow patterns cost no more than one."""

    def __init__(self, seconds: float | None = None):
        self.left = SECONDS if seconds is None else seconds

    def ask(self, work: str, *modules: str, **arguments: Any) -> Any:
        """What the process answers.

        Args:
            work: a row of its table `WORK`.
            modules: packages that the process loads before its first question.

        Raises:
            TooSlowError: it took longer than what is left, or its process died twice over it.
        """
        if self.left <= 0:
            raise TooSlowError("no time is left for it, since what was asked before took all")
        reply = _of_process(os.getpid(), modules).ask(work, self.left, arguments)
        if "value" in reply:
            self.left -= reply.get("seconds", 0.0)
            return reply["value"]
        ended, allowed, self.left = reply["ended"], self.left, 0.0
        why = (
            f"it takes more than {allowed:.2g} s of computing" if ended == "timeout" else f"its process ended: {ended}"
        )
        raise TooSlowError(why)


def count(
    pattern: str,
    text: str,
    *,
    flags: int = 0,
    whole: bool = False,
    most: int = 1,
    allowance: Allowance | None = None,
) -> int:
    """How often a pattern occurs: for `most=1` whether it does; `whole`: whether it matches all of the text.

    Raises:
        re.error: it is no pattern.
        TooSlowError: the search takes longer than the allowance.
    """
    compiled = compile_pattern(pattern, flags)
    if is_quick(pattern):
        if whole or most == 1:
            return int((compiled.fullmatch if whole else compiled.search)(text) is not None)
        return sum(1 for _ in compiled.finditer(text))
    given = {"pattern": pattern, "flags": flags, "text": text, "whole": whole, "most": most}
    return int((allowance or Allowance()).ask("count", **given))


@lru_cache(maxsize=1024)
def compile_pattern(pattern: str, flags: int) -> re.Pattern[str]:
    return re.compile(pattern, flags)


def is_quick(pattern: str) -> bool:
    """Whether a search costs no more than the pattern's length at each letter: nothing in it repeats or chooses.

    A word, or words with signs between them, which most patterns of constraints are.
    """
    # Read off the letters and not the parsed pattern: an escaped star is taken for a star, which costs a millisecond.
    return not set("*+?{|(").intersection(pattern)


def say_zero(reward: str, task: Task, why: object, completion: str, *, level: int = logging.WARNING) -> None:
    """Says in the log why a response got 0 without being judged."""
    _LOG.log(
        level, "%s: %s: %s on a response of %d characters, which counts as 0", task.row, reward, why, len(completion)
    )


class _Worker:
    """The line to a server; any thread may ask, one at a time."""

    def __init__(self, modules: tuple[str, ...]):
        self._modules, self._lock, self._owner = modules, threading.Lock(), os.getpid()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, work: str, seconds: float, arguments: Mapping[str, Any]) -> dict[str, Any]:
        question = json.dumps([work, seconds, arguments]).encode() + b"\n"
        with self._lock:
            reply: dict[str, Any] = {}
            # Twice: a process that somebody else ended (the system, short of memory) says nothing about the response.
            for _ in range(2):
                if self._process is None:
                    self._process = self._started()
                reply = self._exchange(question)
                if reply.get("ended") in (None, "timeout"):
                    break
            return reply

    def _started(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            # Isolated: neither the working folder nor PYTHONPATH can put another `json` in its way.
            [sys.executable, "-I", str(Path(__file__).with_name("bounded_server.py")), *self._modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # A group of its own, so that the fork that works is ended with the process that waits for it.
            start_new_session=True,
        )
        if _line_of(process, START_SECONDS) is None:
            _end(process)
            raise RewardError(
                "the process that bounds the time of rewards does not start",
                found=f"`python {Path(__file__).with_name('bounded_server.py').name}` ended, or said nothing",
                remedy="see that this machine lets processes be started and has memory left",
            )
        return process

    def _exchange(self, question: bytes) -> dict[str, Any]:
        process = self._process
        assert process is not None and process.stdin is not None
        try:
            process.stdin.write(question)
            process.stdin.flush()
            reply = _line_of(process, PATIENCE)
        except OSError:
            reply = None
        if reply is None:
            self._process = None
            _end(process)
            return {"ended": "died"}
        return reply

    def close(self) -> None:
        # A fork has a copy of this record and no claim on the process.
        if self._process is not None and self._owner == os.getpid():
            _end(self._process)
            self._process = None


def _line_of(process: subprocess.Popen[bytes], seconds: float) -> dict[str, Any] | None:
    """The next reply; None where the process ended, or says nothing in time."""
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], seconds)[0]:
        return None
    line = process.stdout.readline()
    return dict(json.loads(line)) if line else None


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            try:
                stream.close()
            except OSError:  # what was still to be written has no reader any more
                continue


@cache
def _of_process(process: int, modules: tuple[str, ...]) -> _Worker:
    """One server for each set of modules; by the process, since a fork must not speak on its parent's line."""
    worker = _Worker(modules)
    atexit.register(worker.close)
    return worker
