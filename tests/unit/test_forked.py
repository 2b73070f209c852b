"""Forked processes are fresh ones: nothing of the test, of posttrain or of each other is in them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from posttrain.models.folders import export
from tests.forked import Forked
from tests.read_back import OWN_INTERPRETER, forked, in_own_interpreter

PATIENCE = 120.0


def started(folder: Path, text: str, **variables: str) -> Forked:
    (folder / "script.py").write_text(text)
    return Forked(folder / "script.py", folder / "an argument", folder / "words.txt", {**os.environ, **variables})


def test_a_process_is_a_scripts_own(tmp_path: Path) -> None:
    text = """
import os, sys
print(__name__, sys.argv[1], os.environ["ASKED"], os.getpid(), os.getppid())
print(*sorted({name.split(".")[0] for name in sys.modules} & {"posttrain", "pytest", "transformers"}))
print(hasattr(sys, "left_by_another"), "TEST" in os.environ)
sys.left_by_another = True
"""
    os.environ.pop("TEST", None)
    for _ in range(2):  # the second finds nothing of the first
        assert started(tmp_path, text, ASKED="yes").wait(PATIENCE) == 0
        first, packages, left = (tmp_path / "words.txt").read_text().splitlines()
        assert first.startswith(f"__main__ {tmp_path / 'an argument'} yes ")
        assert not {first.split()[-1], first.split()[-2]} & {str(os.getpid())}
        assert packages == "transformers" and left == "False False"
        (tmp_path / "words.txt").unlink()


def test_an_error_ends_it_and_is_its_last_word(tmp_path: Path) -> None:
    process = started(tmp_path, "raise ValueError('no such weights')")
    assert process.wait(PATIENCE) == 1 == process.poll()
    assert (tmp_path / "words.txt").read_text().strip().splitlines()[-1] == "ValueError: no such weights"


def test_one_that_does_not_end_is_waited_for_no_longer_and_killed(tmp_path: Path) -> None:
    process = started(tmp_path, "import time\ntime.sleep(600)")
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.05)
    assert process.poll() is None
    process.kill()
    assert process.wait(PATIENCE) != 0


def test_the_suite_reads_back_by_them_and_users_by_an_interpreter() -> None:
    assert export._start is forked  # type: ignore[comparison-overlap]
    with in_own_interpreter():
        assert export._start is OWN_INTERPRETER and OWN_INTERPRETER.__module__ == export.__name__
    assert export._start is forked  # type: ignore[comparison-overlap]
