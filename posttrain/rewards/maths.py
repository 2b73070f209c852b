"""Is the answer the row's answer, as mathematics: 1/2 and 0.5, \\frac{\\sqrt 2}{2} and 1/\\sqrt 2, 1,000 m and 1000.

What a response answers is, in this order: its last `\\boxed{}`, what follows its last `####`, what follows its last
"answer is" or "answer:", its last number or fraction where the row's answer is a number, its last line. Texts that are
equal and plain numbers are compared here; everything else by `math-verify`, in a process that can be ended.
"""

from __future__ import annotations

import importlib.util
import json
import re
import select
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

from posttrain.rewards.numbers import last_number, whole_number
from posttrain.rewards.text import answer_of, missing
from posttrain.types import Message, Task

START_SECONDS = 60.0


class Math:
    """A verifier: Math(seconds=3)(prompt, completion, task) is 1 or 0, or None where the row has no answer.

    Args:
        require_boxed: a response without `\\boxed{}` is wrong.
        seconds: for reading each of the two formulas, and for comparing them; one that takes longer is wrong.
    """

    def __init__(self, *, require_boxed: bool = False, seconds: int = 3):
        self.require_boxed, self.seconds = require_boxed, seconds
        self._comparer: _Comparer | None = None
        self._lock = threading.Lock()

    def __call__(self, prompt: Sequence[Message], completion: str, task: Task) -> float | None:
        if task.answer is None:
            return None
        gold = gold_answer(task.answer)
        answer = boxed(answer_of(completion))
        if answer is None and not self.require_boxed:
            answer = stated(answer_of(completion), numeric=_quantity(gold) is not None)
        if not answer:
            return 0.0
        if "=" not in gold:
            answer = _EQUALS.split(answer)[-1]
        if _SEVERAL.search(answer) and not _SEVERAL.search(gold):
            return 0.0  # two answers are none
        quick = same_at_once(answer, gold)
        return float(self._compare(gold, answer) if quick is None else quick)

    def gold(self, task: Task) -> str | None:
        return None if task.answer is None else f"\\boxed{{{gold_answer(task.answer)}}}"

    def close(self) -> None:
        if self._comparer is not None:
            self._comparer.close()
            self._comparer = None

    def _compare(self, gold: str, answer: str) -> bool:
        with self._lock:
            if self._comparer is None:
                self._comparer = _Comparer()
            same = self._comparer.ask(gold, answer, self.seconds)
            if same is None:  # it hangs or has died: what it could not compare is wrong, and the next one starts afresh
                self.close()
            return bool(same)


