"""Which progress a program sees: as its surroundings have it, unless it says otherwise."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from posttrain.errors import ConfigError
from posttrain.runs.progress import PlainProgress, Progress
from posttrain.runs.showing import NotebookProgress, in_notebook, showing


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class ZMQInteractiveShell:
    """Of the name that the shell of every notebook kernel has among its classes."""


class Kernel(ZMQInteractiveShell):
    pass


class Handle:
    def __init__(self) -> None:
        self.shown: list[str] = []

    def update(self, line: object) -> None:
        self.shown.append(repr(line))


def kind(progress: Any, **options: bool) -> str:
    with showing(progress, **options) as shown:
        return type(shown).__name__


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Handle:
    handle = Handle()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=Kernel))
    display = SimpleNamespace(display=lambda line, display_id: handle.update(line) or handle)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return handle


def test_a_bar_on_a_terminal_and_nothing_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert (kind(None), kind(False)) == ("TerminalProgress", "Progress")
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert (kind(None), kind(True), kind(None, in_logs=True)) == ("Progress", "PlainProgress", "PlainProgress")
    monkeypatch.setattr(sys, "stderr", None)
    assert kind(True) == "Progress", "a process without a stderr"


def test_what_the_caller_passed_stays_open() -> None:
    own = PlainProgress(io.StringIO(), every=100.0)
    with own:
        watcher = own._watcher
        with showing(own) as shown:
            assert shown is own
        assert watcher is not None and own._watcher is watcher
    with showing(None, in_logs=True) as made:
        pass
    assert made._watcher is None, "what was made here is closed here"


def test_anything_else_is_refused() -> None:
    with pytest.raises(ConfigError, match="progress=False"), showing("no"):
        pass


def test_a_notebook_is_told_by_its_shell(notebook: Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    assert in_notebook() and kind(None) == "NotebookProgress"
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    assert not in_notebook(), "IPython is loaded, and no shell runs"
    monkeypatch.delitem(sys.modules, "IPython")
    assert not in_notebook()


def test_a_notebooks_line_is_rewritten_seldom_and_without_control_characters(notebook: Handle) -> None:
    time = [0.0]
    progress = NotebookProgress(stall_after=None, now=lambda: time[0])
    with progress.phase("sft: training", total=100, unit="steps") as phase:
        for _ in range(100):
            time[0] += 0.1
            phase.advance()
    assert notebook.shown[0] == "sft: training ..." and "100/100 steps" in notebook.shown[-1]
    assert 15 <= len(notebook.shown) <= 25, "every half second, not every step"
    assert not any(mark in line for line in notebook.shown for mark in "\r\033\b")
    with progress.phase("quick", total=1) as phase:
        phase.advance()
    assert notebook.shown[-1] == "", "what took no time leaves nothing behind"


def test_a_silent_progress_is_the_base() -> None:
    with showing(False) as shown:
        assert type(shown) is Progress


def test_a_stderr_that_is_closed_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    assert kind(True) == "Progress"


def test_what_rows_say_is_escaped_in_a_log_and_in_a_notebook(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", log := io.StringIO())
    with showing(True) as shown:
        shown.say("row \x1b[2J\u202e")
    assert log.getvalue() == "row \\x1b[2J\\u202e\n"
    NotebookProgress(stall_after=None).say("row \x1b[2J\u202e")
    assert capsys.readouterr().out == "row \\x1b[2J\\u202e\n"
