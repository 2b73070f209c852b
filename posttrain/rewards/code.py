"""Does the program in a response do what its row's tests ask? Run in the sandbox, judged outside of it.

A row's tests are one of

    tests: "assert f(2) == 3"             asserts, `check(candidate)`, unittest cases or test_ functions (also `test`)
    test_list: ["assert f(2) == 3", ...]  one test each, with `test_setup_code` (MBPP)
    cases: [{input: "2", output: "3"}]    what a script prints when it reads the input; {inputs: [], outputs: []} too

with `entry_point` for `check`, and `setup` for code of the tests' own. A prompt that begins the program (HumanEval) is
put before a response that only goes on with it.
"""

from __future__ import annotations

import ast
import json
import re
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.errors import RewardError
from posttrain.rewards.building import options
from posttrain.rewards.sandbox import Limits, Outcome, Sandbox
from posttrain.rewards.scorer import Scorer
from posttrain.rewards.text import after_thoughts
from posttrain.types import Message, Task

if TYPE_CHECKING:
    from posttrain.config.rewards import CodeReward


_BLOCK = re.compile(r"```[ \t]*(?P<language>[\w+#.-]*)[^\n]*\n(?P<code>.*?)(?:```|\Z)", re.DOTALL)


def fenced_blocks(text: str) -> list[tuple[str, str]]:
    """(language, code) of each fenced block, the last one open or not, in one pass.

    fenced_blocks("```python\nx = 1\n```") == [("python", "x = 1\n")]
    """
    blocks = []
    # A fence opens with a whole line. Behind the last line end none can; tried there, each of 20,000 would search the
    # rest of the text for one.
    last, start = text.rfind("\n"), text.find("```")
    while 0 <= start < last:
        match = _BLOCK.match(text, start)
        assert match is not None
        blocks.append((match["language"], match["code"]))
        start = text.find("```", match.end())
    return blocks


@dataclass(frozen=True, slots=True)
class ProgramCheck:
    """One thing that a program is asked: tests to pass, or an input and what should be printed."""

    tests: str = ""
    given: str = ""
    printed: str | None = None


class Code:
    """A verifier: 1 where the program passes all of its row's tests; abstains where the row has none.

    Args:
        partial: the share of the row's checks that pass, where they are several (`test_list`, `cases`).
        lanes: programs that run at once.
        packages, namespaces: see `Sandbox`.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        partial: bool = False,
        lanes: int = 1,
        packages: bool = False,
        namespaces: bool | None = None,
    ):
        self.limits, self.partial, self.lanes = limits or Limits(), partial, lanes
        self.packages, self.namespaces = packages, namespaces
        self._sandbox: Sandbox | None = None
        self._lock = threading.Lock()

    @property
    def sandbox(self) -> Sandbox:
        """Started when it is first needed."""
        with self._lock:
            if self._sandbox is None:
                self._sandbox = Sandbox(
                    self.limits, lanes=self.lanes, packages=self.packages, namespaces=self.namespaces
                )
            return self._sandbox

    def __call__(
        self, prompts: Sequence[tuple[Message, ...]], completions: Sequence[str], tasks: Sequence[Task]
    ) -> list[float | None]:
        rows = list(zip(prompts, completions, tasks, strict=True))
        with ThreadPoolExecutor(self.lanes) as pool:
            return list(pool.map(lambda row: self._one(*row), rows))

    def gold(self, task: Task) -> str | None:
        """The row's own solution: its answer, or `canonical_solution`."""
        # `canonical_solution` is HumanEval's column, whose rows have no `answer`.
        solution = task.answer or task.metadata.get("canonical_solution")
        return None if solution is None or not checks(task) else f"```python\n{solution}\n```"

    def close(self) -> None:
        if self._sandbox is not None:
            self._sandbox.close()
            self._sandbox = None

    def _one(self, prompt: Sequence[Message], completion: str, task: Task) -> float | None:
        wanted = checks(task)
        if not wanted:
            return None
        program = program_of(after_thoughts(completion), prompt, task)
        if not program.strip():
            return 0.0
        passed = 0
        for check in wanted:
            good = self._passes(program, check, prompt, task)
            passed += good
            # The others cannot change a verdict of all or nothing, and each costs a process.
            if not good and not self.partial:
                return 0.0
        return passed / len(wanted)

    def _passes(self, program: str, check: ProgramCheck, prompt: Sequence[Message], task: Task) -> bool:
        if check.printed is None:
            entry = task.metadata.get("entry_point")
            setup = str(task.metadata.get("setup") or task.metadata.get("test_setup_code") or _beginning(prompt, task))
            return self.sandbox.run_tests(program, check.tests, entry_point=entry, setup=setup).passed
        script = self.sandbox.run_script(program, check.given)
        # A script that prints what is wanted and then never ends, or dies, does not do what it should.
        return script.outcome is Outcome.FINISHED and same_output(script.text, check.printed)


