"""The run folder: what a run writes while it happens, and what reports and resumed runs read back.

    runs/<recipe>/            RunFolder     recipe.yaml report.html, and the files of `records.RUN_FILES`
    runs/<recipe>/<stage>/    StageFolder   config.yaml checkpoints/ model/, and the files of `records.STAGE_FILES`

Everything goes in and out as a record: `folder.append(MetricsLine(...))` writes a line, `folder.lines(MetricsLine)`
reads them all. Standard library only, so that a report needs nothing else.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, TypeVar

from posttrain.arguments import checked_path
from posttrain.errors import ConfigError, ResumeError, SourceError
from posttrain.runs.disk import Lock, lock
from posttrain.runs.files import JsonlLog, keep_lines, read_json, read_jsonl, write_json, write_text
from posttrain.runs.layout import ASKED
from posttrain.runs.owner import LOCK, clear_owner, is_dead, read_owner, write_owner
from posttrain.runs.records.base import LogLine, WholeFile
from posttrain.runs.records.evaluation import AnswerLine, PairedChanges, PassAtKChange, PassAtKChanges, SuiteScores
from posttrain.runs.records.logs import Alarm, HeldOutRow, MetricsLine, WatchedRow
from posttrain.runs.records.merging import KeptSkill, MergedSkills
from posttrain.runs.records.reward import RewardEvaluation, StepEvaluation
from posttrain.runs.records.run import SCHEMA, RunRecord, Summary
from posttrain.runs.records.sampled import ExaminationLine, RolloutLine
from posttrain.runs.records.stage import HeldOutScore, Replaced, StageRecord
from posttrain.runs.records.twins import TwinComparison, TwinComparisons

EARLIER = re.compile(r"([A-Za-z0-9][A-Za-z0-9_-]*)\.([1-9][0-9]*)")
"""The folder of an earlier result of a stage: `dpo.1`. No stage's own name has a dot."""

AnyLine = TypeVar("AnyLine", bound=LogLine)
AnyFile = TypeVar("AnyFile", bound=WholeFile)


# ---------------------------------------------------------------- the folders


