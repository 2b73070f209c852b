"""Progress: plain lines for logs, a bar on terminals, stalls said, and nothing that reaches the training."""

from __future__ import annotations

import io
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from posttrain.cli.progress import TerminalProgress, progress_on
from posttrain.runs.progress import PlainProgress, Progress, clock
from tests.online import loop_of, run, save_start


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def plain(now: Clock, **options: float | None) -> tuple[PlainProgress, io.StringIO]:
    stream = io.StringIO()
    return PlainProgress(stream, now=now, **{"stall_after": None, **options}), stream  # type: ignore[arg-type]


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (45.4, "0:45"), (125, "2:05"), (3725, "1:02:05")])
def test_times_are_written_as_people_do(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_a_line_says_phase_share_speed_and_time_left() -> None:
    now = Clock()
    progress, _ = plain(now)
    with progress.phase("dpo: training", total=75, unit="steps") as phase:
        for _ in range(30):
            now.time += 0.5
            phase.advance(1, tokens=2560, note="loss 0.61")
        assert phase.line() == "dpo: training  30/75 steps  40%  5,120 tokens/s  0:22 left  loss 0.61"


def test_a_resumed_phase_counts_its_speed_from_where_it_began() -> None:
    now = Clock()
    progress, _ = plain(now)
    with progress.phase("dpo", total=100, unit="steps", done=90) as phase:
        now.time += 10
        phase.advance(5)
        assert phase.seconds_left == 10


def test_speed_follows_the_recent_past() -> None:
    now = Clock()
    progress, _ = plain(now)
    with progress.phase("x", total=1000) as phase:
        for _ in range(60):
            now.time += 10
            phase.advance(1)
        for _ in range(60):
            now.time += 1
            phase.advance(1)
        assert phase.seconds_left == pytest.approx(880)


def test_nothing_is_promised_before_anything_is_done() -> None:
    progress, _ = plain(Clock())
    with progress.phase("x", total=10) as phase:
        assert phase.seconds_left is None
        assert phase.tokens_per_second is None
    with progress.phase("y") as phase:
        phase.advance(3)
        assert phase.seconds_left is None
        assert phase.line() == "y  3 rows"


def test_plain_lines_are_throttled() -> None:
    now = Clock()
    progress, stream = plain(now, every=10.0)
    with progress.phase("encoding", total=100) as phase:
        for _ in range(100):
            now.time += 0.5
            phase.advance()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "encoding, 100 rows"
    assert lines[-1] == "encoding  100/100 rows  100%  in 0:50"
    assert len(lines) == 7  # begin, every ten seconds, end


def test_a_quick_phase_leaves_its_first_line_only() -> None:
    now = Clock()
    progress, stream = plain(now)
    with progress.phase("quick", total=3) as phase:
        now.time += 1
        phase.advance(3)
    with progress.phase("slow", total=3) as phase:
        now.time += 3
        phase.advance(3)
    assert stream.getvalue().splitlines() == ["quick, 3 rows", "slow, 3 rows", "slow  3/3 rows  100%  in 0:03"]


def test_items_are_tracked() -> None:
    progress, _ = plain(Clock())
    with progress.phase("x", total=3) as phase:
        assert list(phase.track("abc")) == ["a", "b", "c"]
        assert phase.done == 3


def test_a_phase_ends_with_an_error_too() -> None:
    progress, stream = plain(Clock())
    with pytest.raises(ZeroDivisionError), progress.phase("x", total=3) as phase:
        phase.advance()
        raise ZeroDivisionError
    assert stream.getvalue().splitlines()[-1].startswith("x  1/3 rows")


# ---------------------------------------------------------------- stalls


def test_a_stall_is_said_once_and_again_when_it_doubles() -> None:
    now = Clock()
    progress, stream = plain(now, stall_after=30.0)
    try:
        with progress.phase("sft: training", total=10, unit="steps") as phase:
            phase.advance(4)
            for _ in range(13):
                now.time += 10
                progress.check_stall()
            said = [line for line in stream.getvalue().splitlines() if "no progress" in line]
            assert [line.split("for ")[1].split(" ")[0] for line in said] == ["0:30", "1:00", "2:00"]
            assert "at 4 steps" in said[0]
            phase.advance()
            assert "sft: training: goes on" in stream.getvalue()
    finally:
        progress.close()


def test_an_inner_phase_keeps_the_outer_alive() -> None:
    now = Clock()
    progress, stream = plain(now, stall_after=30.0)
    try:
        with progress.phase("outer", total=2) as outer:
            outer.advance()
            with progress.phase("inner", total=100) as inner:
                for _ in range(10):
                    now.time += 10
                    inner.advance()
                    progress.check_stall()
            progress.check_stall()
        assert "no progress" not in stream.getvalue()
    finally:
        progress.close()


def test_the_watcher_speaks_by_itself_and_ends() -> None:
    stream = io.StringIO()
    before = threading.active_count()
    with PlainProgress(stream, stall_after=0.05) as progress, progress.phase("waiting", total=1):
        deadline = time.monotonic() + 5
        while "no progress" not in stream.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert "waiting: no progress" in stream.getvalue()
    assert threading.active_count() == before


def test_progress_leaves_random_streams_alone() -> None:
    import torch

    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    with PlainProgress(io.StringIO(), stall_after=0.01) as progress, progress.phase("x", total=4) as phase:
        for _ in range(4):
            phase.advance(tokens=5)
            time.sleep(0.02)
        assert torch.equal(torch.rand(4), expected)


# ---------------------------------------------------------------- on a terminal


def terminal() -> tuple[TerminalProgress, io.StringIO, Clock]:
    stream, now = io.StringIO(), Clock()
    console = Console(file=stream, force_terminal=True, width=100, color_system=None)
    return TerminalProgress(console, stall_after=None, now=now), stream, now


def test_the_bar_shows_the_phase_and_leaves_a_line() -> None:
    progress, stream, now = terminal()
    with progress, progress.phase("dpo: training", total=2, unit="steps") as phase:
        now.time += 5
        phase.advance(1, tokens=10)
        progress.say("[a note] with brackets")
        phase.advance(1, tokens=10)
    shown = stream.getvalue()
    assert "[a note] with brackets" in shown
    assert "dpo: training  2/2 steps  100%" in shown.splitlines()[-1]


def test_nested_bars_give_the_terminal_back() -> None:
    progress, stream, now = terminal()
    with progress:
        with progress.phase("outer", total=1) as outer, progress.phase("inner [x]", total=1) as inner:
            now.time += 5
            inner.advance()
            outer.advance()
        assert progress._bars is None
    assert "inner [x]  1/1 rows" in stream.getvalue()


def test_a_stall_is_seen_on_the_bar() -> None:
    progress, stream, _ = terminal()
    with progress, progress.phase("x", total=2) as phase:
        progress.show_stall(phase, 65.0)
    assert "x: no progress for 1:05" in stream.getvalue()


def test_the_kind_follows_the_stream() -> None:
    assert isinstance(progress_on(Console(file=io.StringIO())), PlainProgress)
    assert isinstance(progress_on(Console(file=io.StringIO(), force_terminal=True)), TerminalProgress)


def test_silent_progress_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as progress, progress.phase("x", total=1) as phase:
        phase.advance()
        progress.say("a line")
    assert capsys.readouterr() == ("", "")


# ---------------------------------------------------------------- a log is never silent for long


def test_what_is_under_way_is_said_within_ten_seconds_and_then_sparsely() -> None:
    now = Clock()
    progress, stream = plain(now)
    with progress.phase("grpo: training", total=30, unit="steps", done=3), progress.doing("score"):
        said: list[float] = []
        for second in range(1, 200):
            now.time += 1
            before = len(stream.getvalue())
            progress.check_quiet()
            if len(stream.getvalue()) > before:
                said.append(second)
        assert said == [10, 30, 70, 150]  # each pause twice as long as the one before
        lines = stream.getvalue().splitlines()
        assert lines[1] == "grpo: training  3/30 steps  `score` for 0:10"
        assert lines[-1].endswith("`score` for 2:30")


def test_what_moves_is_told_anew_and_a_said_stall_is_enough() -> None:
    now = Clock()
    progress, stream = plain(now, stall_after=60.0)
    try:
        with progress.phase("grpo: training", total=30, unit="steps") as phase:
            for name in ("generate", "score"):
                with progress.doing(name):
                    now.time += 12
                    progress.check_stall()
            assert [line.split("`")[1] for line in stream.getvalue().splitlines()[1:]] == ["generate", "score"]
            phase.advance()
            for _ in range(24):
                now.time += 10
                progress.check_stall()
            tail = [line for line in stream.getvalue().splitlines() if "under way" in line or "no progress" in line]
            assert [("no progress" in line) for line in tail] == [False, False, True, True, True]
    finally:
        progress.close()


def test_a_phase_within_an_activity_is_what_is_told() -> None:
    now = Clock()
    progress, stream = plain(now)
    with progress.doing("sft: reading the rows"):
        now.time += 11
        progress.check_quiet()
        with progress.phase("sft: encoding rows", total=10):
            now.time += 11
            progress.check_quiet()
        now.time += 11
        progress.check_quiet()
    now.time += 11
    progress.check_quiet()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "sft: reading the rows: 0:11"
    assert lines[2] == "sft: encoding rows  0/10 rows  under way for 0:11"
    assert lines[3] == "sft: reading the rows: 0:33"
    assert lines[4] == "still working, between two phases: 0:11"


def test_the_watcher_of_a_log_speaks_without_any_phase() -> None:
    stream = io.StringIO()
    before = threading.active_count()
    with PlainProgress(stream, every=0.05, stall_after=None):
        deadline = time.monotonic() + 5
        while "still working" not in stream.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert "still working, between two phases: 0:00" in stream.getvalue()
    assert threading.active_count() == before


def test_a_reward_that_takes_long_is_named_in_the_log_of_a_real_run(tmp_path: Path) -> None:
    """Four completions of 0.2 s each at an interval of 0.2 s: as 40 s of reward at the real one of 10 s."""

    def slow(prompt: Any, completion: str, task: Any) -> float:
        time.sleep(0.2)
        return float(len(completion) % 2)

    stream = io.StringIO()
    options: dict[str, Any] = {"steps": 1, "prompts_per_step": 1, "held_out": 0, "preflight": {"on_failure": "warn"}}
    with PlainProgress(stream, every=0.2) as progress:
        start = save_start(tmp_path / "start")
        run(loop_of(start, tmp_path / "grpo", rewards=[slow], progress=progress, **options))
    said = [line for line in stream.getvalue().splitlines() if "`score` for" in line]
    assert said and all(line.startswith("grpo: training  0/1 steps") for line in said), stream.getvalue()[-2000:]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_what_is_printed_under_a_bar_stays_on_its_own_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """`posttrain score MODEL FILE > rewards.jsonl`: stderr is a terminal, stdout a file."""
    monkeypatch.setattr("sys.stdout", file := io.StringIO())
    console = Console(file=Terminal(), force_terminal=True, width=40)
    with TerminalProgress(console) as progress, progress.phase("scoring", total=2) as phase:
        phase.advance()
        print('{"row": "' + "a" * 100 + '"}')
    assert file.getvalue() == '{"row": "' + "a" * 100 + '"}\n'
    # Where both are one terminal, a line above the bar and not on it.
    monkeypatch.setattr("sys.stdout", screen := Terminal())
    with TerminalProgress(console) as progress, progress.phase("scoring", total=2):
        print("a line")
    assert screen.getvalue() == "" and "a line\n" in console.file.getvalue()  # type: ignore[attr-defined]
