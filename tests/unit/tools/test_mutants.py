"""The tool that plants faults: what it changes, what it leaves alone, and that its plan names files that are there."""

from __future__ import annotations

import json
import sys

import pytest

from tools.mutants import mutants_of
from tools.mutate import EQUIVALENT, PLAN, ROOT, _Planted, cases_of, files_of


@pytest.mark.parametrize(
    ("source", "changes"),
    [
        ("a = b < c\n", ["< -> <="]),
        ("a = (b) - (c)\n", ["- -> +"]),
        ("a = not b\n", ["not b -> b"]),
        ("a = b and c\n", ["and -> or"]),
        ("a = x.detach()\n", [".detach() dropped"]),
        ("a = max(b, 1)\n", ["max -> min", "1 -> 2"]),
        ("a = 'ü' < b\n", ["< -> <="]),
        ("if a:\n    raise ValueError\n", ["a -> False"]),
        ("a = [b for b in c if b]\n", ["b -> True"]),
        ("a: int = 1\n", ["1 -> 2"]),
        ('"""1 < 2"""\nimport a\n', []),
        ("a = 'b' + c\n", []),
    ],
)
def test_what_is_planted(source: str, changes: list[str]) -> None:
    mutants = mutants_of(source)
    assert sorted(mutant.change for mutant in mutants) == sorted(changes)
    for mutant in mutants:
        assert mutant.source != source and mutant.line <= source.count("\n")
        compile(mutant.source, "mutant", "exec")


def test_a_mutant_is_imported_in_the_place_of_the_file() -> None:
    path = "posttrain/losses/reduce.py"
    source = (ROOT / path).read_text(encoding="utf-8") + "\nPLANTED = True\n"
    spec = _Planted(path, source).find_spec("posttrain.losses.reduce")
    assert spec is not None and spec.loader is not None
    module = type(sys)("posttrain.losses.reduce")
    module.__spec__ = spec
    sys.modules[spec.name], before = module, sys.modules.get(spec.name)  # dataclasses look themselves up there
    try:
        spec.loader.exec_module(module)
    finally:
        if before is None:
            del sys.modules[spec.name]
        else:
            sys.modules[spec.name] = before
    assert module.PLANTED and not hasattr(before, "PLANTED")


def test_the_plan_is_true() -> None:
    for area, plan in PLAN.items():
        assert files_of(area) and all((ROOT / path).is_file() for path in plan.sources), area
    cases, _ = cases_of(list(PLAN), 100, seed=0)
    again, _ = cases_of(list(PLAN), 100, seed=0)
    assert [str(case) for case in cases] == [str(case) for case in again] and 80 < len(cases) <= 100


def test_equivalent_mutants_are_lines_of_the_source() -> None:
    """An entry whose line is gone would silence nothing, and hide that it is stale."""
    for entry in json.loads(EQUIVALENT.read_text(encoding="utf-8")):
        lines = [line.strip() for line in (ROOT / entry["path"]).read_text(encoding="utf-8").splitlines()]
        assert entry["line"] in lines, entry
        assert len(entry["reason"]) > 10
