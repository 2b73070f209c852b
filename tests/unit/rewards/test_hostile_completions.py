"""No completion hangs or stops a run through a built-in reward: 36 entries of recipes on 34 hostile texts."""

from __future__ import annotations

import math
import os
import random
import re
import signal
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import pytest

from posttrain.rewards import Sampled, bounded, resolve
from posttrain.rewards.answers import final_value
from posttrain.rewards.code import fenced_blocks, program_of
from posttrain.rewards.form import is_malformed
from posttrain.rewards.language import detect
from posttrain.rewards.numbers import last_number
from posttrain.rewards.refusal import is_refusal
from tests import hostile

MOST_SECONDS = 1.0
"""Of this thread's computing; what the process beside it may take is SECONDS. A linear reader takes up to 0.3 s of it
on a slow machine, one of quadratic time takes minutes."""
SHORT, LONG = 16_000, 64_000


def require_bearable(spec: str, names: Iterable[str], size: int) -> None:
    entry, answer, columns = hostile.SPECS[spec]
    scorer, task = resolve(entry), hostile.task_of(answer, columns)
    # Before the clock: packages are loaded and processes started once, whatever the first response says.
    scorer.score([Sampled(hostile.PROMPT, "4", task)])
    for name in names:
        item = Sampled(hostile.PROMPT, hostile.TEXTS[name](size), task)
        began = time.thread_time()
        value = scorer.score([item])[0]
        seconds = time.thread_time() - began
        assert value is None or math.isfinite(value), name
        assert seconds < MOST_SECONDS, f"{name}: {seconds:.2f} s"
    if scorer.close is not None:
        scorer.close()


@pytest.mark.parametrize("spec", hostile.SPECS)
def test_every_reward_bears_every_text(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Most of the time of this test is that of searches that are ended.
    monkeypatch.setattr(bounded, "SECONDS", 0.03)
    require_bearable(spec, hostile.TEXTS, SHORT)


@pytest.mark.parametrize("spec", hostile.SPECS)
def test_every_reward_bears_long_texts(spec: str) -> None:
    # Every seventh text, each reward beginning at another one.
    start = list(hostile.SPECS).index(spec) % 7
    require_bearable(spec, list(hostile.TEXTS)[start::7], LONG)


def test_the_matrix_is_as_large_as_it_says() -> None:
    assert (len(hostile.SPECS), len(hostile.TEXTS)) == (36, 34)
    for name, make in hostile.TEXTS.items():
        assert SHORT - 100 <= len(make(SHORT)) <= SHORT + 100, name
        assert make(SHORT) == make(SHORT)


READERS: dict[str, Callable[[str], object]] = {
    "code": lambda text: program_of(text, hostile.PROMPT, hostile.task_of(None, {"entry_point": "f"})),
    "malformed": is_malformed,
    "language": detect,
    "last number": last_number,
    "final value": final_value,
    "refusal": is_refusal,
}
"""What else reads responses: the program in one, metrics of rollouts, evaluations."""
FENCES = {
    "a fence with a long language": lambda size: f"```{'a' * size}",
    "fences on one line": lambda size: hostile.repeated("```a ", size),
    "backticks": lambda size: "`" * size,
}


@pytest.mark.parametrize("name", READERS)
def test_what_reads_responses_bears_them(name: str) -> None:
    for label, make in {**hostile.TEXTS, **FENCES}.items():
        text = make(LONG)
        began = time.thread_time()
        READERS[name](text)
        assert time.thread_time() - began < MOST_SECONDS, label


def test_fenced_blocks_are_those_of_the_pattern() -> None:
    draw = random.Random(7)
    for _ in range(400):
        text = "".join(draw.choices(["```", "`", "\n", "python", " ", "x = 1", "py\n"], k=draw.randrange(12)))
        pattern = re.compile(r"```[ \t]*([\w+#.-]*)[^\n]*\n(.*?)(?:```|\Z)", re.DOTALL)
        assert fenced_blocks(text) == pattern.findall(text), repr(text)


# ---------------------------------------------------------------- what an ended search counts as


def score(kind: str, completion: str, columns: dict[str, object] | None = None, **options: object) -> float | None:
    task = hostile.task_of(None, columns or {})
    return resolve({"kind": kind, **options}).score([Sampled(hostile.PROMPT, completion, task)])[0]


@pytest.mark.parametrize("absent", [False, True])
def test_a_pattern_that_takes_too_long_earns_nothing(absent: bool, caplog: pytest.LogCaptureFixture) -> None:
    text = "a" * 40 + "!"
    assert score("regex", text, pattern="^(a+)+$", absent=absent) == 0
    assert "hostile.jsonl, row 1: regex: the pattern '^(a+)+$': it takes more than 0.2 s" in caplog.text
    assert "41 characters, which counts as 0" in caplog.text
    assert score("regex", "aaa", pattern="^(a+)+$", absent=absent) == float(not absent), "the next one is judged"


def test_slow_patterns_of_one_row_share_their_time(caplog: pytest.LogCaptureFixture) -> None:
    slow = [{"id": "keywords:existence", "keywords": [f"^(a+)+{letter}$"]} for letter in "bcdefgh"]
    rows = [*slow, {"id": "punctuation:no_comma"}, {"id": "keywords:forbidden_words", "forbidden_words": ["(x+)+y"]}]
    began = time.perf_counter()
    value = score("instructions", "a" * 40, {"instructions": rows})
    assert value == pytest.approx(1 / 9), "a prohibition that nobody could look up is not met"
    assert time.perf_counter() - began < 60 and caplog.text.count("it takes more than") == 1
    assert caplog.text.count("no time is left for it") == 7


def test_time_that_is_used_is_taken_off() -> None:
    allowance = bounded.Allowance(5.0)
    assert bounded.count("(?:a|b)+", "ab " * 200_000, most=10**6, allowance=allowance) == 200_000
    assert 0 < allowance.left < 5.0  # by how much depends on the machine


def test_quick_patterns_need_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded.Allowance, "ask", None)
    assert bounded.count(r"\bred\b", "red Red reddish", most=9) == 1
    assert bounded.count("red", "red", whole=True) == 1
    assert not any(bounded.is_quick(pattern) for pattern in ("a+", "(a)", "a|b", "a{2}", "a*", "a?"))


