"""T24: a bad row ends the reading with a message that says where, what was found, what was expected, what to do.

1,000 rows, row 417 has the role "user" where "human" is mapped; another file lacks "messages".

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from posttrain.data import read
from posttrain.errors import RowError


def write_rows(path: Path, first: str, second: str, keys: tuple[str, str], column: str, odd: str) -> Path:
    """1,000 conversations; in row 417 the first turn's role is `odd`."""
    with path.open("w") as file:
        for number in range(1, 1001):
            turns = [
                {keys[0]: odd if number == 417 else first, keys[1]: f"question {number}"},
                {keys[0]: second, keys[1]: f"answer {number}"},
            ]
            file.write(json.dumps({column: turns}) + "\n")
    return path


@pytest.mark.parametrize(
    ("keys", "column", "options"),
    [
        (("from", "value"), "conversations", {}),
        (("from", "value"), "conversations", {"roles": {"human": "user", "gpt": "assistant"}}),
        (("role", "content"), "messages", {"roles": {"human": "user", "gpt": "assistant"}}),
        (("role", "content"), "messages", {"roles": {"human": "user", "gpt": "assistant"}, "format": "chat"}),
    ],
)
def test_t24_unmapped_role(keys: tuple[str, str], column: str, options: dict[str, Any], tmp_path: Path) -> None:
    path = write_rows(tmp_path / "chats.jsonl", "human", "gpt", keys, column, odd="user")
    with pytest.raises(RowError) as caught:
        read(path, **options)
    text = str(caught.value)
    assert caught.value.reason == "unknown_role"
    assert f"{path}, row 417: " in text
    assert f"`{keys[0]}`: 'user'" in text and f"the row's keys: '{column}'" in text  # found
    assert "one of " in text and "'human'" in text and "'gpt'" in text  # expected
    assert "roles: {human: user, user: user}" in text  # what to do

    assert len(read(path, **{**options, "roles": {"human": "user", "user": "user", "gpt": "assistant"}})) == 1000
    counts = read(path, **options, bad_rows="skip").counts
    assert (counts.read, counts.kept, counts.skipped) == (1000, 999, {"unknown_role": 1})


def test_t24_no_messages(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "chats.jsonl", "user", "assistant", ("role", "content"), "dialog", odd="user")
    for options in ({}, {"format": "chat"}):
        with pytest.raises(RowError) as caught:
            read(path, **options)  # type: ignore[arg-type]
        text = str(caught.value)
        assert f"{path}, row 1: " in text
        assert "the keys 'dialog'" in text
        assert "'messages'" in text and "format 'chat'" in text
        assert "columns: {messages: dialog}" in text
        assert '{"messages": [{"role": "user"' in text
    assert len(read(path, columns={"messages": "dialog"})) == 1000


def test_t24_one_row_without_messages(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "chats.jsonl", "user", "assistant", ("role", "content"), "messages", odd="user")
    lines = path.read_text().splitlines()
    lines[416] = lines[416].replace('"messages"', '"message"')
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(RowError) as caught:
        read(path)
    text = str(caught.value)
    assert f"{path}, row 417: the row has no 'messages'" in text and "the keys 'message'" in text
    assert "rename 'message' to 'messages'" in text and f"{path}, row 1" in text


def test_t24_no_model_is_near_and_no_bare_key_error(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "chats.jsonl", "human", "gpt", ("from", "value"), "conversations", odd="user")
    code = (
        "import sys\nfrom posttrain.data import read\nfrom posttrain.errors import PosttrainError\n"
        "try:\n    read(sys.argv[1])\nexcept PosttrainError as error:\n    print(error)\n"
        "    sys.exit('torch' in sys.modules or 'transformers' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "row 417" in done.stdout and "KeyError" not in done.stdout + done.stderr
