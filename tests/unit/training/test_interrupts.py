"""SIGTERM and SIGHUP end a run as Ctrl-C does: in a step after it, elsewhere at once, never within a save."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from posttrain.cli.boundary import guarded
from posttrain.cli.chat import _answer
from posttrain.config import load_recipe
from posttrain.runs.folder import StageFolder
from posttrain.runs.progress import Progress
from posttrain.training.interrupts import Stopped, _Ending, deferred_interrupt, ending_signals, heed
from posttrain.training.loop import Interrupted, Loop
from posttrain.training.pipeline import run_recipe
from tests.online import save_start
from tests.training import run_loop, weights_of, work_of


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def unignored() -> Iterator[None]:
    """`nohup` starts the tests with SIGHUP ignored, a shell's background with SIGINT."""
    wanted = {signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in wanted.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_a_command_with_its_own_code(number: int, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(number)
    with pytest.raises(typer.Exit) as end:
        guarded(lambda: send(number))()
    assert end.value.exit_code == code and signal.getsignal(number) is before
    said = capsys.readouterr().err
    assert f"stopped by {signal.Signals(number).name}" in said and "to go on:" in said


def test_what_is_ignored_stays_ignored() -> None:
    """`nohup posttrain run ...`"""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ending_signals():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert isinstance(signal.getsignal(signal.SIGTERM), _Ending)
            send(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_programs_own_handler_is_called_when_all_is_saved_and_put_back() -> None:
    calls: list[Any] = []

    def own(number: int, frame: Any) -> None:
        calls.append(number)

    before = signal.signal(signal.SIGTERM, own)
    try:
        with pytest.raises(Stopped), ending_signals():
            try:
                send(signal.SIGTERM)
            finally:
                assert calls == []  # here the records are closed
        assert calls == [signal.SIGTERM] and signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)


def test_another_thread_changes_no_handler() -> None:
    seen: list[Any] = []

    def body() -> None:
        with ending_signals(), deferred_interrupt() as asked:
            seen.extend([signal.getsignal(signal.SIGTERM), asked()])

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [signal.SIG_DFL, None]


def test_a_second_one_changes_nothing() -> None:
    """While the first is being carried out: a report is written, a checkpoint saved."""
    with pytest.raises(Stopped) as stop, ending_signals():
        try:
            send(signal.SIGTERM)
        finally:
            send(signal.SIGTERM)
            send(signal.SIGHUP)
            saved = True
    assert stop.value.code == 143 and saved


def test_one_that_comes_after_the_last_look_is_not_lost() -> None:
    with pytest.raises(Stopped), ending_signals(), deferred_interrupt():
        send(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), deferred_interrupt():
        send(signal.SIGINT)


def test_a_forked_worker_ends_as_its_parent_means_it() -> None:
    with ending_signals():
        ready, tell = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.write(tell, b"!")
                time.sleep(20)
            finally:
                os._exit(7)  # the handler raised in a process that is none of ours
        os.read(ready, 1)
        os.kill(child, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
        os.close(ready)
        os.close(tell)


def test_a_signal_ends_a_conversation_not_an_answer() -> None:
    class Speaker:
        def stream(self, conversation: Any, seed: int) -> Any:
            yield "Hel"
            send(signal.SIGTERM)

    with pytest.raises(Stopped), ending_signals():
        _answer(Speaker(), [], 0)  # type: ignore[arg-type]


# ---------------------------------------------------------------- in training


def stopped(folder: Path, at: str, act: Callable[[], None], **options: Any) -> Loop:
    """A loop in which `act` is called in step 5, when it is measured at the end, or while the stop is saved."""
    loop = Loop(work_of(**options), StageFolder(folder), Progress())
    step, measure, save = loop.optimizer.step, loop._measure, loop.saver.save

    def take(number: int, rows: list[str]) -> Any:
        if number == 4 and at != "end":
            act()
        return step(number, rows)

    def measuring(when: str | None) -> None:
        if at == when:
            act()
        measure(when)

    def saving() -> None:
        if at == "saving":
            act()
        save()

    loop.optimizer.step = take  # type: ignore[assignment, method-assign]
    loop._measure, loop.saver.save = measuring, saving  # type: ignore[method-assign]
    return loop


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("at", ["step", "saving"])
def test_in_a_step_it_saves_and_the_run_goes_on(at: str, number: int, tmp_path: Path) -> None:
    loop = stopped(tmp_path / "a", at, lambda: send(number), checkpoint={"every_steps": 50})
    with ending_signals(), pytest.raises(Interrupted, match="step 5 of 8") as stop:
        loop.run()
    loop.folder.close()
    assert stop.value.number == number and signal.Signals(number).name in stop.value.problem
    resumed, whole = work_of(), work_of()
    run_loop(resumed, tmp_path / "a")
    run_loop(whole, tmp_path / "b")
    assert all(torch.equal(weight, weights_of(resumed)[name]) for name, weight in weights_of(whole).items())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_in_the_last_measurement_no_step_is_lost(number: int, tmp_path: Path) -> None:
    loop = stopped(tmp_path, "end", lambda: send(number), checkpoint={"every_steps": 50})
    with ending_signals(), pytest.raises(KeyboardInterrupt):
        loop.run()
    loop.folder.close()
    assert loop.saver.latest == "checkpoints/step-00000008"
    resumed = run_loop(work_of(checkpoint={"every_steps": 50}), tmp_path)
    assert resumed.step == 8 and [line.step for line in resumed.folder.metrics("train")] == list(range(1, 9))


def test_a_second_ctrl_c_ends_a_step_that_hangs_and_loses_none_before(tmp_path: Path) -> None:
    def twice() -> None:
        send(signal.SIGINT)
        send(signal.SIGINT)

    loop = stopped(tmp_path, "step", twice, checkpoint={"every_steps": 50})
    with pytest.raises(KeyboardInterrupt):
        loop.run()
    loop.folder.close()
    assert loop.saver.latest == "checkpoints/step-00000004"


# ---------------------------------------------------------------- a whole command

PHASES = {
    "encoding": "posttrain.training.stages.reading.encode",
    "preflight": "posttrain.training.checks.preflight.check_leak",
    "exporting": "posttrain.training.stages.policy.begin_save",
    "reading back": "posttrain.models.folders.export.PendingSave.wait",
}
RUN = """
import os, signal, sys
phase, number = sys.argv.pop(), int(sys.argv.pop())
module, name = phase.rsplit(".", 1)
import importlib
try:
    owner = importlib.import_module(module)
except ImportError:
    module, kind = module.rsplit(".", 1)
    owner = getattr(importlib.import_module(module), kind)
def signalled(*arguments, **options):
    os.kill(os.getpid(), number)
    raise SystemExit("the signal did not end it")
setattr(owner, name, signalled)
from posttrain.cli.app import app
app()
"""


@pytest.mark.parametrize("phase", list(PHASES))
def test_every_phase_of_a_command_closes_its_records(phase: str, tmp_path: Path) -> None:
    rows = "".join(json.dumps({"prompt": f"Say {i}", "completion": f"It is {i}."}) + "\n" for i in range(8))
    (tmp_path / "rows.jsonl").write_text(rows)
    (tmp_path / "r.yaml").write_text(
        "name: r\nmodel: embedded\nstages:\n"
        "  - {method: sft, data: ./rows.jsonl, steps: 2, rows_per_step: 2, held_out: 0}\n"
    )
    number = signal.SIGHUP if phase == "encoding" else signal.SIGTERM
    command = [sys.executable, "-c", RUN, "run", "r.yaml", "--out", "runs", str(int(number)), PHASES[phase]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 128 + number, done.stderr
    assert "to go on: posttrain run r.yaml --out runs" in done.stderr
    run = json.loads((tmp_path / "runs" / "r" / "run.json").read_text())
    assert run["status"] == "interrupted" and run["stages"][0]["status"] == "interrupted"
    assert (tmp_path / "runs" / "r" / "report.html").is_file()


# ---------------------------------------------------------------- a model that is asked, in a process of its own

SENDING = """
import os, signal
from pathlib import Path

def letters(prompt, completion, task):
    if not Path("stopped").exists():
        Path("stopped").touch()
        os.kill(os.getpid(), signal.SIGTERM)
    return sum(letter < "P" for letter in completion) / max(1, len(completion))
"""
APP = "from posttrain.cli.app import app\napp()"
ASKED = """
import os, signal
from posttrain.rollout.native import NativeEngine
real = NativeEngine.generate
def generate(self, *arguments, **options):
    os.kill(os.getpid(), signal.SIGTERM)
    return real(self, *arguments, **options)
NativeEngine.generate = generate
"""


def commanded(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, "run", "r.yaml", "--out", "runs"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def record_of(folder: Path) -> Any:
    return json.loads((folder / "runs" / "r" / "run.json").read_text())


def test_a_signal_in_the_rollouts_of_a_step_loses_none_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_start(tmp_path / "start")
    (tmp_path / "mine.py").write_text(SENDING)
    (tmp_path / "tasks.jsonl").write_text("".join(f'{{"prompt": "{i}?", "answer": "{i}"}}\n' for i in range(6)))
    (tmp_path / "r.yaml").write_text(
        "name: r\nmodel: ./start\nstages:\n  - {method: grpo, data: tasks.jsonl, steps: 2, prompts_per_step: 2,\n"
        "     completions_per_prompt: 2, sampling: {max_new_tokens: 4}, held_out: 0, preflight: off, export: none,\n"
        "     checkpoint: {every_steps: 50}, rewards: [{kind: function, function: 'mine:letters'}]}\n"
    )
    done = commanded(tmp_path, APP)
    assert done.returncode == 143, done.stderr
    assert "stopped by SIGTERM after step 1 of 2, with a checkpoint" in done.stderr
    stage = tmp_path / "runs" / "r" / "grpo"
    assert [path.name for path in (stage / "checkpoints").iterdir()] == ["step-00000001"]
    assert record_of(tmp_path)["status"] == "interrupted"
    monkeypatch.chdir(tmp_path)
    run_recipe(load_recipe("r.yaml", ["out=runs"]), progress=False)
    assert record_of(tmp_path)["status"] == "done"
    steps = [json.loads(line)["step"] for line in (stage / "rollouts.jsonl").read_text().splitlines()]
    assert steps == [1] * 4 + [2] * 4  # none twice, and none missing


def test_a_signal_while_the_start_is_asked_ends_at_once_and_closes_the_records(tmp_path: Path) -> None:
    save_start(tmp_path / "start")
    (tmp_path / "asked.jsonl").write_text('{"prompt": "Who are you?", "completion": "Pia"}\n')
    (tmp_path / "r.yaml").write_text(
        "name: r\nmodel: ./start\nevaluate: {suites: [{kind: match, name: who, prompts: asked.jsonl, pattern: Pia}]}\n"
        "stages:\n  - {method: sft, data: asked.jsonl, steps: 2, held_out: 0}\n"
    )
    done = commanded(tmp_path, ASKED + APP)
    assert done.returncode == 143, done.stderr
    assert "stopped by SIGTERM" in done.stderr and "to go on: posttrain run r.yaml --out runs" in done.stderr
    run = tmp_path / "runs" / "r"
    assert record_of(tmp_path)["status"] == "interrupted" and (run / "report.html").is_file()
    assert not (run / "start" / "evaluation.json").exists() and not (run / "sft").exists()


def test_a_terminal_that_is_gone_ends_no_save(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each word to it is an OSError from then on, also the one that says what is being saved."""
    main, terminal = pty.openpty()
    with open(terminal, "w", encoding="utf-8", buffering=1) as screen:
        monkeypatch.setattr(sys, "__stderr__", screen)
        with pytest.raises(Stopped), ending_signals():
            os.close(main)
            try:
                send(signal.SIGHUP)
            finally:
                print("saved", file=screen)


def test_a_training_inside_a_command_leaves_its_handlers_alone() -> None:
    with ending_signals():
        handler = signal.getsignal(signal.SIGTERM)
        with ending_signals():
            assert signal.getsignal(signal.SIGTERM) is handler
        assert signal.getsignal(signal.SIGTERM) is handler


# ---------------------------------------------------------------- checkpoints by the clock


def test_minutes_bring_a_checkpoint_and_change_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"checkpoint": {"every_steps": 50, "every_minutes": 10, "keep": 9}}
    now = [0.0]
    monkeypatch.setattr("posttrain.training.saving.time.monotonic", lambda: now[0])
    loop = Loop(work_of(**options), StageFolder(tmp_path / "a"), Progress())
    step, measure = loop.optimizer.step, loop._measure

    def slow(number: int, rows: list[str]) -> Any:
        now[0] += 250.0  # ten minutes have passed after steps 3 and 6
        return step(number, rows)

    def killed(when: str | None) -> None:
        if when == "end":
            raise SystemExit
        measure(when)

    loop.optimizer.step, loop._measure = slow, killed  # type: ignore[assignment, method-assign]
    with pytest.raises(SystemExit):
        loop.run()
    loop.folder.close()
    assert [path.name for path in sorted((tmp_path / "a" / "checkpoints").iterdir())] == [
        "step-00000003",
        "step-00000006",
    ]
    resumed, whole = work_of(**options), work_of(checkpoint={"every_steps": 50, "every_minutes": None})
    run_loop(resumed, tmp_path / "a")
    run_loop(whole, tmp_path / "b")
    assert all(torch.equal(weight, weights_of(resumed)[name]) for name, weight in weights_of(whole).items())


def test_a_signal_of_another_rank_counts_here() -> None:
    """What the launcher passes on while this rank writes its checkpoint and its report tears neither."""
    with ending_signals():
        heed(signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)
    with ending_signals(), pytest.raises(Stopped):  # of the next run nothing is left
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1.0)
