"""One run of a sweep: in this process, or in one of its own.

    Here(sweep, progress).start(job)          # runs it now
    Processes(sweep, jobs=4, say).start(job)  # starts a process; outcome() gives the next that is over

A run that fails is an outcome, not the end of the sweep: what the others found stays worth having.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from posttrain.config import Recipe
from posttrain.errors import PosttrainError
from posttrain.runs.disk import writing
from posttrain.runs.files import read_json, write_json
from posttrain.runs.folder import RunFolder, make_folder
from posttrain.runs.progress import Progress
from posttrain.runs.records.evaluation import SuiteScores
from posttrain.runs.shared import Siblings
from posttrain.sweeps.figures import By
from posttrain.sweeps.record import DONE, FAILED, INTERRUPTED, PAUSED
from posttrain.training.loop import Interrupted
from posttrain.training.pausing import Pause, Paused, rung_folder
from posttrain.training.pipeline import run_within
from posttrain.training.siblings import Within

JOBS = ".jobs"
"""Folder of a sweep: what each process was told, and what it came to."""
LOG = "sweep.log"
"""In a run's folder: what its process said."""
LOOK_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be run: Job("dpo.beta-0.05_seed-0", recipe, pause=None, by="sums.accuracy", rung=None)."""

    run: str
    recipe: Recipe
    pause: Pause | None
    by: str | None
    rung: int | None = None
    """That it runs to, in a sweep that stops early."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it ended: Outcome("done", 61.2, score=0.62), Outcome("failed", 3.0, error="...")."""

    status: str
    """done, paused, failed or interrupted."""
    seconds: float | None
    """Of work, over all attempts, as run.json says."""
    score: float | None = None
    """The figure that chooses, at the end or at the rung."""
    error: str | None = None


def run_job(job: Job, sweep: Path, date: str, progress: Progress) -> Outcome:
    """Run it until its end or its rung.

    Raises:
        KeyboardInterrupt, Interrupted: somebody ended it; it has a checkpoint.
    """
    run = RunFolder(job.recipe.folder)
    if not run.exists:
        make_folder(run.path)
        # Before the run asks for today: begun tomorrow, it would share no stage with one that was begun today.
        run.write_run(name=job.recipe.name, date=date)
    by = None if job.by is None else By.parse(job.by)
    try:
        run_within(job.recipe, Within(Siblings(sweep), job.pause), progress=progress)
    except Paused as rung:
        assert job.pause is not None and by is not None
        scores = rung_folder(run.stage(job.pause.stage), rung.step).document(SuiteScores)
        figure = None if scores is None else scores.suites.get(by.suite, {}).get(by.metric)
        return Outcome(PAUSED, _seconds(run), None if figure is None else figure.value)
    except (KeyboardInterrupt, Interrupted):
        raise
    except PosttrainError as error:
        return Outcome(FAILED, _seconds(run), error=str(error))
    except Exception as error:  # the boundary: a fault of ours or of a library ends this run, not the others
        path = run.path / "traceback.txt"
        with suppress(OSError):
            path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        return Outcome(FAILED, _seconds(run), error=f"an unexpected {type(error).__name__}: {error} (see {path})")
    return Outcome(DONE, _seconds(run), None if by is None else by.of(run))


def _seconds(run: RunFolder) -> float | None:
    entries = run.run().stages if run.exists else ()
    return sum(entry.seconds or 0.0 for entry in entries)


# ---------------------------------------------------------------- in this process


class Here:
    """Runs jobs one after the other, in this process."""

    slots = 1

    def __init__(self, sweep: Path, date: str, progress: Progress):
        self.sweep, self.date, self.progress = sweep, date, progress
        self._job: Job | None = None

    @property
    def running(self) -> int:
        return int(self._job is not None)

    def start(self, job: Job) -> None:
        self._job = job

    def outcome(self) -> tuple[Job, Outcome]:
        """Raises what `run_job` raises."""
        assert self._job is not None
        job, self._job = self._job, None
        return job, run_job(job, self.sweep, self.date, self.progress)

    def stop(self) -> None:
        """Nothing runs beside this."""


# ---------------------------------------------------------------- in processes


class Processes:
    """Runs as many jobs at a time as there are slots, each in a process of its own with a log in its run folder."""

    def __init__(self, sweep: Path, date: str, jobs: int, say: Callable[[str], None]):
        self.sweep, self.date, self.slots, self.say = sweep, date, jobs, say
        self._cards = visible_cards(os.environ)
        self._running: dict[int, tuple[Job, subprocess.Popen[bytes]]] = {}

    @property
    def running(self) -> int:
        return len(self._running)

    def start(self, job: Job) -> None:
        slot = next(slot for slot in range(self.slots) if slot not in self._running)
        make_folder(self.sweep / JOBS)
        make_folder(job.recipe.folder)
        told = self._told(job)
        write_json(
            told,
            {
                "recipe": job.recipe.to_yaml(),
                "run": job.run,
                "sweep": str(self.sweep),
                "date": self.date,
                "pause": None if job.pause is None else asdict(job.pause),
                "by": job.by,
            },
        )
        self._ended(job).unlink(missing_ok=True)
        log = job.recipe.folder / LOG
        with writing(log), log.open("ab") as file:
            command = [sys.executable, "-m", "posttrain.sweeps.worker", str(told)]
            environment = environment_of(slot, self.slots, self._cards, os.environ)
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment)
        self._running[slot] = (job, process)

    def outcome(self) -> tuple[Job, Outcome]:
        """Of the next that ends; waits for it."""
        while True:
            for slot, (job, process) in self._running.items():
                if process.poll() is not None:
                    del self._running[slot]
                    return job, self._outcome(job, process.returncode)
            time.sleep(LOOK_SECONDS)

    def stop(self) -> None:
        """Ask all to end after the step under way, with a checkpoint, and wait for them."""
        if self._running:
            self.say(f"waiting for {len(self._running)} runs to write their checkpoints")
        for _, process in self._running.values():
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        for _, process in self._running.values():
            process.wait()
        self._running.clear()

    def _outcome(self, job: Job, code: int) -> Outcome:
        path, log = self._ended(job), job.recipe.folder / LOG
        if path.exists():
            found = read_json(path)
            return Outcome(**found)
        run = RunFolder(job.recipe.folder)
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with the code {code}"
        status = INTERRUPTED if code in (128 + signal.SIGINT, 128 + signal.SIGTERM) else FAILED
        return Outcome(status, _seconds(run), error=f"its process {how} without a word (see {log})")

    def _told(self, job: Job) -> Path:
        return self.sweep / JOBS / f"{job.run}.json"

    def _ended(self, job: Job) -> Path:
        return self.sweep / JOBS / f"{job.run}.outcome.json"


def environment_of(slot: int, slots: int, cards: list[str], environment: Mapping[str, str]) -> dict[str, str]:
    """Each process has its share of the machine: a card of its own where there are several, and its share of the cores.

    environment_of(1, 2, ["0", "1"], {})["CUDA_VISIBLE_DEVICES"] == "1"
    """
    own = dict(environment)
    if len(cards) > 1:
        own["CUDA_VISIBLE_DEVICES"] = cards[slot % len(cards)]
    # Four processes with a thread a core each would wait for each other more than they compute.
    own.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // slots)))
    return own


def visible_cards(environment: Mapping[str, str]) -> list[str]:
    """The cards of this machine that may be used, by the names that CUDA_VISIBLE_DEVICES has."""
    named = environment.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]
