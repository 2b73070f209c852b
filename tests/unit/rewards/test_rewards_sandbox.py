"""Programs that try to pass without being right, to do harm, or to stay; none may succeed, on either set of layers."""

from __future__ import annotations

import time

import pytest

from posttrain.errors import ConfigError
from posttrain.rewards.sandbox import Limits, Outcome, Sandbox, client
from posttrain.rewards.sandbox.inside import wire
from posttrain.rewards.sandbox.lane import End
from tests.unit.rewards.programs import PATIENCE, RIGHT, TESTS

# ---------------------------------------------------------------- programs that want to pass

CHEATS = {
    "wrong": "def f(x): return x",
    "does not load": "def f(x) return x + 1",
    "lacks the function": "def g(x): return x + 1",
    "returns None": "def f(x): pass",
    "raises": "def f(x): raise ValueError('no')",
    "raises an assertion": "def f(x): raise AssertionError",
    "os._exit(0) in the call": "import os\ndef f(x): os._exit(0)",
    "os._exit(0) when loaded": "import os\nos._exit(0)",
    "sys.exit when loaded": "import sys\nsys.exit(0)",
    "sys.exit in the call": "import sys\ndef f(x): sys.exit(0)",
    "sys.exit in a destructor": (
        "import sys, os\nclass Bye:\n    def __del__(self):\n        os._exit(0)\ndef f(x):\n    Bye()\n    return x\n"
    ),
    "sys.exit at exit": "import atexit, os\natexit.register(lambda: os._exit(0))\ndef f(x): return 0",
    "prints success": "def f(x):\n    print('OK', 'passed', 'PASSED 3 tests', flush=True)\n    return 0",
    "always equal": (
        "class Yes:\n    def __eq__(self, other): return True\n    __ne__ = lambda s, o: False\n"
        "    def __bool__(self): return True\n    def __hash__(self): return 3\ndef f(x): return Yes()"
    ),
    "an int that is always equal": (
        "class Yes(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\n"
        "def f(x): return Yes(0)"
    ),
    "a text that is always equal": (
        "class Yes(str):\n    def __eq__(self, other): return True\n    __hash__ = str.__hash__\ndef f(x): return Yes()"
    ),
    "claims to be an int": (
        "class Yes:\n    __class__ = property(lambda self: int)\n    def __eq__(self, other): return True\n"
        "    def __index__(self): return 3\ndef f(x): return Yes()"
    ),
    "patches assert helpers": (
        "import builtins, math, operator, unittest\nunittest.TestCase.assertEqual = lambda *a: None\n"
        "builtins.all = lambda *a: True\nbuiltins.AssertionError = Warning\noperator.eq = lambda a, b: True\n"
        "def f(x): return 0"
    ),
    "patches the harness": (
        "import sys\nfor module in list(sys.modules.values()):\n    if 'posttrain' in module.__name__:\n"
        "        for name in ('judge', '_run', '_failure', 'encode', 'decode'):\n"
        "            setattr(module, name, lambda *a, **k: None)\ndef f(x): return 0"
    ),
    "looks up the stack": (
        "import sys\ndef f(x):\n    frame = sys._getframe()\n    while frame:\n"
        "        for where in (frame.f_locals, frame.f_globals):\n            for key, value in list(where.items()):\n"
        "                if isinstance(value, str) and ('f(5) ' + '== 6' in value or key == 'nonce'): return x + 1\n"
        "        frame = frame.f_back\n    return 0"
    ),
    "searches all objects": (
        "import gc\ndef f(x):\n    for one in gc.get_objects():\n        if isinstance(one, dict):\n"
        "            for value in list(one.values()):\n"
        "                if isinstance(value, str) and 'f(5) ' + '== 6' in value: return x + 1\n    return 0"
    ),
    "searches its memory": (
        "def f(x):\n    with open('/proc/self/mem', 'rb') as m, open('/proc/self/maps') as maps:\n"
        "        for line in maps:\n            a, b = (int(n, 16) for n in line.split()[0].split('-'))\n"
        "            m.seek(a)\n            if b'assert f(' + b'2) == 3' in m.read(b - a): return x + 1\n    return 0"
    ),
    "reads all files that are open": (
        "import os\ntext = b''\nfor fd in range(64):\n    try:\n        os.set_blocking(fd, False)\n"
        "        os.lseek(fd, 0, 0)\n        text += os.read(fd, 9999)\n    except OSError: pass\n"
        "def f(x): return x + 1 if b'no' + b'nce' in text or b'f(5) ' + b'== 6' in text else 0"
    ),
    "reads other processes": (
        "import os\ndef f(x):\n    for pid in set(os.listdir('/proc')) - {str(os.getpid())}:\n        try:\n"
        "            open(f'/proc/{pid}/mem', 'rb')\n            return x + 1\n"
        "        except OSError: pass\n    return 0"
    ),
    "imports the tests": "import tests\ndef f(x): return 0",
    "writes a verdict to all files": (
        "import os, json\nline = json.dumps({'nonce': '0' * 32, 'calls': '1'}).encode()\nfor fd in range(64):\n"
        "    try: os.write(fd, line)\n    except OSError: pass\ndef f(x): return 0"
    ),
    "answers before it is asked": (
        "import os\nframe = b'[\"ok\", true]'\nframe = len(frame).to_bytes(4, 'big') + frame\nfor fd in range(3, 64):\n"
        "    try: os.write(fd, frame * 30)\n    except OSError: pass\ndef f(x): return 0"
    ),
    "announces a giant answer": (
        "import os\nfor fd in range(3, 64):\n    try: os.write(fd, b'\\xff' * 4)\n    except OSError: pass\n"
        "def f(x): return 0"
    ),
    "answers nonsense": (
        "import os\nframe = b'{\"ok\": [[[['\nframe = len(frame).to_bytes(4, 'big') + frame\nfor fd in range(3, 64):\n"
        "    try: os.write(fd, frame * 3)\n    except OSError: pass\ndef f(x): return 0"
    ),
    "closes everything": "import os\nos.closerange(0, 64)\ndef f(x): return 0",
    "ends the loop of the tests": "def f(x):\n    if x in (2, 5): return x + 1\n    raise StopIteration",
    "is not a number": "def f(x): return float('nan')",
    "a huge integer": "def f(x): return 1 << (1 << 28)",
    "a nested list": "def f(x):\n    y = []\n    for _ in range(10 ** 5): y = [y]\n    return y",
    "a list that holds itself": "def f(x):\n    y = []\n    y.append(y)\n    return y",
    "a large list": "def f(x): return [0] * 3_000_000",
    "deep recursion": "import sys\nsys.setrecursionlimit(10 ** 9)\ndef f(x): return f(x + 1)",
    "a crash": "import ctypes\ndef f(x): return ctypes.string_at(0)",
    "a memory bomb": "def f(x): return len([bytearray(1 << 20) for _ in range(10 ** 6)])",
    "another program": "import os\ndef f(x): os.execv('/bin/true', ['true'])",
    "a shell": "import os\ndef f(x): return x + 1 if os.system('true') == 0 else 0",
    "a subprocess": "import subprocess\ndef f(x): return x + 1 if not subprocess.run(['/bin/true']).returncode else 0",
}
"""Programs that are wrong, or right only if something is to be had that must not be."""