class StageFolder:
    """runs/<recipe>/<stage>/, for writing while the stage runs and for reading afterwards."""

    STEP_LOGS = (MetricsLine, WatchedRow, Alarm, RolloutLine, ExaminationLine)
    """Lines of a step; a resumed stage takes those steps again."""
    MEASURING_LOGS = (WatchedRow, ExaminationLine)
    """Those that are written when a step is over."""
    DURABLE_LOGS = (Alarm,)
    """Rare lines that must survive a power cut."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self._logs: dict[type[LogLine], JsonlLog] = {}

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def exists(self) -> bool:
        return (self.path / StageRecord.FILE).exists()

    # -- whole files

    def stage(self) -> StageRecord:
        """Raises SourceError if there is no stage.json, or if it is not JSON."""
        return StageRecord.from_json(read_json(self.path / StageRecord.FILE))

    def write_stage(self, **changes: Any) -> StageRecord:
        """Change fields of stage.json, keep the others, and return the whole."""
        # `replace` refuses a field that the record lacks: a key that no reader knows of cannot be written.
        stage = replace(self.stage() if self.exists else StageRecord(), schema=SCHEMA, **changes)
        self.write(stage)
        return stage

    def write_config(self, text: str) -> None:
        write_text(self.path / "config.yaml", text)

    def write(self, document: WholeFile) -> None:
        write_json(self.path / document.FILE, document.to_json())

    def document(self, kind: type[AnyFile]) -> AnyFile | None:
        """A whole file by its kind; None if it is not there. Raises SourceError if it is not JSON."""
        path = self.path / kind.FILE
        return kind.from_json(read_json(path)) if path.exists() else None

    # -- logs

    def append(self, line: LogLine) -> None:
        """Write one line to the log of its kind, which is opened when its first line comes."""
        kind = type(line)
        if kind not in self._logs:
            # A wait for the disk costs milliseconds: right for an alarm, too slow for every step's metrics.
            self._logs[kind] = JsonlLog(self.path / kind.FILE, "machine" if kind in self.DURABLE_LOGS else "process")
        self._logs[kind].append(line.to_json())

    def lines(self, kind: type[AnyLine]) -> list[AnyLine]:
        """All whole lines of a log; [] if there is none. Raises SourceError for a broken one that is not the last."""
        return [kind.from_json(content) for content in read_jsonl(self.path / kind.FILE)]

    def metrics(self, split: str | None = None) -> list[MetricsLine]:
        return [line for line in self.lines(MetricsLine) if split in (None, line.split)]

    def alarms(self) -> list[Alarm]:
        return self.lines(Alarm)

    def answers(self, suite: str) -> list[AnswerLine]:
        """What the stage's model answered in one evaluation suite."""
        return read_answers(self.path, suite)

    def truncate_after(self, step: int, *, measured: bool = True) -> None:
        """Forget what was logged after `step`, the step of the checkpoint that a resumed run starts from.

        Those steps are taken again, and each must stand in the logs once.

        Args:
            measured: whether the checkpoint was written after the step had been measured on held-out rows; else what
                was written of that is forgotten too.
        """
        # An open log would go on writing into the file that the rewrite has replaced, where nobody reads it.
        self.close()
        for kind in self.STEP_LOGS:

            def wanted(content: Mapping[str, Any], kind: Any = kind) -> bool:
                line = kind.from_json(content)
                of_measuring = kind in self.MEASURING_LOGS or (kind is MetricsLine and line.split == "held_out")
                # The checkpoint's own step stays; of what measured it only if the checkpoint is from after the
                # measuring, which is otherwise done again and would stand in the curves twice.
                return line.step is None or line.step < step + (measured or not of_measuring)

            # The lines themselves are kept, not records of them: a rewrite must not lose what a newer version wrote
            # beside the keys that are known here, nor round a number.
            keep_lines(self.path / kind.FILE, wanted)
        # The rows of the end carry no step; a stage that is resumed writes them again when it really ends.
        keep_lines(self.path / HeldOutRow.FILE, lambda content: HeldOutRow.from_json(content).when == "start")

    def forget_logs(self) -> None:
        """Begin a stage anew: no line of an earlier attempt may stay in its curves."""
        self.close()
        for path in [*self.path.glob("*.jsonl"), *self.path.glob("*_evaluation.json")]:
            # What a teacher has answered was paid for, and each line says by whom and to what.
            if path.name != ASKED:
                path.unlink(missing_ok=True)

    def sync(self) -> None:
        for log in self._logs.values():
            log.sync()

    def close(self) -> None:
        for log in self._logs.values():
            log.close()
        self._logs.clear()


def answers_path(folder: Path, suite: str) -> Path:
    return folder / "evaluations" / f"{suite}.jsonl"


def read_answers(folder: Path, suite: str) -> list[AnswerLine]:
    """The answers of one evaluation suite, in the order in which they were written; [] if it was not asked."""
    return [AnswerLine.from_json(content) for content in read_jsonl(answers_path(folder, suite))]


