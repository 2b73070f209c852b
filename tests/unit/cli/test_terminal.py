"""Text of rows, models and file names never commands the terminal, whichever verb shows it."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import typer
from typer.testing import CliRunner

from posttrain.cli.app import app
from posttrain.cli.boundary import show
from posttrain.cli.generate import generate
from posttrain.cli.outputs import echo_json
from posttrain.cli.progress import TerminalProgress, progress_on
from posttrain.cli.proof import show_preflight
from posttrain.cli.samples import samples
from posttrain.cli.score import score
from posttrain.cli.speaker import SpokenAnswer
from posttrain.cli.tables import side_by_side
from posttrain.cli.terminal import echo, echo_exact, printable, terminal
from posttrain.errors import ConfigError
from posttrain.runs.records.preflight import DecodedPiece, DecodedRow
from posttrain.runs.terminal import terminal_console
from tests.unit.cli.test_cli_verbs import Check, Proof

HOSTILE = "\x1b[2J\x1b]0;title\x07\x9b31m\x7f\u202egnp\u2066[red]x"
RAW = re.compile("[\x07\x1b\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
SHOWN = "\\x1b[2J\\x1b]0;title"


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def screens(monkeypatch: pytest.MonkeyPatch) -> tuple[Screen, Screen]:
    """stdout and stderr as terminals; not a fixture, since pytest's own capture takes their places before a test."""
    out, err = Screen(), Screen()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setenv("TERM", "dumb")  # a terminal without styles: every ESC is one of a text
    monkeypatch.setenv("COLUMNS", "200")
    return out, err


def test_what_a_terminal_obeys_is_shown_and_all_else_is_left() -> None:
    assert printable(HOSTILE).startswith(SHOWN) and not RAW.search(printable(HOSTILE))
    assert "\\u202egnp\\u2066" in printable(HOSTILE)
    controls = (*range(0x20), *range(0x7F, 0xA0))
    directions = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
    obeyed = [chr(number) for number in (*controls, *directions) if chr(number) not in "\t\n"]
    assert [ast.literal_eval(f'"{printable(letter)}"') for letter in obeyed] == obeyed
    assert all(printable(letter).isascii() and printable(letter).isprintable() for letter in obeyed)
    for text in ("Grüße 你好 😀", "a\n\tb", "\u200d", "שלום"):
        assert printable(text) == text


def test_every_kind_of_line_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = screens(monkeypatch)
    row = DecodedRow(HOSTILE, HOSTILE, (DecodedPiece(HOSTILE, True), DecodedPiece(HOSTILE, False)))
    checks = [Check("fail", HOSTILE, HOSTILE, HOSTILE)]
    shown: list[Any] = [
        lambda: show_preflight(terminal(), HOSTILE, Proof(checks, [row])),  # type: ignore[arg-type]
        lambda: terminal().print(side_by_side([HOSTILE], [("A", HOSTILE)], [[HOSTILE]])),
        lambda: terminal().print(HOSTILE, soft_wrap=True),
        lambda: show(ConfigError(HOSTILE, where=Path(HOSTILE), found=HOSTILE, remedy=HOSTILE)),
        lambda: echo(HOSTILE),
        lambda: echo(HOSTILE, err=True),
        lambda: echo_exact(HOSTILE),
        lambda: progress_on(terminal(stderr=True)).say(HOSTILE),
    ]
    for show_one in shown:
        for stream in streams:
            stream.truncate(0)
        show_one()
        text = "".join(stream.getvalue() for stream in streams)
        assert SHOWN in text.replace("\n", ""), show_one
        assert not RAW.search(text), show_one
    assert "[red]x" in text  # no markup either


def test_bars_and_their_lines_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    screens(monkeypatch)
    stream = Screen()
    console = terminal_console(file=stream)
    assert console.is_terminal
    with TerminalProgress(console) as progress, progress.phase(HOSTILE, total=2) as phase:
        phase.advance(note=HOSTILE)
        progress.say(HOSTILE)
    assert "title" in stream.getvalue()
    assert "\x1b]" not in stream.getvalue() and "\x1b[2J" not in stream.getvalue() and "\u202e" not in stream.getvalue()


