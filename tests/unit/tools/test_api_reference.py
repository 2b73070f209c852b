"""docs/api.md is what the package is, and its examples run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import posttrain as pt
from tools.api_reference import GROUPS, HEAD, api_reference

PAGE = Path(__file__).parents[3] / "docs" / "api.md"


def test_the_page_is_written_from_the_package() -> None:
    """After a change that is meant: python -m tools.api_reference > docs/api.md"""
    assert PAGE.read_text(encoding="utf-8") == api_reference()


def test_every_public_name_stands_under_one_heading() -> None:
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(pt.__all__)


@pytest.mark.slow
def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for example in re.findall(r"```python\n(.*?)```", HEAD, re.DOTALL):
        exec(compile(example, str(PAGE), "exec"), names)
    assert isinstance(names["again"], pt.Run) and names["again"].steps == 2