def test_an_infinite_number_is_no_multiple() -> None:
    schema = {"multipleOf": 0.5}
    assert score("json_schema", "1e999", schema=schema) == 0
    assert score("json_schema", "1.5", schema=schema) == 1


def test_a_schema_of_itself_bears_deep_answers() -> None:
    schema = {"items": {"$ref": "#"}}
    assert score("json_schema", "[" * 900 + "]" * 900, schema=schema) == 0
    assert score("json_schema", "[" * 20 + "]" * 20, schema=schema) == 1


# ---------------------------------------------------------------- the process


def test_a_process_that_somebody_ended_is_started_again() -> None:
    assert bounded.count("a+", "aa") == 1
    worker = bounded._of_process(os.getpid(), ())
    assert worker._process is not None
    first = worker._process.pid
    os.killpg(first, signal.SIGKILL)
    assert bounded.count("b+", "aa") == 0
    assert worker._process is not None and worker._process.pid != first


def test_its_process_ends_with_it() -> None:
    worker = bounded._Worker(())
    assert worker.ask("count", 1.0, {"pattern": "a", "flags": 0, "text": "a", "whole": False, "most": 1})["value"] == 1
    process = worker._process
    assert process is not None
    worker.close()
    assert process.returncode == -signal.SIGKILL and worker._process is None


def test_a_fork_starts_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert bounded.count("a+", "aa") == 1
    worker = bounded._of_process(os.getpid(), ())
    monkeypatch.setattr(os, "getpid", lambda: -1)
    worker.close()
    assert worker._process is not None and worker._process.poll() is None, "a fork may not end its parent's process"


def test_many_threads_get_their_own_answers() -> None:
    with ThreadPoolExecutor(8) as pool:
        counts = list(pool.map(lambda n: bounded.count("a+b", "ab" * n, most=1000), range(200)))
    assert counts == list(range(200))