def test_a_log_is_escaped_and_json_and_piped_answers_stay_exact(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_on(terminal(stderr=True)) as progress:
        progress.say(HOSTILE)
    echo_exact(HOSTILE)
    echo_json({"text": HOSTILE})
    out, err = capsys.readouterr()
    assert SHOWN in err and not RAW.search(err)
    answer, line = out.splitlines()
    assert answer == HOSTILE and json.loads(line) == {"text": HOSTILE}


def test_json_at_a_terminal_is_json_still(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = screens(monkeypatch)
    echo_json({"text": HOSTILE})
    assert json.loads(streams[0].getvalue()) == {"text": HOSTILE} and not RAW.search(streams[0].getvalue())


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"],
        ["check"],
        ["audit"],
        ["generate"],
        ["compare", "embedded", "embedded", "--prompts"],
        ["score", "embedded"],
        ["merge"],
        ["samples"],
        ["report"],
        ["models", "pull"],
    ],
    ids=" ".join,
)
def test_a_verb_escapes_the_names_that_it_is_given(arguments: list[str], tmp_path: Path) -> None:
    name = str(tmp_path / HOSTILE)
    more = ["--out", str(tmp_path / "out")] if arguments == ["merge"] else []
    result = CliRunner().invoke(app, [*arguments, name, *more])
    assert result.exit_code == 2, result.output
    assert not RAW.search(result.output), repr(result.output)


# ---------------------------------------------------------------- what rows and models say, at a terminal


def test_samples_are_shown_escaped_and_in_styles_of_our_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = {"row": HOSTILE, "prompt": HOSTILE, "answer": HOSTILE, "completion": HOSTILE, "finish": HOSTILE}
    line = {"step": 1, "reward": 0.5, "parts": {HOSTILE: 0.5}, "ids": [1], "mask": [True], **hostile}
    folder = tmp_path / "run" / "grpo"
    folder.mkdir(parents=True)
    (folder / "rollouts.jsonl").write_text(json.dumps(line) + "\n{")
    out, err = screens(monkeypatch)
    samples(folder)
    assert out.getvalue().count(SHOWN) == 6 and not RAW.search(out.getvalue() + err.getvalue())
    assert "\\x1b[1m" not in out.getvalue()  # a style that came as codes in the text would be escaped with it
    samples(folder, json=True)
    record = json.loads(out.getvalue().splitlines()[-1])
    assert record["completion"] == HOSTILE and not RAW.search(out.getvalue())

    out, _ = screens(monkeypatch)
    monkeypatch.setenv("TERM", "xterm")
    samples(folder)
    assert "\x1b[1mstep 1" in out.getvalue() and "\x1b[1;32mbest\x1b[0m" in out.getvalue()
    assert not RAW.search(re.sub("\x1b\\[[0-9;]*m", "", out.getvalue()))


