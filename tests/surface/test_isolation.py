"""The suite does not read what is the user's: his caches, his tokens, his terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain.models.folders.catalogue import cache_folder, is_here
from tests.conftest import FORGOTTEN, HOMES

SAY = """
import tests.conftest, os, sys
from huggingface_hub import constants
from posttrain.models.folders.catalogue import cache_folder
print(cache_folder(), constants.HF_HOME, os.path.expanduser("~"), sep="\\n")
print(*[name for name in tests.conftest.FORGOTTEN if name in os.environ])
"""


def test_a_test_has_a_home_of_its_own(tmp_path: Path) -> None:
    home = Path.home()
    assert home.is_dir() and home != HOMES and not any(home.rglob("*.json"))
    assert home in cache_folder().parents and not is_here("smollm2-135m-instruct")
    told = subprocess.run(
        [sys.executable, "-c", "import pathlib; print(pathlib.Path.home())"], capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == str(home)


@pytest.mark.parametrize("turn", [1, 2])
def test_no_test_finds_what_another_left(turn: int) -> None:
    left = cache_folder() / "left"
    assert not left.exists()
    left.mkdir(parents=True)


def test_full_caches_and_keys_of_the_user_are_not_seen(tmp_path: Path) -> None:
    """In a process that begins as the suite does, with everything set that a user may have set."""
    users = {name: str(tmp_path / "users") for name in (*FORGOTTEN, "HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")}
    inherited = {name: value for name, value in os.environ.items() if name != "POSTTRAIN_TEST_HOMES"}
    paths = {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONIOENCODING": "utf-8"}
    told = subprocess.run(
        [sys.executable, "-c", SAY],
        env={**inherited, **users, **paths, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    *places, left = told.stdout.split("\n")[:4]
    assert len(places) == 3 and not any("users" in place for place in places), told.stdout
    assert left == ""