class RunFolder:
    """runs/<recipe>/"""

    def __init__(self, path: str | Path):
        self.path = checked_path("path", path, "runs/mine")

    @property
    def exists(self) -> bool:
        return (self.path / RunRecord.FILE).exists()

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def start(self) -> StageFolder:
        """What the start model scored."""
        return self.stage("start")

    def stage(self, name: str) -> StageFolder:
        return StageFolder(self.path / name)

    def stages(self) -> list[StageFolder]:
        """The stages that have begun, in the recipe's order; of a folder without run.json, none."""
        # A stage that is listed and has no folder yet has not begun: nothing of it can be read.
        folders = [self.stage(entry.name) for entry in self.run().stages] if self.exists else []
        return [folder for folder in folders if folder.exists]

    # -- results that other settings or data gave before

    def earlier(self, stage: str | None = None) -> list[StageFolder]:
        """Finished results that were moved aside (`dpo.1`, `dpo.2`), by stage and number; of one stage, or of all."""
        found = [(match[1], int(match[2])) for path in self._folders() if (match := EARLIER.fullmatch(path.name))]
        named = [(name, number) for name, number in sorted(found) if stage in (None, name)]
        folders = [self.stage(f"{name}.{number}") for name, number in named]
        return [folder for folder in folders if folder.exists]

    def _folders(self) -> list[Path]:
        return [path for path in self.path.iterdir() if path.is_dir()] if self.path.is_dir() else []

    def set_aside(self, stage: StageFolder, because: Sequence[str], when: str) -> StageFolder:
        """Move a stage's folder to its next free number, `dpo.1`, and note there why; gives the folder as it is now.

        Raises:
            ConfigError: the system does not move it. Nothing is lost: it stays where it is.
        """
        stage.close()
        # Numbers of whatever lies there, not of what is whole: a name that is taken must never be written over.
        taken = [int(match[2]) for path in self.path.glob(f"{stage.name}.*") if (match := EARLIER.fullmatch(path.name))]
        target = self.stage(f"{stage.name}.{max(taken, default=0) + 1}")
        try:
            os.rename(stage.path, target.path)
        except OSError as error:
            raise ConfigError(
                "the earlier result of this stage cannot be moved aside, and is not overwritten",
                where=stage.path,
                found=f"{error.strerror} (to {target.path.name})",
                expected=f"to rename the folder to `{target.path.name}`",
                remedy="make the run folder writable, or choose another folder with --out (from Python: out=)",
            ) from None
        target.write_stage(replaced=Replaced(when, tuple(because)))
        return target

    # -- what the stages came to, as the command line shows it

    def evaluations(self) -> dict[str, SuiteScores]:
        """By stage, the start first; {} if nothing was asked."""
        folders = [self.start, *self.stages()] if self.exists else []
        return {folder.name: found for folder in folders if (found := folder.document(SuiteScores)) is not None}

    def reward_evaluations(self) -> dict[str, RewardEvaluation]:
        """Of the stages that trained a reward model and held pairs out."""
        found = {folder.name: folder.document(RewardEvaluation) for folder in self.stages()}
        return {name: record for name, record in found.items() if record is not None}

    def step_evaluations(self) -> dict[str, StepEvaluation]:
        """Of the stages that trained a process reward model and held rows out."""
        found = {folder.name: folder.document(StepEvaluation) for folder in self.stages()}
        return {name: record for name, record in found.items() if record is not None}

    def held_out_scores(self) -> dict[str, HeldOutScore]:
        """Of the stages that sampled and asked held-out tasks."""
        found = {folder.name: folder.stage().held_out_score for folder in self.stages()}
        return {name: record for name, record in found.items() if record is not None}

    def warnings(self) -> list[tuple[str, str]]:
        """(stage, what is wrong with it as a whole), in the order of the stages."""
        return [(folder.name, line) for folder in self.stages() for line in folder.stage().warnings]

    def pass_at_k_changes(self) -> tuple[PassAtKChange, ...]:
        """What each stage did to pass@k, in words and figures; see `posttrain.evaluate.pass_at_k_change`."""
        path = self.path / PassAtKChanges.FILE
        return PassAtKChanges.from_json(read_json(path)).changes if path.exists() else ()

    def paired_changes(self) -> PairedChanges:
        """What each stage changed on the same items; see `posttrain.evaluate.paired_changes`."""
        path = self.path / PairedChanges.FILE
        return PairedChanges.from_json(read_json(path) if path.exists() else {})

    def merged_skills(self) -> tuple[KeptSkill, ...]:
        """What each merge kept of its parents' skills; see `posttrain.evaluate.merging.kept`."""
        path = self.path / MergedSkills.FILE
        return MergedSkills.from_json(read_json(path)).skills if path.exists() else ()

    def twin_comparisons(self) -> tuple[TwinComparison, ...]:
        """What selections are worth against their random twins; see `posttrain.evaluate.twins`."""
        path = self.path / TwinComparisons.FILE
        return TwinComparisons.from_json(read_json(path)).comparisons if path.exists() else ()

    # -- whole files

    def run(self) -> RunRecord:
        """run.json, of whatever version: of a newer one, what is known of it.

        Raises:
            SourceError: it is missing, no JSON, or holds something else than an object.
        """
        path = self.path / RunRecord.FILE
        content = read_json(path)
        if not isinstance(content, dict):
            raise SourceError(
                "this is no record of a run",
                where=path,
                found=f"a {type(content).__name__}",
                expected="an object with `schema` and `stages`",
                remedy="delete it and run the recipe again",
            )
        return RunRecord.from_json(content)

    def write_run(self, **changes: Any) -> RunRecord:
        """Change fields of run.json, keep the others, and return the whole.

        Raises:
            SourceError: a newer version wrote it; a stage of ours beside its own would be neither's layout.
        """
        before = self.run() if self.exists else RunRecord.from_json({})
        self.require_known(before)
        run = replace(before, schema=SCHEMA, **changes)
        self.write(run)
        return run

    def require_known(self, before: RunRecord) -> None:
        """Raises SourceError if a newer version wrote the folder, by its run.json."""
        if before.newer:
            raise SourceError(
                "the run folder was written by a newer version, and this one would damage it",
                where=self.path / RunRecord.FILE,
                found=f"schema: {before.schema}" + (f", posttrain {v}" if (v := before.posttrain_version) else ""),
                expected=f"schema: up to {SCHEMA}",
                remedy="go on with the version that wrote it, or choose another folder with --out; `posttrain report` "
                "and `posttrain samples` read it here too",
            )

    def write(self, document: WholeFile) -> None:
        write_json(self.path / document.FILE, document.to_json())

    def write_recipe(self, text: str) -> None:
        write_text(self.path / "recipe.yaml", text)

    def recipe(self) -> str | None:
        path = self.path / "recipe.yaml"
        return path.read_text(encoding="utf-8") if path.exists() else None

    def summary(self) -> Mapping[str, Mapping[str, float | None]]:
        """{stage: {suite.metric: value}}, the start first."""
        path = self.path / Summary.FILE
        return Summary.from_json(read_json(path)).stages if path.exists() else {}

    @contextmanager
    def locked(self, say: Callable[[str], None] = lambda line: None) -> Iterator[None]:
        """Hold the folder for one process; the lock ends with the process, however it dies.

        Args:
            say: receives a line where the file system has no locks.

        Raises ResumeError if another process runs the same recipe into the same folder, ConfigError if the folder
        cannot be made.
        """
        make_folder(self.path)
        # The lock is the kernel's, not a file with a process id: after a crash nothing stale is left to clear away.
        with (self.path / LOCK).open("a+") as file:
            state = _taken(file)
            owner = read_owner(self.path / LOCK) if state is Lock.MISSING else None
            if state is Lock.BUSY or (owner is not None and owner.is_here and not owner.is_dead):
                raise ResumeError(
                    "another process is writing to this run folder",
                    where=self.path,
                    remedy="wait for it or stop it, or choose another folder with --out",
                )
            if state is Lock.MISSING:
                say(
                    f"{self.path}: this file system has no locks; a second run into this folder is noticed on this "
                    "machine alone"
                )
            write_owner(file)
            self.remove_drafts()
            try:
                yield
            finally:
                # A run that ends in any orderly way leaves no name; one that is killed leaves its own.
                clear_owner(file)

    def remove_drafts(self) -> None:
        """Remove the temporary files of writers that were killed, in this folder and those of its stages."""
        for pattern in (".*.tmp", "*/.*.tmp", "*/evaluations/.*.tmp"):
            for path in self.path.glob(pattern):
                if is_dead(path.name):
                    path.unlink(missing_ok=True)


