"""Plants faults into the package and says which of them no test notices.

    python -m tools.mutate                                    # the plan below: 100 mutants, seeded
    python -m tools.mutate --area advantages --sample 0       # every mutant of one area
    python -m tools.mutate --area losses --sample 20 --seed 3

Each mutant (`tools/mutants.py`) runs the tests of its area in a process of its own, which is forked after torch is
loaded; the first failing test ends it. A mutant is *killed* by a failing test or by time, it *lives* if all pass.
Mutants that no test can kill, because they compute the same, are listed with their reasons in
`tools/equivalent_mutants.json` by file, line's text and change; they are counted apart.

The exit code is 1 if a mutant lives.
"""

from __future__ import annotations

import argparse
import importlib.abc
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from tools.mutants import Mutant, mutants_of

ROOT = Path(__file__).resolve().parents[1]
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.json")


@dataclass(frozen=True, slots=True)
class Area:
    """Sources, and the tests that ought to notice a fault in them."""

    sources: tuple[str, ...]
    tests: tuple[str, ...]


def _contracts(*numbers: str) -> tuple[str, ...]:
    return tuple(f"tests/contracts/test_t{number}_*.py" for number in numbers)


PLAN: dict[str, Area] = {
    "advantages": Area(
        ("posttrain/advantages.py",),
        (
            "tests/unit/test_advantages.py",
            "tests/unit/training/rl/test_online_credit.py",
            *_contracts("39", "40", "42", "44"),
        ),
    ),
    "losses": Area(
        tuple(
            f"posttrain/losses/{name}.py"
            for name in ("pairwise", "links", "feedback", "sft", "policy", "surrogates", "kl", "reward", "value")
        ),
        (
            "tests/unit/losses/test_losses_*.py",
            "tests/unit/training/test_losses_algorithms.py",
            "tests/unit/models/tree/test_divergence.py",
            "tests/invariance/test_loss_*.py",
            *_contracts("45", "55"),
        ),
    ),
    "masks": Area(
        ("posttrain/data/templates/drafts.py", "posttrain/data/trees.py"),
        (
            "tests/unit/data/test_encode_[prt]*.py",
            "tests/unit/training/stages/test_tree_columns.py",
            *_contracts("0[1-9]", "19", "53", "21"),
        ),
    ),
    "denominators": Area(
        ("posttrain/losses/reduce.py", "posttrain/training/step.py"),
        (
            *(
                "tests/unit/losses/test_losses_reduce.py",
                "tests/unit/training/test_step_coupling.py",
                "tests/unit/training/test_loop.py",
            ),
            *_contracts("16", "22", "23", "49"),
        ),
    ),
    "truncation": Area(
        ("posttrain/data/truncate.py",), ("tests/unit/data/test_encode_truncate.py", *_contracts("15", "33", "54"))
    ),
    "export": Area(
        ("posttrain/models/folders/export.py", "posttrain/models/folders/manifest.py"),
        ("tests/unit/models/folders/test_export.py", *_contracts("62")),
    ),
    "checkpoints": Area(
        ("posttrain/training/checkpoint.py",), ("tests/unit/training/test_checkpoint.py", *_contracts("64"))
    ),
    "refusals": Area(
        ("posttrain/config/online.py", "posttrain/config/stages.py", "posttrain/rollout/native.py"),
        (
            "tests/unit/config/test_config*.py",
            "tests/unit/config/test_online_config.py",
            "tests/unit/rollout/test_native_engine.py",
        ),
    ),
}


@dataclass(frozen=True, slots=True)
class Case:
    """One mutant with the tests that look at it."""

    area: str
    path: str
    mutant: Mutant

    @property
    def original(self) -> str:
        """The line that it changes, as the source has it."""
        return (ROOT / self.path).read_text(encoding="utf-8").splitlines()[self.mutant.line - 1].strip()

    def __str__(self) -> str:
        return f"{self.path}:{self.mutant.line}  {self.mutant.change}    {self.original[:90]}"