class _Comparer:
    """The line to `maths_server`."""

    def __init__(self) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise missing("math-verify", "math")
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(Path(__file__).with_name("maths_server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        if self._exchange("1", "1", 1, START_SECONDS) is None:
            self.close()
            raise missing("math-verify", "math")

    def ask(self, gold: str, answer: str, seconds: int) -> bool | None:
        """Whether they are equal; None if there was no answer in time."""
        return self._exchange(gold, answer, seconds, 3 * seconds + 2.0)

    def _exchange(self, gold: str, answer: str, seconds: int, wait: float) -> bool | None:
        given, told = self._process.stdin, self._process.stdout
        assert given is not None and told is not None
        deadline = time.monotonic() + wait
        try:
            given.write(json.dumps([gold, answer, seconds]) + "\n")
            given.flush()
            if not select.select([told], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return None
            line = told.readline()
        except OSError:
            return None
        return bool(json.loads(line)) if line else None

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:  # what was still to be written has no reader any more
                    continue


# ---------------------------------------------------------------- what is answered


def gold_answer(answer: str) -> str:
    """The row's answer without what some data sets put around it: GSM8K's working and `####`, MATH's solution."""
    inside = boxed(answer)
    if inside is not None:
        return inside
    return answer.rsplit("####", 1)[-1].strip()


def boxed(text: str) -> str | None:
    """The content of the last `\\boxed{}` that is closed; None if there is none."""
    for found in reversed(list(re.finditer(r"\\f?boxed\s*(?=\{)", text))):
        depth = 0
        for place in range(found.end(), len(text)):
            depth += (text[place] == "{") - (text[place] == "}")
            if depth == 0:
                return text[found.end() + 1 : place].strip()
    return None


_EQUALS = re.compile(r"(?<![<>!=:~])=(?!=)")
"""A lone equals sign: what follows the one of x >= 4 is not what x is."""
_COMPOSED = re.compile(
    r"(?:(?<![\w)\]])[-\u2212])?"
    r"(?:\d[\d,]*(?:\.\d+)?\s*[/^]\s*\{?[-\u2212]?\d[\d,]*(?:\.\d+)?\}?"
    r"|\\[dt]?frac\s*(?:\{[^{}]*\}\s*\{[^{}]*\}|\d\s*\d))"
)
"""A fraction or a power of two numbers."""
_ANSWER_IS = re.compile(r"answer\s*(?:is|:|=)\s*:?\s*([^\n]+)", re.IGNORECASE)


def stated(text: str, *, numeric: bool) -> str:
    """What a text without a box answers; empty if it answers nothing."""
    if "####" in text:
        return text.rsplit("####", 1)[1].strip().split("\n")[0]
    found = _ANSWER_IS.findall(text)
    if found:
        text = found[-1].strip().strip("*").rstrip(".").strip()
        if not numeric or _quantity(text) is not None:
            return str(text)
    if numeric:
        if _quantity(text) is not None:
            return text
        composed = list(_COMPOSED.finditer(text))
        if composed and last_number(text[composed[-1].end() :]) is None:
            return composed[-1].group()  # of 1/2 the last number is 2, which nobody answered
        number = last_number(text)
        return "" if number is None else str(number)
    lines = text.strip().splitlines()
    return lines[-1].strip().rstrip(".") if lines else ""


# ---------------------------------------------------------------- what needs no algebra

_DROPPED = re.compile(r"\\[!,;: ]|\\left|\\right|\\displaystyle|\\\(|\\\)|\\\[|\\\]|~")
_WORDS = re.compile(r"\\(?:text|mathrm|textbf|mbox)\s*\{([^{}]*)\}")
_QUANTITY = re.compile(
    r"(?P<number>\D{0,3}[\d,.]*\d(?:[eE][-+]?\d+)?)\s*(?P<unit>(?:[a-zA-Z°]+(?:[ /][a-zA-Z°]+)*(?:\^?[23])?)?)\.?"
)
_BLANKS = re.compile(r"\s+(?![\w\\])|(?<!\w)\s+")
"""Blanks that separate nothing; that of "3 1/2" does."""
_GROUPED = re.compile(r"(?<![\d.,])\d{1,3}(?: \d{3})+(?!\d)")
"""1 000 000, as the international standard writes it."""
_SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SEVERAL = re.compile(r"\b(?:or|oder|ou)\b|\\lor\b")


def same_at_once(answer: str, gold: str) -> bool | None:
    """Whether equal texts, or plain numbers, are the same; None where that takes algebra."""
    left, right = _plain(answer), _plain(gold)
    if _BLANKS.sub("", left) == _BLANKS.sub("", right):
        return True
    one, other = _quantity(answer), _quantity(gold)
    if one is None or other is None:
        return None
    units = {unit.rstrip("s") for _, unit in (one, other) if unit}
    return one[0] == other[0] and len(units) <= 1


def _plain(text: str) -> str:
    text = _WORDS.sub(r" \1", _DROPPED.sub("", text))
    text = _GROUPED.sub(lambda found: found.group().replace(" ", ""), text)
    return text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac").replace("$", "").strip().rstrip(".").strip()


def _quantity(text: str) -> tuple[Decimal, str] | None:
    """A number with or without a unit: "$1,200", "18 dollars", "5\\text{ cm}"; None for a percentage and the rest."""
    plain = _plain(text).replace("\\", "")
    found = _QUANTITY.fullmatch(plain)
    if found is None:
        return None
    number = whole_number(found["number"])
    unit = found["unit"].strip().lower()
    scale, _, measured = unit.partition(" ")
    if number is not None and scale in _SCALES:
        number, unit = number * _SCALES[scale], measured
    # one letter may be an unknown, as in 3x, and pi and e are numbers: those take algebra
    return None if number is None or (0 < len(unit) < 2) or unit in ("pi", "sqrt") else (number, unit)