def remove_results(folders: Sequence[Path]) -> None:
    """Remove folders of results, or none of them where it is clear beforehand that one cannot be removed.

    Raises:
        ConfigError: a link, whose content lies elsewhere; the system refuses it. Results that stay although they were
            to go would be taken for those of the run that follows.
    """
    for folder in folders:
        if folder.is_symlink():
            raise ConfigError(
                "the stage's folder is a link, and what it leads to is not removed",
                where=folder,
                found=f"a link to {os.readlink(folder)}",
                expected="a folder",
                remedy=f"remove the link (`rm {folder}`) to begin anew and keep what it leads to",
            )
    for folder in folders:
        try:
            shutil.rmtree(folder)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ConfigError(
                "the results that are there cannot be removed",
                where=folder,
                found=f"{error.filename or folder}: {error.strerror}",
                expected="a folder that this user may remove",
                remedy=f"remove it yourself (`rm -r {folder}`), or choose another folder with --out (in Python: out=)",
            ) from None


def make_folder(path: Path) -> None:
    """The folder with those above it.

    Raises:
        ConfigError: the system refuses it: no such disk, no right to write there, a file of that name.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            "the run folder cannot be made",
            where=path,
            found=error.strerror,
            expected="a path that this user may write to",
            remedy="choose another path (--out DIR, or `out` in the recipe)",
        ) from None


def _taken(file: IO[Any]) -> Lock:
    """The lock; tried again, since a report that looks whether the run lives has it for an instant."""
    for _ in range(2):
        if (state := lock(file)) is not Lock.BUSY:
            return state
        time.sleep(0.03)
    return lock(file)