class _Planted(importlib.abc.MetaPathFinder):
    """Imports one module from a changed text, and leaves the file alone."""

    def __init__(self, path: str, source: str):
        self.name = path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        self.path, self.source = str(ROOT / path), source

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, _Text(self), origin=self.path) if fullname == self.name else None


class _Text(importlib.abc.Loader):
    """Runs the text in the module; tracebacks show it under the file's own name."""

    def __init__(self, planted: _Planted):
        self.planted = planted

    def exec_module(self, module: ModuleType) -> None:
        module.__file__ = self.planted.path
        exec(compile(self.planted.source, self.planted.path, "exec"), module.__dict__)


def files_of(area: str) -> list[str]:
    """The files of an area's patterns; a pattern that matches nothing is a mistake in the plan."""
    files = []
    for pattern in PLAN[area].tests:
        matched = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(pattern))
        if not matched:
            raise SystemExit(f"no test matches {pattern} (area {area})")
        files += matched
    return files


def cases_of(areas: Sequence[str], sample: int, seed: int) -> tuple[list[Case], list[tuple[Case, str]]]:
    """The mutants to run, evenly over the areas, and those that are known to change nothing (with the reason)."""
    known = {(e["path"], e["line"], e["change"]): e["reason"] for e in json.loads(EQUIVALENT.read_text())}
    run: list[Case] = []
    equivalent: list[tuple[Case, str]] = []
    for index, area in enumerate(areas):
        cases = [
            Case(area, path, mutant)
            for path in PLAN[area].sources
            for mutant in mutants_of((ROOT / path).read_text(encoding="utf-8"))
        ]
        share = len(cases) if not sample else (sample + index) // len(areas)
        for case in random.Random(f"{seed} {area}").sample(cases, min(share, len(cases))):
            reason = known.get((case.path, case.original, case.mutant.change))
            if reason is None:
                run.append(case)
            else:
                equivalent.append((case, reason))
    return run, equivalent


def start(case: Case | None, area: str) -> int:
    """Forks a process that runs the area's tests on the mutant (None: on the source); returns its number."""
    child = os.fork()
    if child:
        return child
    os.setsid()
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    if case is not None:
        sys.meta_path.insert(0, _Planted(case.path, case.mutant.source))
    import pytest

    # Plugins came in with the libraries that are loaded before the fork; pytest warns, and here warnings are errors.
    options = [
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "-W",
        "ignore::pytest.PytestAssertRewriteWarning",
    ]
    os._exit(int(pytest.main([*options, *files_of(area)])))


def verdict_of(child: int, limit: float) -> str:
    """killed, lives, or time: the process is ended after `limit` seconds."""
    until = time.monotonic() + limit
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return "lives" if os.waitstatus_to_exitcode(status) == 0 else "killed"
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "time"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--area", action="append", choices=list(PLAN), help="repeatable; all if left out")
    parser.add_argument("--sample", type=int, default=100, help="how many mutants; 0 for every one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--list", action="store_true", help="show the mutants and run nothing")
    options = parser.parse_args(arguments)
    areas = options.area or list(PLAN)
    cases, equivalent = cases_of(areas, options.sample, options.seed)
    if options.list:
        print(*cases, sep="\n")
        return 0
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["POSTTRAIN_TEST_HOMES"] = tempfile.mkdtemp(prefix="mutants-")
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    import peft  # noqa: F401 - loaded once, before the forks
    import torch  # noqa: F401
    import transformers  # noqa: F401

    limits: dict[str, float] = {}
    for area in areas:
        began = time.monotonic()
        if verdict_of(start(None, area), 900.0) != "lives":
            raise SystemExit(f"the tests of {area} fail on the source itself")
        limits[area] = 3 * (time.monotonic() - began) + 20
        print(f"{area}: {time.monotonic() - began:.0f} s of tests", flush=True)
    counts: Counter[str] = Counter()
    for case in cases:
        verdict = verdict_of(start(case, case.area), limits[case.area])
        counts[verdict] += 1
        print(f"{verdict:<7} {case}", flush=True)
    print(f"\n{len(cases)} mutants: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common()))
    print(f"{len(equivalent)} more are known to change nothing")
    return 1 if counts["lives"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
