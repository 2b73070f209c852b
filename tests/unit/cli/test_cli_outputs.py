"""A place that cannot be written to is told before anything is computed for it."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from posttrain.cli.app import app
from posttrain.cli.outputs import check_out, check_out_folder
from posttrain.errors import ConfigError


def test_nothing_is_left_of_the_try(tmp_path: Path) -> None:
    check_out(tmp_path / "new" / "deep" / "x.jsonl")
    check_out_folder(tmp_path / "new" / "model", "the model")
    (tmp_path / "there.jsonl").write_text("old")
    check_out(tmp_path / "there.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["there.jsonl"]
    assert (tmp_path / "there.jsonl").read_text() == "old"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a folder that holds no files of ours")
def test_a_folder_that_holds_no_files_is_refused() -> None:
    """Also to the one who may write everywhere."""
    with pytest.raises(ConfigError, match="cannot be written there") as refused:
        check_out(Path("/proc/nowhere/out.jsonl"))
    assert "/proc/nowhere" in str(refused.value.found)


def test_a_disk_that_refuses_is_told_in_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(path: Path, *arguments: Any, **options: Any) -> Any:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "open", refusing)
    with pytest.raises(ConfigError) as refused:
        check_out(tmp_path / "x.jsonl")
    assert "Read-only" in str(refused.value) and "on another one" in refused.value.remedy


@pytest.mark.parametrize(
    "arguments",
    [
        ["score", "no-model", "rows.jsonl", "--out", "file/out.jsonl"],
        ["audit", "rows.jsonl", "--fix", "file/fixed.jsonl"],
        ["audit", "rows.jsonl", "--out", "file"],
        ["merge", "no-model", "file"],
        ["generate", "no-model", "--prompts", "rows.jsonl", "--out", "file/out.jsonl"],
        ["compare", "no-model", "no-model", "--prompts", "rows.jsonl", "--out", "file/out.jsonl"],
    ],
    ids=lambda arguments: " ".join(arguments[::3]),
)
def test_every_verb_looks_before_it_loads(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2 and "cannot be written there" in result.stderr


def test_an_option_is_not_taken_for_the_name_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`audit pairs.jsonl --fix --out page` wrote the cleaned copy into a file called `--out`."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="cannot be written there") as refused:
        check_out(Path("--out"))
    assert "option" in str(refused.value.found)


@pytest.mark.parametrize("name", ["/dev/null", "/dev/stdout"])
def test_a_device_is_not_replaced_by_a_file(name: str) -> None:
    """A file that is renamed to /dev/null takes the device's place, for every program of the machine."""
    with pytest.raises(ConfigError, match="cannot be written there") as refused:
        check_out(Path(name))
    assert "device" in str(refused.value.found)


def test_a_pipe_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        with pytest.raises(ConfigError, match="cannot be written there"):
            check_out(tmp_path / name)