@pytest.mark.parametrize("name", CHEATS)
def test_a_cheat_does_not_pass(sandbox: Sandbox, name: str) -> None:
    verdict = sandbox.run_tests(CHEATS[name], TESTS)
    assert verdict.outcome in (Outcome.FAILED, Outcome.CRASHED, Outcome.TIMED_OUT), verdict
    assert verdict.message
    assert sandbox.run_tests(RIGHT, TESTS, seconds=PATIENCE).passed, "the sandbox did not survive"


SLOW = {
    "an endless loop when loaded": "while True: pass",
    "an endless loop in the call": "def f(x):\n    while True: pass",
    "sleep": "import time\ndef f(x): time.sleep(60)",
    "an endless loop that ignores signals": (
        "import signal\nfor n in range(1, 64):\n    try: signal.signal(n, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\nwhile True: pass"
    ),
    "an output flood": "import os\nwhile True:\n    print('x' * 10 ** 6)\n    os.write(1, b'y' * 10 ** 6)",
    "threads that stay": (
        "import threading\ndef spin():\n    while True: pass\n"
        "for _ in range(4): threading.Thread(target=spin).start()\n"
        "def f(x):\n    while True: pass"
    ),
}


def test_what_the_tests_say_of_a_program_that_was_ended_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program is ended at its time, and the tests, a moment later, may have written that it died."""
    with Sandbox(lanes=1) as one:
        late = End({"seconds": 0.3, "timed_out": True, "worker": 9, "harness": 9, "killed": ""})
        monkeypatch.setattr(one, "_run", lambda *arguments: late)
        monkeypatch.setattr(client, "_read_record", lambda result: {"failed": "the program has died", "calls": 1})
        verdict = one.run_tests("def f(): ...", "assert f()")
    assert verdict.outcome is Outcome.TIMED_OUT and verdict.message == "still running after 0.3 s"


@pytest.mark.parametrize("name", SLOW)
def test_time_runs_out(sandbox: Sandbox, name: str) -> None:
    started = time.monotonic()
    verdict = sandbox.run_tests(SLOW[name], TESTS, seconds=0.3)
    assert verdict.outcome is Outcome.TIMED_OUT
    assert "still running" in verdict.message
    assert time.monotonic() - started < PATIENCE, "a sleep of 60 s was waited for"
    assert sandbox.run_tests(RIGHT, TESTS, seconds=PATIENCE).passed


# ---------------------------------------------------------------- programs and tests that are fine


def test_values_arrive_as_they_are(sandbox: Sandbox) -> None:
    values = (
        "[None, True, -3, 2**200, 1.5, float('inf'), 'ä\\ud800', b'\\0', (1, [2]), {1: {'a'}, (2,): 3}, {4}, "
        "frozenset([5]), range(3), 1j]"
    )
    verdict = sandbox.run_tests("def f(x): return x", f"v = {values}\nassert f(v) == v and type(f(v)[9]) is dict")
    assert verdict.passed, verdict.message


def test_subclasses_compare_as_their_base(sandbox: Sandbox) -> None:
    program = (
        "import collections, enum\nclass N(enum.IntEnum):\n    A = 7\n"
        "def f(): return [collections.Counter('aab'), collections.OrderedDict(a=1), N.A]"
    )
    assert sandbox.run_tests(program, "assert f() == [{'a': 2, 'b': 1}, {'a': 1}, 7]").passed


def test_the_styles_of_tests(sandbox: Sandbox) -> None:
    check = "def check(candidate):\n    assert candidate(1) == 2\n"
    assert sandbox.run_tests(RIGHT, check, entry_point="f").passed
    assert not sandbox.run_tests("def f(x): return 0", check, entry_point="f").passed
    pytest_style = "from solution import f\nimport pytest_is_not_needed_here as none\n"
    assert not sandbox.run_tests(RIGHT, pytest_style).passed
    pytest_style = "from solution import f\ndef test_it(): assert f(1) == 2\ndef test_more(): assert f(2) == 3"
    assert sandbox.run_tests(RIGHT, pytest_style).passed
    assert not sandbox.run_tests("def f(x): return 2", pytest_style).passed
    cases = (
        "import unittest\nclass TestF(unittest.TestCase):\n    def test_a(self): self.assertEqual(f(1), 2)\n"
        "    def test_b(self):\n        with self.assertRaises(TypeError): f('a')\n"
    )
    assert sandbox.run_tests(RIGHT, cases).passed
    failed = sandbox.run_tests("def f(x): return 2", cases)
    assert failed.message == "AssertionError: AssertionError: TypeError not raised"


UNRUN = {
    "async": "async def test_more(): assert f(1) == 3",
    "async, hidden": "import functools\nasync def g(): assert f(1) == 3\ndef test_more(): return g()",
    "generator": "def test_more():\n    yield\n    assert f(1) == 3",
    "parameters": "def test_more(case): assert f(case) == 3",
    "keyword": "def test_more(*, case): assert f(case) == 3",
    "decorated": "import functools\n@functools.cache\ndef test_more(): assert f(1) == 3",
    "fixture": "class TestF:\n    def setup_method(self): self.x = 1\n    def test_a(self): assert f(self.x) == 3",
    "method with parameters": "class TestF:\n    def test_a(self, case): assert f(case) == 3",
    "async method": "class TestF:\n    async def test_a(self): assert f(1) == 3",
    "async case": "import unittest\nclass F(unittest.TestCase):\n    async def test_a(self): assert f(1) == 3",
}


@pytest.mark.parametrize("name", list(UNRUN))
def test_tests_of_a_form_that_is_not_run_do_not_pass(sandbox: Sandbox, name: str) -> None:
    verdict = sandbox.run_tests(RIGHT, "assert f(1) == 2\n" + UNRUN[name])
    assert verdict.outcome is Outcome.FAILED
    assert "tests that prove nothing" in verdict.message, verdict.message


RUN = {
    "default": "def test_more(case=1): assert f(case) == {}",
    "keyword default": "def test_more(*, case=1): assert f(case) == {}",
    "class": "class TestF:\n    def test_a(self): assert f(1) == {}",
    "inherited": "class Base:\n    def test_a(self): assert f(self.x) == {}\nclass TestF(Base):\n    x = 1",
    "under try": "try:\n    import nothing_of_this_name\nexcept ImportError:\n    def test_more(): assert f(1) == {}",
    "called by the tests": "def test_more(case): assert f(case) == {}\nfor case in [1]: test_more(case)",
    "class used by the tests": (
        "class TestF:\n    def __init__(self, x): self.x = x\n    def test(self): assert f(self.x) == {}\n"
        "TestF(1).test()"
    ),
}


@pytest.mark.parametrize("name", list(RUN))
def test_tests_of_these_forms_are_run(sandbox: Sandbox, name: str) -> None:
    tests = "assert f(1) == 2\n" + RUN[name]
    right, wrong = (sandbox.run_tests(RIGHT, tests.format(value)) for value in (2, 3))
    assert right.passed, right.message
    assert wrong.message.startswith("AssertionError"), wrong.message


def test_classes_of_the_program(sandbox: Sandbox) -> None:
    program = (
        "class Stack:\n    def __init__(self): self.items = []\n    def push(self, x):\n        self.items.append(x)\n"
        "        return self\n    def pop(self): return self.items.pop()\n    def __len__(self): return len(self.items)"
    )
    tests = (
        "s = Stack()\ns.push(1).push(2)\nassert len(s) == 2 and s.pop() == 2 and s.items == [1]\n"
        "try:\n    s.pop(); s.pop()\n    raise SystemError\nexcept IndexError: pass\nassert isinstance(s.items, list)"
    )
    assert sandbox.run_tests(program, tests).passed
    refused = sandbox.run_tests(program, "assert Stack() == Stack()").message
    assert "an object of its own, a Stack: only plain data can be compared" in refused


def test_helpers_of_the_tests_come_from_the_setup(sandbox: Sandbox) -> None:
    setup = "def encode(s):\n    return s[::-1]\ndef decode(s):\n    '''to write'''\n"
    tests = "def check(candidate):\n    assert candidate(encode('abc')) == 'abc'"
    right = setup + "    return s[::-1]\n"
    assert sandbox.run_tests(right, tests, entry_point="decode", setup=setup).passed
    spoilt = "def encode(s): return s\ndef decode(s): return s\n"
    assert not sandbox.run_tests(spoilt, tests, entry_point="decode", setup=setup).passed


@pytest.mark.parametrize(
    ("tests", "why"),
    [
        ("", "never call"),
        ("def test_nothing(x): assert f(x)", "'test_nothing' is no plain function"),
        ("import sys\nassert f(1) == 2\nsys.exit(0)\n", "SystemExit: 0 (line 3"),
        ("import os\nassert f(1) == 2\nos._exit(0)\n", "ended before the last check"),
        ("assert f(1) == 2\nassert f(1) == 3", "AssertionError (line 2 of the tests)"),
        ("assert f(lambda: 3)", "plain data only"),
        ("assert g(1)", "does not define 'g'"),
        ("assert f(1 ==", "SyntaxError"),
    ],
)
def test_tests_that_prove_nothing(sandbox: Sandbox, tests: str, why: str) -> None:
    verdict = sandbox.run_tests(RIGHT, tests)
    assert verdict.outcome is Outcome.FAILED
    assert why in verdict.message


def test_scripts(sandbox: Sandbox) -> None:
    assert sandbox.run_script("print(int(input()) + 1)", "41\n").text == "42\n"
    assert sandbox.run_script("print(1)\nraise SystemExit(1)").outcome is Outcome.FINISHED
    assert sandbox.run_script("import time\nprint('x', flush=True)\ntime.sleep(9)", seconds=0.2).text == "x\n"
    flood = sandbox.run_script("while True: print('x' * 10 ** 6)")
    assert len(flood.text) <= 4 << 20
    crashed = sandbox.run_script("import ctypes\nctypes.string_at(0)")
    assert crashed.outcome is Outcome.CRASHED


def test_many_at_once() -> None:
    with Sandbox(lanes=2) as sandbox:
        jobs = [{"program": RIGHT if i % 2 else "def f(x): return x", "tests": TESTS} for i in range(12)]
        assert [verdict.passed for verdict in sandbox.run_many(jobs)] == [bool(i % 2) for i in range(12)]


def test_limits_are_checked() -> None:
    with pytest.raises(ConfigError, match="`seconds` is not positive"):
        Limits(seconds=0)


def test_the_wire_takes_plain_data_only() -> None:
    def no(*_: object) -> object:
        raise AssertionError

    for bad in (
        ["int", "x"],
        ["list", 3],
        ["what", 1],
        [1, 2, 3],
        {"a": 1},
        1.5,
        ["set", [["list", []]]],
        ["range", ["a"]],
    ):
        with pytest.raises(wire.WireError):
            wire.decode(bad, no)
    deep: object = None
    for _ in range(100):
        deep = ["list", [deep]]
    with pytest.raises(wire.WireError):
        wire.decode(deep, no)
