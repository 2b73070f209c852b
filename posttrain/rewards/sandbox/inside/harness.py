"""The trusted side: the tests, to which the program under test is remote.

Tests run here as they stand: `assert f(2) == 4`, HumanEval's `check(candidate)`, `unittest` cases and pytest's `test_`
functions. What they call lives in another process; what comes back are fresh values of plain types, or a `Remote`,
which refuses to be compared. So an assertion compares with this side's `==`, whatever the program has redefined.

The nonce is written after the last check, by this process, to a file that no other process has. Tests that leave
early, tests that never call the program, and tests of a form that is not run here prove nothing and do not pass.
"""

from __future__ import annotations

import ast
import builtins
import io
import json
import os
import sys
import types
import unittest
from collections.abc import Iterator, Mapping
from typing import Any

from posttrain.rewards.sandbox.inside import wire
from posttrain.rewards.sandbox.inside.worker import read_all


class ProgramError(Exception):
    """The program failed outside of a test's reach: it does not load, has died, or answers nonsense."""


class ProgramDied(ProgramError):
    """Its end of the line is closed: it has ended, or is about to."""

    def __init__(self) -> None:
        super().__init__("the program has died")


LINE_CLOSED = 3
"""Exit code that tells the server so. Which side ended first says whose fault it was, and a process that was killed
closes its files a moment before its parent can see that it is dead."""


class ProvesNothing(Exception):
    """The tests hold some that are not run: that a program passes the others would say nothing of these."""

    def __init__(self, which: str):
        super().__init__(
            f"tests that prove nothing: {which}; what runs are statements, check(candidate), test_ functions without "
            "parameters, Test classes without fixtures, and unittest.TestCase"
        )


class Link:
    """The line to the program: one request, one answer."""

    def __init__(self, requests: int, answers: int):
        self.requests, self.answers = requests, answers
        self.calls = 0

    def greet(self) -> None:
        """Waits until the program has loaded."""
        kind, *rest = self._answer()
        if kind != "ok":
            raise ProgramError(f"the program does not load: {rest[0][0]}: {rest[1]}")

    def ask(self, operation: str, target: int | str, *arguments: Any) -> Any:
        # Encoded before anything is sent: an argument that is no plain data is the test's mistake, not the program's.
        encoded = [wire.encode(argument, _number) for argument in arguments]
        try:
            wire.send(self.requests, [operation, target, *encoded])
        except OSError:
            raise ProgramDied from None
        kind, *rest = self._answer()
        # Counted on this side: tests that never call the program would pass whatever it does.
        self.calls += operation == "call"
        if kind == "ok":
            return wire.decode(rest[0], lambda number, name: Remote(self, number, name))
        raise _local(rest[0], rest[1])

    def _answer(self) -> list[Any]:
        try:
            answer = wire.receive(self.answers)
        except (EOFError, OSError):
            raise ProgramDied from None
        if (
            not isinstance(answer, list)
            or answer[:1] not in (["ok"], ["error"])
            or len(answer) != (2 if answer[0] == "ok" else 3)
        ):
            raise ProgramError("the program answers what no answer looks like")
        if answer[0] == "error" and not (
            isinstance(answer[1], list)
            and answer[1]
            and all(isinstance(name, str) for name in answer[1])
            and isinstance(answer[2], str)
        ):
            raise ProgramError("the program answers what no answer looks like")
        return answer


_SWALLOWED = (StopIteration, StopAsyncIteration)
"""What ends a loop in silence: raised inside `all(map(test, cases))`, it would end the tests and pass."""


def _local(names: list[str], message: str) -> Exception:
    """The program's exception as the built-in one that it derives from, for tests that expect it."""
    for name in names:
        known = vars(builtins).get(name)
        if isinstance(known, type) and issubclass(known, Exception) and not issubclass(known, _SWALLOWED):
            try:
                return known(f"{names[0]}: {message}" if name != names[0] else message)
            except TypeError:  # UnicodeDecodeError and ExceptionGroup take more than a message
                continue
    return RuntimeError(f"{names[0]}: {message}")