def same_output(printed: str, wanted: str) -> bool:
    """Equal line by line, blanks at line ends and empty lines at the end aside."""
    left, right = ([line.rstrip() for line in text.rstrip().splitlines()] for text in (printed, wanted))
    return left == right


def checks(task: Task) -> list[ProgramCheck]:
    """What the row asks of a program; empty where it asks nothing.

    Raises:
        RewardError: the row's tests are not of a known form.
    """
    metadata = task.metadata
    # a table's empty cell is None in every row that has another form of tests
    cases = _first(metadata, "cases", "input_output")
    if cases is not None:
        return [ProgramCheck(given=given, printed=printed) for given, printed in _cases(cases, task)]
    tests = _first(metadata, "tests", "test", "test_list")
    if not tests:
        return []
    if isinstance(tests, str):
        return [ProgramCheck(tests)]
    if isinstance(tests, Sequence) and all(isinstance(test, str) for test in tests):
        return [ProgramCheck(test) for test in tests]
    raise _bad_tests(task, tests)


def _first(metadata: Mapping[str, Any], *names: str) -> Any:
    """The first of these that is there and not empty."""
    return next((metadata[name] for name in names if metadata.get(name)), None)


def _cases(cases: Any, task: Task) -> list[tuple[str, str]]:
    if isinstance(cases, str):
        try:
            cases = json.loads(cases)
        except ValueError:
            raise _bad_tests(task, cases) from None
    try:
        if isinstance(cases, Mapping):
            return [(str(given), str(two)) for given, two in zip(cases["inputs"], cases["outputs"], strict=True)]
        return [(str(case["input"]), str(case["output"])) for case in cases]
    except (KeyError, TypeError, ValueError):
        raise _bad_tests(task, cases) from None


def _bad_tests(task: Task, tests: Any) -> RewardError:
    return RewardError(
        "the row's tests are of no form that `code` knows",
        where=task.row,
        found=f"{tests!r}"[:200],
        expected="`tests`: text; `test_list`: list of texts; `cases`: [{input, output}]",
        remedy="see docs/rewards.md for the three forms",
    )


def program_of(answer: str, prompt: Sequence[Message], task: Task) -> str:
    """The program in an answer: its last block of Python, or all of it; after the prompt's beginning if it has one."""
    blocks = [code for language, code in fenced_blocks(answer) if language.lower() in ("", "py", "python")]
    code = blocks[-1] if blocks else answer if "```" not in answer else ""
    beginning = _beginning(prompt, task)
    entry = task.metadata.get("entry_point")
    if beginning and entry and not re.search(rf"^(?:async )?def {re.escape(str(entry))}\b", code, re.MULTILINE):
        return beginning + code
    if beginning and entry and not blocks:
        return code
    # a whole program may leave out the imports and helpers that the prompt gives
    return beginning + "\n" + code if beginning else code


def _beginning(prompt: Sequence[Message], task: Task) -> str:
    """The prompt, if it is the beginning of the program: it defines the entry point and is Python as it stands."""
    entry = task.metadata.get("entry_point")
    text = prompt[-1].content or "" if prompt else ""
    if not entry or f"def {entry}(" not in text:
        return ""
    blocks = [code for _, code in fenced_blocks(text) if f"def {entry}(" in code]
    text = blocks[-1] if blocks else text
    try:
        ast.parse(text)
    except SyntaxError:
        return ""
    return text


def build(settings: CodeReward, folder: Path | None) -> Scorer:
    limits = Limits(seconds=settings.seconds, memory_mb=settings.memory_mb)
    made = Code(limits, **options(settings, "seconds", "memory_mb"))
    needs = "tests, in `tests`, `test_list` or `cases`"
    return Scorer(settings.label, made, settings.weight, made.gold, made.close, needs=needs, shared=True)
