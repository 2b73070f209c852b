"""T94: an output that is not UTF-8 (a Windows code page, LANG=C, a collector) gets readable text and exit code 0.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROW = {"messages": [{"role": "user", "content": "Grüße 你好 😀"}, {"role": "assistant", "content": "Ünïcode 😀"}]}
RECIPE = """
schema: 1
name: s
model: embedded
stages:
  - {name: sft, method: sft, data: rows.jsonl, steps: 1, rows_per_step: 2, held_out: 0, max_length: 128}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("narrow")
    rows = [
        {"messages": [{**ROW["messages"][0], "content": f"Grüße 你好 😀 {i}"}, ROW["messages"][1]]} for i in range(4)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "ask.jsonl").write_text(json.dumps({"prompt": "Grüße 你好 😀"}) + "\n", encoding="utf-8")
    (folder / "r.yaml").write_text(RECIPE)
    return folder


def posttrain(place: Path, encoding: str, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "posttrain", *arguments]
    return subprocess.run(
        command, env=environment, cwd=place, input=stdin, capture_output=True, encoding=encoding, check=False
    )


def test_t94_rows_are_shown_with_escapes(place: Path) -> None:
    checked = posttrain(place, "cp1252", "check", "r.yaml")
    assert checked.returncode == 0, checked.stderr
    # What the encoding has is shown as it is, the rest as escapes: nothing is lost and nothing is a question mark.
    assert r"Grüße \u4f60\u597d \U0001f600" in checked.stdout, checked.stdout


def test_t94_json_lines_stay_json(place: Path) -> None:
    options = ["--max-new-tokens", "2", "--temperature", "0"]
    answered = posttrain(place, "ascii", "generate", "embedded", "--prompts", "ask.jsonl", *options)
    assert answered.returncode == 0, answered.stderr
    assert json.loads(answered.stdout)["prompt"] == "Grüße 你好 😀"


def test_t94_the_catalogue_and_an_error(place: Path) -> None:
    assert posttrain(place, "ascii", "models", "list").returncode == 0
    refused = posttrain(place, "ascii", "models", "pull", "größe")
    assert refused.returncode == 2 and r"gr\xf6\xdfe" in refused.stderr, refused.stderr


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_t94_a_piped_prompt_is_utf8_whatever_the_terminal_is(place: Path, encoding: str) -> None:
    code = "from posttrain.cli.speaker import read_pipe; print(ascii(read_pipe()))"
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": os.pathsep.join(sys.path)}

    def piped(prompt: bytes) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-c", code]
        return subprocess.run(command, env=environment, cwd=place, input=prompt, capture_output=True, check=False)

    assert piped("Grüße 😀\n".encode()).stdout.decode().strip() == ascii("Grüße 😀")
    assert b"standard input is not UTF-8 text" in piped("Grüße".encode("latin-1")).stderr
