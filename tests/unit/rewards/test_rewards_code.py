"""The code reward: which program a response holds, and what its row asks of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from posttrain.errors import RewardError
from posttrain.rewards import Sampled, gold_check
from posttrain.rewards.code import Code, checks, program_of, same_output
from posttrain.rewards.sandbox import Limits
from posttrain.rewards.scorer import Scorer
from posttrain.types import Message, RowRef, Task

ASKED = (Message("user", "Write f, which adds one."),)


@pytest.fixture(scope="module")
def code() -> Iterator[Code]:
    one = Code()
    yield one
    one.close()


def task(prompt: tuple[Message, ...] = ASKED, answer: str | None = None, **metadata: Any) -> Task:
    return Task(prompt, answer, RowRef("code.jsonl", 1), metadata)


def score(code: Code, completion: str, one: Task) -> float | None:
    return Scorer("code", code).score([Sampled(one.prompt, completion, one)])[0]


RIGHT = "Here:\n```python\ndef f(x):\n    return x + 1\n```\nIt adds one."
WRONG = "```python\ndef f(x):\n    return x\n```"


def test_asserts(code: Code) -> None:
    row = task(tests="assert f(1) == 2")
    assert score(code, RIGHT, row) == 1
    assert score(code, WRONG, row) == 0
    assert score(code, "I do not know.", row) == 0
    assert score(code, "<think>" + RIGHT, row) == 0
    assert score(code, RIGHT, task()) is None


def test_what_is_printed_by_a_script_that_does_not_end_is_no_answer(code: Code) -> None:
    row = task(cases=[{"input": "", "output": "3"}])
    short = Code(Limits(seconds=0.5))
    try:
        assert score(short, "```python\nprint(3, flush=True)\n```", row) == 1
        assert score(short, "```python\nprint(3, flush=True)\nwhile True: pass\n```", row) == 0
        assert score(short, "```python\nimport ctypes\nprint(3, flush=True)\nctypes.string_at(0)\n```", row) == 0
    finally:
        short.close()


def test_an_empty_cell_of_a_table_hides_no_tests(code: Code) -> None:
    assert score(code, RIGHT, task(tests=None, cases=None, test_list=["assert f(1) == 2"])) == 1
    assert score(code, WRONG, task(tests="", test_list=["assert f(1) == 2"])) == 0
    assert score(code, WRONG, task(cases=[], tests="assert f(1) == 2")) == 0


def test_a_list_of_tests(code: Code) -> None:
    row = task(test_list=["assert f(1) == 2", "assert f(one) == 2", "assert f(0) == 0"], test_setup_code="one = 1")
    assert score(code, RIGHT, row) == 0
    assert Code(partial=True)._one(ASKED, "", row) == 0
    part = Code(partial=True)
    part._sandbox = code.sandbox
    assert score(part, RIGHT, row) == pytest.approx(2 / 3)
    assert score(part, WRONG, row) == pytest.approx(1 / 3)


def test_scripts(code: Code) -> None:
    program = "```python\nfor _ in range(int(input())):\n    print(int(input()) + 1)\n```"
    row = task(cases=[{"input": "2\n1\n2\n", "output": "2\n3"}, {"input": "0", "output": ""}])
    assert score(code, program, row) == 1
    assert score(code, "```python\nprint('2\\n3')\n```", row) == 0
    row = task(input_output='{"inputs": ["1\\n4"], "outputs": ["5\\n"]}')
    assert score(code, program, row) == 1


def test_outputs_are_compared_by_line() -> None:
    assert same_output("1 \n2\n\n", "1\n2")
    assert not same_output("1\n\n2", "1\n2")
    assert not same_output("", "1")


BEGINNING = 'import math\n\ndef g(x):\n    return x - 1\n\ndef f(x):\n    """Adds one."""\n'


def test_a_prompt_that_begins_the_program(code: Code) -> None:
    prompt = (Message("user", BEGINNING),)
    row = task(prompt, test="def check(c):\n    assert c(g(2)) == 2", entry_point="f")
    assert score(code, "    return x + 1\n", row) == 1, "a continuation"
    assert score(code, "    return x\n", row) == 0
    assert score(code, "```python\ndef f(x):\n    return g(x) + 2\n```", row) == 1, "a whole function"
    assert score(code, f"```python\n{BEGINNING}    return x + 1\n```", row) == 1, "the whole program"


def test_the_last_block_counts() -> None:
    one = task()
    assert program_of("```python\na\n```\n```py\nb\n```", ASKED, one) == "b\n"
    assert program_of("```\na\n```\n```bash\nls\n```", ASKED, one) == "a\n"
    assert program_of("```python\na", ASKED, one) == "a"
    assert program_of("```bash\nls\n```", ASKED, one) == ""
    assert program_of("a = 1", ASKED, one) == "a = 1"


@pytest.mark.parametrize("metadata", [{"tests": 3}, {"cases": [{"input": 1}]}, {"cases": "x"}, {"test_list": [1]}])
def test_tests_of_no_known_form(metadata: dict[str, Any]) -> None:
    with pytest.raises(RewardError, match="no form that `code` knows") as caught:
        checks(task(**metadata))
    assert "code.jsonl, row 1" in str(caught.value)


def test_the_gold_check_runs_the_rows_own_solution(code: Code) -> None:
    rows = [
        task(answer="def f(x):\n    return x + 1", tests="assert f(1) == 2"),
        task(answer="def f(x):\n    return x", tests="assert f(1) == 2"),
        task((Message("user", BEGINNING),), test="def check(c): assert c(1) == 2", entry_point="f",
             canonical_solution="    return x + 1\n"),
        task(tests="assert f(1) == 2"),
    ]  # fmt: skip
    failures = gold_check(rows, [Scorer("code", code, gold=code.gold)])
    assert [rows.index(next(r for r in rows if r.row is failure.row)) for failure in failures] == [1]