class Remote:
    """A function or an object of the program; it may be called and asked, and never compared."""

    __slots__ = ("_kind", "_link", "_number")

    def __init__(self, link: Link, number: int, kind: str):
        object.__setattr__(self, "_link", link)
        object.__setattr__(self, "_number", number)
        object.__setattr__(self, "_kind", kind)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self._link.ask("call", self._number, list(arguments), keywords)

    def __getattr__(self, name: str) -> Any:
        # copy, pickle and unittest look for special methods, which would be a call to the program each.
        if name.startswith("__"):
            raise AttributeError(name)
        return self._link.ask("attribute", self._number, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._link.ask("assign", self._number, name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._link.ask("item", self._number, key)

    def __contains__(self, value: Any) -> bool:
        return _exactly(bool, self._link.ask("contains", self._number, value))

    def __len__(self) -> int:
        return _exactly(int, self._link.ask("length", self._number))

    def __iter__(self) -> Iterator[Any]:
        return iter(_exactly(list, self._link.ask("list", self._number)))

    def __str__(self) -> str:
        return _exactly(str, self._link.ask("text", self._number))

    def __repr__(self) -> str:
        return _exactly(str, self._link.ask("shown", self._number))

    def _refuse(self, *_: Any) -> Any:
        raise TypeError(f"the program gave an object of its own, a {self._kind}: only plain data can be compared")

    # A program could otherwise give an object whose `__eq__` says yes to everything.
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __bool__ = __hash__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __mod__ = __rmod__ = _refuse


def _number(value: object) -> int:
    if isinstance(value, Remote):
        return object.__getattribute__(value, "_number")
    raise TypeError(f"a test can give the program plain data only, and this is a {type(value).__name__}")


def _exactly(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise TypeError(f"the program gave a {type(value).__name__} where a {kind.__name__} belongs")
    return value


# ---------------------------------------------------------------- running the tests


def judge(job_fd: int, result_fd: int, requests: int, answers: int) -> None:
    """Runs the tests and writes what came of them: {"nonce": ...} for a pass, {"failed": why} for all else."""
    job: Mapping[str, str] = json.loads(read_all(job_fd))
    link = Link(requests, answers)
    closed = False
    try:
        _run(job, link)
        # The nonce proves that this process came to its end: a program can print "passed", but has never seen it.
        verdict = {"nonce": job["nonce"]} if link.calls else {"failed": "the tests never call the program"}
    except ProgramError as error:
        verdict = {"failed": str(error)}
        closed = isinstance(error, ProgramDied)
    except BaseException as error:  # the boundary: a failed check, a wrong test, an early exit
        verdict = {"failed": _described(error)}
    verdict["calls"] = str(link.calls)
    os.write(result_fd, json.dumps(verdict).encode())
    if closed:
        raise SystemExit(LINE_CLOSED)


def _run(job: Mapping[str, str], link: Link) -> None:
    setup = types.ModuleType("setup_of_tests")
    # Before the program is asked anything, so that a setup that fails is the row's fault.
    exec(compile(job["setup"], "setup.py", "exec"), setup.__dict__)
    tree = ast.parse(job["tests"], "tests.py")
    link.greet()
    module = types.ModuleType("tests")
    sys.modules["tests"] = module
    vars(module).update({name: value for name, value in vars(setup).items() if not name.startswith("__")})
    _offer_solution(link)
    entry = job["entry_point"]
    # Only what nobody on this side defines: a test's own helper of the same name is not the program's.
    for name in _missing(tree, vars(module)) | ({entry} if entry else set()):
        vars(module)[name] = _of_program(link, name)
    exec(compile(tree, "tests.py", "exec"), vars(module))
    check = vars(module).get("check")
    if entry and isinstance(check, types.FunctionType):
        check(vars(module)[entry])
    _run_cases(module, tree)


def _run_cases(module: types.ModuleType, tree: ast.Module) -> None:
    """pytest's functions and classes and unittest's cases, if the tests are written so.

    Raises:
        ProvesNothing: tests of a form that is not run here, which the tests do not run themselves either. To leave
            them out would let a wrong program pass.
    """
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    suite = unittest.TestSuite()
    for node in _definitions(tree.body):
        value = vars(module).get(node.name)
        if isinstance(value, type) and issubclass(value, unittest.TestCase):
            cases = unittest.defaultTestLoader.loadTestsFromTestCase(value)
            if not issubclass(value, unittest.IsolatedAsyncioTestCase):
                _refuse_unrun(node.name, value)
            suite.addTest(cases)
        elif isinstance(value, type) and node.name.startswith("Test") and not issubclass(value, Exception):
            if node.name not in used:
                _run_class(node.name, value)
        elif value is not None and isinstance(node, _FUNCTIONS) and node.name.startswith("test"):
            if isinstance(value, types.FunctionType) and _runs_alone(value):
                _run_function(value, node.name)
            elif node.name not in used:
                raise ProvesNothing(f"{node.name!r} is no plain function without parameters")
    if suite.countTestCases():
        result = unittest.TextTestRunner(stream=io.StringIO()).run(suite)
        # A skipped test proves nothing, and `unittest` calls it a success.
        if not result.wasSuccessful() or result.skipped:
            faults = [text.strip().splitlines()[-1] for _, text in [*result.failures, *result.errors, *result.skipped]]
            raise AssertionError("; ".join(faults[:3]) or "a test case failed")


_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_LATER = (types.CoroutineType, types.GeneratorType, types.AsyncGeneratorType)
"""What a call gives that has not run the function's body."""
_YIELDS = 0x20 | 0x80 | 0x200
"""Flags of the code of generators, coroutines and asynchronous generators."""
_FIXTURES = ("__init__", "setup_class", "setup_method", "setup", "teardown_class", "teardown_method", "teardown")


def _definitions(body: list[ast.stmt]) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """Functions and classes that the tests define at their outermost level, under `if` and `try` as well."""
    for node in body:
        if isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
            yield node
            continue
        for part in ("body", "orelse", "finalbody"):
            yield from _definitions(vars(node).get(part, []))
        for handler in vars(node).get("handlers", []):
            yield from _definitions(handler.body)


def _runs_alone(value: object, bound: int = 0) -> bool:
    """A function that takes nothing, beside `bound` arguments and those with defaults, and runs when it is called."""
    if not isinstance(value, types.FunctionType) or value.__code__.co_flags & _YIELDS:
        return False
    code = value.__code__
    places = max(code.co_argcount - bound, 0) - len(value.__defaults__ or ())
    return places <= 0 and code.co_kwonlyargcount == len(value.__kwdefaults__ or {})


def _run_function(function: types.FunctionType, name: str, *arguments: object) -> None:
    if type(function(*arguments)) in _LATER:  # a decorator hid what it is
        raise ProvesNothing(f"{name!r} gives a coroutine or a generator, which nothing runs")


def _run_class(name: str, kind: type) -> None:
    """pytest's classes: each test on an object of its own."""
    fixtures = [one for one in _FIXTURES if vars(object).get(one) is not _held(kind, one)]
    if fixtures:
        raise ProvesNothing(f"{name!r} is no unittest.TestCase and has {fixtures[0]!r}, which is not run")
    _refuse_unrun(name, kind)
    for method in _methods(kind):
        function = _held(kind, method)
        assert isinstance(function, types.FunctionType)
        _run_function(function, f"{name}.{method}", kind())


def _refuse_unrun(name: str, kind: type) -> None:
    for method in _methods(kind):
        if not _runs_alone(_held(kind, method), bound=1):
            raise ProvesNothing(f"{name}.{method} is no plain method without parameters")


def _methods(kind: type) -> list[str]:
    return [name for name in dir(kind) if name.startswith("test") and callable(_held(kind, name))]


def _held(kind: type, name: str) -> object:
    """The attribute as the class or its bases hold it, unbound; None where there is none."""
    # Not getattr: it would bind, or run a descriptor of the tests.
    return next((vars(base)[name] for base in kind.__mro__ if name in vars(base)), None)


def _offer_solution(link: Link) -> None:
    """`from solution import f` in the tests gives the remote f."""

    class Solution(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return _of_program(link, name)

    sys.modules["solution"] = Solution("solution")


def _of_program(link: Link, name: str) -> Any:
    try:
        return link.ask("name", name)
    except KeyError:
        raise ProgramError(f"the program does not define {name!r}") from None


def _missing(tree: ast.Module, known: Mapping[str, Any]) -> set[str]:
    """Names that the tests use and nobody on this side defines: those are the program's."""
    used, bound = set[str](), set[str](known) | set(vars(builtins)) | {"__name__", "__file__"}
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Load()):
                used.add(name)
            case ast.Name(id=name):
                bound.add(name)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                bound.add(name)
            case ast.arg(arg=name):
                bound.add(name)
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                bound |= {(alias.asname or alias.name).split(".")[0] for alias in names}
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                bound.add(name)
    return used - bound


def _described(error: BaseException) -> str:
    """The exception, and the line of the tests that raised it."""
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "tests.py":
            line = trace.tb_lineno
        trace = trace.tb_next
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return text[:500] + (f" (line {line} of the tests)" if line else "")
