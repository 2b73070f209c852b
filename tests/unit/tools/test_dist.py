"""What goes into wheel and sdist, without building them: `make dist` builds, compares and installs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tools.dist import BESIDE, ROOT, look, package_data, package_files, unpacked


@pytest.mark.skipif(
    not (ROOT / ".git").exists(), reason="git says which files are the package's, and this is no checkout"
)
def test_every_file_of_the_package_is_taken_along() -> None:
    files = package_files()
    assert len(files) > 800
    assert unpacked(files, package_data()) == [], "add its ending to package-data in pyproject.toml"
    # A stray file beside the code would travel to every user.
    kinds = {name.rpartition(".")[2] for name in files}
    assert kinds <= {"py", "typed", "jsonl", "json", "yaml", "safetensors", "jinja", "md", "css", "js"}, kinds


def test_a_file_that_no_pattern_takes_is_found() -> None:
    assert unpacked(["posttrain/a.py", "posttrain/x/b.jsonl", "posttrain/x/c.bin"], ["**/*.jsonl"]) == [
        "posttrain/x/c.bin"
    ]


def test_junk_and_gaps_are_found() -> None:
    names = [
        "posttrain/",
        "posttrain/a.py",
        "posttrain/a.pyc",
        "tests/x.py",
        "posttrain-0.1.dist-info/RECORD",
        "LICENSE",
    ]
    assert look(names, ["posttrain/a.py", "posttrain/b.py"], ["LICENSE"]) == [
        "junk: posttrain/a.pyc",
        "junk: tests/x.py",
        "missing: posttrain/b.py",
    ]


def test_what_the_sdist_adds_is_there() -> None:
    made = {"PKG-INFO", "setup.cfg"}
    assert all((ROOT / name).is_file() for name in BESIDE if name not in made)


def test_the_container_copies_what_it_needs_and_no_more() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    allowed = {
        line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").split() if line.startswith("!")
    }
    copied = {word for line in text.splitlines() if line.startswith("COPY ") for word in line.split()[1:-1]}
    assert copied == allowed
    assert "USER 1000" in text and "torch==2.13.0" in text


HADOLINT = Path(sys.executable).with_name("hadolint")
FAULTS = (
    ("FROM python:3.12-slim-bookworm", "FROM python"),
    ("python:3.12-slim-bookworm", "python:latest"),
    ("# hadolint ignore=DL3008\n", ""),
    (" --no-install-recommends", ""),
    (" --no-cache-dir", ""),
    ("&& mkdir /workspace", "&& sudo mkdir /workspace"),
    ("USER 1000", "USER root"),
    ("WORKDIR /src", "WORKDIR src"),
    ("COPY posttrain", "ADD posttrain"),
    ('ENTRYPOINT ["posttrain"]', "ENTRYPOINT posttrain"),
    ("WORKDIR /src", "WORKDIRS /src"),
)
"""Changes of our own Dockerfile that break it."""


@pytest.mark.skipif(not HADOLINT.exists(), reason="hadolint comes for Linux on x86-64 alone")
def test_the_dockerfile_is_linted_and_a_fault_in_it_is_found() -> None:
    def ends(text: str) -> int:
        return subprocess.run([HADOLINT, "-"], input=text, text=True, capture_output=True, check=False).returncode

    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert ends(text) == 0
    for good, bad in FAULTS:
        assert good in text and ends(text.replace(good, bad)) != 0, bad
