r"""Is the answer the row's answer, as mathematics: 1/2 and 0.5, \frac{\sqrt 2}{2} and 1/\sqrt 2, 1,000 m and 1 km.

What a response answers is, in this order: its last `\boxed{}`, what follows its last `####`, what follows its last
"answer is", "answer:" and their kin, the last number, formula or letter of its last sentences (`answers`).
What two answers say is read and compared here (`forms`, `equality`), exactly and the same in both directions. What is
beyond that (integrals, sums, limits) is asked of `math-verify`, in a process that can be ended, and only where both
directions say yes.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import re
import select
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from posttrain.rewards.answers import boxed, gold_answer, is_cut, stated, wanted
from posttrain.rewards.building import options
from posttrain.rewards.equality import may_ask, verdict
from posttrain.rewards.scorer import Scorer
from posttrain.rewards.text import answer_of, missing
from posttrain.types import Message, Task

if TYPE_CHECKING:
    from posttrain.config.rewards import MathReward


START_SECONDS = 60.0
_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
_LOG = logging.getLogger(__name__)

JudgedBy = Literal["text", "read", "unread", "asked", "timeout", "crash", "none"]
"""How a verdict came about: the texts are equal; both were read and compared; one is no form that is known, so that it
is wrong; math-verify compared them; it took too long; its process died twice; the response answers nothing."""


class Math:
    """A verifier: Math(seconds=3)(prompt, completion, task) is 1 or 0, or None where the row has no answer.

    Args:
        require_boxed: a response without `\\boxed{}` is wrong.
        seconds: for reading each of the two formulas, and for comparing them; one that takes longer is wrong.

    `outcomes` counts how the verdicts came about: {"read": 118, "text": 9, "timeout": 1}.
    """

    def __init__(self, *, require_boxed: bool = False, seconds: int = 3):
        self.require_boxed, self.seconds = require_boxed, seconds
        self.outcomes: Counter[JudgedBy] = Counter()
        self._comparer: _Comparer | None = None
        self._lock = threading.Lock()

    def __call__(self, prompt: Sequence[Message], completion: str, task: Task) -> float | None:
        if task.answer is None:
            return None
        gold = gold_answer(task.answer)
        right, outcome = self._judged(self._answer(answer_of(completion), gold), gold)
        with self._lock:
            self.outcomes[outcome] += 1
        return float(right)

    def _answer(self, text: str, gold: str) -> str:
        inside = boxed(text)
        if inside is None:
            return "" if self.require_boxed or is_cut(text) else stated(text, want=wanted(gold))
        if "answer" in inside.lower():  # \boxed{\text{The answer is } 5}
            return stated(_TEXT.sub(r"\1", inside), want=wanted(gold)) or inside
        return inside

    def _judged(self, answer: str, gold: str) -> tuple[bool, JudgedBy]:
        if not answer:
            return False, "none"
        # Ours first: exact, symmetric and without a process; math-verify is asked of the few forms that are beyond it.
        same, how = verdict(answer, gold)
        if how != "beyond":
            return same, how
        if may_ask(answer, gold):
            return self._compare(gold, answer)
        return False, "unread"

    def gold(self, task: Task) -> str | None:
        return None if task.answer is None else f"\\boxed{{{gold_answer(task.answer)}}}"

    def close(self) -> None:
        if self._comparer is not None:
            self._comparer.close()
            self._comparer = None

    def _compare(self, gold: str, answer: str) -> tuple[bool, JudgedBy]:
        """What math-verify says. A process that died is started again once: its death says nothing about the answer."""
        with self._lock:
            for _ in range(2):
                if self._comparer is None:
                    self._comparer = _Comparer()
                reply = self._comparer.ask(gold, answer, self.seconds)
                if isinstance(reply, bool):
                    return reply, "asked"
                self.close()
                if reply == "timeout":
                    return False, "timeout"
            _LOG.warning(
                "math: the process that compares died twice over %r and %r, which counts as wrong", gold, answer
            )
            return False, "crash"


class _Comparer:
    """The line to `maths_server`."""

    def __init__(self) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise missing("math-verify", "math")
        self._process = subprocess.Popen(
            # Isolated: neither the working folder nor PYTHONPATH can put another sympy in its way.
            [sys.executable, "-I", str(Path(__file__).with_name("maths_server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        # A first question with a long wait: loading sympy takes seconds, which would count as the first answer's.
        if not isinstance(self._exchange("1", "1", 1, START_SECONDS), bool):
            self.close()
            raise missing("math-verify", "math")

    def ask(self, gold: str, answer: str, seconds: int) -> bool | Literal["timeout", "crash"]:
        """Whether each of them equals the other."""
        # Two readings and a comparison, in both directions; past that the process hangs where it cannot end itself.
        return self._exchange(gold, answer, seconds, 4 * seconds + 2.0)

    def _exchange(self, gold: str, answer: str, seconds: int, wait: float) -> bool | Literal["timeout", "crash"]:
        given, replies = self._process.stdin, self._process.stdout
        assert given is not None and replies is not None
        deadline = time.monotonic() + wait
        try:
            given.write(json.dumps([gold, answer, seconds]) + "\n")
            given.flush()
            if not select.select([replies], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return "timeout"
            line = replies.readline()
        except OSError:
            return "crash"
        return bool(json.loads(line)) if line else "crash"

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:  # what was still to be written has no reader any more
                    continue


__all__ = ["Math", "boxed", "gold_answer", "stated", "wanted"]


def build(settings: MathReward, folder: Path | None) -> Scorer:
    made = Math(**options(settings))
    return Scorer(settings.label, made, settings.weight, made.gold, made.close, shared=True)
