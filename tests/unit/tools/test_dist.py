"""What goes into wheel and sdist, without building them: `make dist` builds, compares and installs them."""

from __future__ import annotations

import pytest

from tools.dist import BESIDE, ROOT, look, package_data, package_files, unpacked
from tools.dockerfile import faults


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


FAULTS = {
    "DL3006": ("FROM python:3.12-slim-bookworm", "FROM python"),
    "DL3007": ("python:3.12-slim-bookworm", "python:latest"),
    "DL3008": ("# hadolint ignore=DL3008\n", ""),
    "DL3009": ("    && rm -rf /var/lib/apt/lists/*", "    && true"),
    "DL3014": (" --yes", ""),
    "DL3015": (" --no-install-recommends", ""),
    "DL3042": (" --no-cache-dir", ""),
    "DL3013": (" --constraint constraints.txt", ""),
    "DL3003": ("&& mkdir /workspace", "&& cd /workspace"),
    "DL3004": ("&& mkdir /workspace", "&& sudo mkdir /workspace"),
    "DL3002": ("USER 1000", "USER root"),
    "DL3000": ("WORKDIR /src", "WORKDIR src"),
    "DL3020": ("COPY posttrain", "ADD posttrain"),
    "DL3025": ('ENTRYPOINT ["posttrain"]', "ENTRYPOINT posttrain"),
    "DL4003": ('CMD ["--help"]', 'CMD ["--help"]\nCMD ["run"]'),
    "DL1000": ("WORKDIR /src", "WORKDIRS /src"),
    "SC2154": ("ARG EXTRAS=audit,rl,serve\n", ""),
}
"""Rule -> a change of our own Dockerfile that breaks it."""


def test_the_dockerfile_breaks_no_rule_of_hadolint_s_and_each_rule_can_be_broken() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert faults(text) == []
    for rule, (good, bad) in FAULTS.items():
        assert good in text, rule
        assert any(line.startswith(rule) for line in faults(text.replace(good, bad))), rule