class Hostile:
    """A model that says what a terminal obeys."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def answers(self, prompts: Any, samples: int = 1, **_: Any) -> Any:
        yield from ([SpokenAnswer(HOSTILE, 3, "stop_token")] for _ in prompts)

    def stream(self, conversation: Any, seed: int) -> Any:
        yield from HOSTILE


@pytest.mark.parametrize("how", ["pipe", "file", "conversation"])
def test_answers_are_escaped_at_a_terminal(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posttrain.cli.speaker.Speaker", Hostile)
    monkeypatch.setattr("posttrain.models.resolve", lambda name, **_: name)
    monkeypatch.setattr("posttrain.models.reward.folders.require_policy", lambda _: None)
    (tmp_path / "p.txt").write_text(f"{HOSTILE}\n")
    out, err = screens(monkeypatch)
    monkeypatch.setattr(sys, "stdin", Screen("hello\n\n") if how == "conversation" else io.StringIO("hello"))
    generate(cast(typer.Context, None), "embedded", prompts=str(tmp_path / "p.txt") if how == "file" else None)
    shown = re.sub("\x1b\\[[0-9;?]*[A-Za-z]", "", out.getvalue() + err.getvalue())  # the bar's own codes
    assert not RAW.search(shown) and "title" in shown


def test_a_scored_file_of_a_hostile_name_is_shown_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / f"{HOSTILE}.jsonl"
    row = {"prompt": HOSTILE, "chosen": HOSTILE, "rejected": "x", HOSTILE: 1}
    file.write_text(json.dumps(row) + "\n")
    monkeypatch.setattr("posttrain.models.require_known", lambda name: None)
    monkeypatch.setattr("posttrain.cli.reward_rows.open_models", lambda *_: [Rated()])
    streams = screens(monkeypatch)
    score(["judge"], str(file))
    score(["judge"], str(file), out=tmp_path / f"{HOSTILE}.out")
    shown = re.sub("\x1b\\[[0-9;?]*[A-Za-z]", "", "".join(stream.getvalue() for stream in streams))  # the bar's own
    assert shown.count("title") >= 2 and not RAW.search(shown)
    monkeypatch.setattr(sys, "stdout", piped := io.StringIO())
    score(["judge"], str(file))
    assert json.loads(piped.getvalue())["row"] == f"{file}, row 1"


class Rated:
    name = HOSTILE

    def score_rows(self, examples: Any, **_: Any) -> Any:
        for example in examples:
            yield SimpleNamespace(row=example.row, rewards=(1.0, 0.0), tokens=(3, 3), steps=None)


@pytest.mark.parametrize(
    "typed",
    [
        [HOSTILE],
        [f"--{HOSTILE}"],
        ["run", f"--{HOSTILE}"],
        ["samples", "x", "--step", HOSTILE],
        ["score", "a", "b", "--combine", HOSTILE],
        ["generate", "x", HOSTILE],
        ["models", HOSTILE],
        ["models", "list", HOSTILE],
        ["models", "list", f"--{HOSTILE}"],
        ["models", "pull", "a", f"--{HOSTILE}"],
    ],
    ids=lambda typed: " ".join(typed).replace(HOSTILE, "HOSTILE"),
)
def test_a_mistyped_command_is_escaped_and_answered_in_our_form(typed: list[str]) -> None:
    result = CliRunner().invoke(app, typed)
    assert result.exit_code == 2 and not RAW.search(result.output), repr(result.output)
    assert result.output.startswith("posttrain") and "remedy:" in result.output and "[red]x" in result.output


def test_no_verb_prints_past_the_terminal() -> None:
    folder = Path(__file__).parents[3] / "posttrain" / "cli"
    direct = re.compile(r"\bConsole\(|typer\.(echo|secho|style)\(|(?<![.\w])print\(|sys\.std(out|err)\.write\(")
    lines = [
        f"{path.name}: {line.strip()}"
        for path in folder.glob("*.py")
        if path.name != "terminal.py"
        for line in path.read_text(encoding="utf-8").splitlines()
        if direct.search(line)
    ]
    assert all(line.startswith("chat.py: sys.stdout.write(") for line in lines), lines


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
@pytest.mark.parametrize("arguments", [["--help"], ["check", "Grüße 你好 😀.yaml"], ["models", "list"]], ids=" ".join)
def test_a_stdout_that_is_not_utf8_ends_no_verb(encoding: str, arguments: list[str]) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "LANG": "C", "LC_ALL": "C"}
    done = subprocess.run([sys.executable, "-m", "posttrain", *arguments], env=environment, capture_output=True)
    assert done.returncode == (2 if arguments[0] == "check" else 0), done.stderr
    assert b"Traceback" not in done.stderr and b"UnicodeEncodeError" not in done.stderr
