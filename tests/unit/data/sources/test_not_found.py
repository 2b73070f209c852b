"""What is said of names under which no rows lie: empty ones, links that lead nowhere, addresses."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.data.sources.files import open_sources
from posttrain.errors import SourceError


def refusal(name: str) -> SourceError:
    with pytest.raises(SourceError) as caught:
        open_sources(name)
    return caught.value


@pytest.mark.parametrize("name", ["", "  "])
def test_an_empty_name_is_not_the_working_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`posttrain audit "$ROWS"` with an unset variable read whatever lay in the working folder."""
    (tmp_path / "other.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    monkeypatch.chdir(tmp_path)
    assert "empty" in refusal(name).problem


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("https://me:hu/sh@hush@host/rows.jsonl?signature=hush", "curl"),
        ("s3://bucket/*.jsonl", "the tool for `s3://`"),
        ("hf://datasets/owner/name", "`owner/name`"),
        ("https://huggingface.co/datasets/owner/name", "`owner/name`"),
        ("file:///data/rows.jsonl", "`/data/rows.jsonl`"),
    ],
)
def test_an_address_is_answered_with_what_to_do_and_without_its_credential(name: str, remedy: str) -> None:
    error = refusal(name)
    assert remedy in error.remedy
    assert "hush" not in str(error)
    assert "sh@" not in str(error)


@pytest.mark.parametrize(("name", "said"), [("a", "back to itself"), ("b", "back to itself"), ("c", "not there")])
def test_a_link_that_leads_nowhere_is_not_answered_with_its_own_name(name: str, said: str, tmp_path: Path) -> None:
    for link, target in ["ab", "ba", "cd"]:
        (tmp_path / f"{link}.jsonl").symlink_to(f"{target}.jsonl")
    error = refusal(str(tmp_path / f"{name}.jsonl"))
    assert said in str(error.found)
    assert "did you mean" not in error.remedy


def test_a_link_to_a_file_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "real.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (tmp_path / "link.jsonl").symlink_to("real.jsonl")
    (source,) = open_sources(str(tmp_path / "link.jsonl"))
    assert len(list(source.rows())) == 1
