"""The run folder: what a run writes while it happens, and what reports and resumed runs read back.

    runs/<recipe>/            RunFolder     recipe.yaml run.json summary.json report.html
                                            cross_scores.json pass_at_k.json
    runs/<recipe>/<stage>/    StageFolder   stage.json config.yaml preflight.json evaluation.json
                                            metrics.jsonl samples.jsonl alarms.jsonl pairs.jsonl dropped.jsonl
                                            rollouts.jsonl examinations.jsonl
                                            reward_evaluation.json reward_scores.jsonl

Standard library only, so that a report needs nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from posttrain.runs.files import JsonlLog, Record, keep_lines, read_json, read_jsonl, write_json, write_text
from posttrain.errors import ConfigError, ResumeError, SourceError

SCHEMA = 1
"""Version of the layout, kept in run.json."""

RESERVED_NAMES = ("start", "evaluations")
"""Names that no stage may have; `start` holds what the first model scored before any training."""


# ---------------------------------------------------------------- the folders


class StageFolder:
    """runs/<recipe>/<stage>/, for writing while the stage runs and for reading afterwards."""

    STEP_LOGS = ("metrics.jsonl", "samples.jsonl", "alarms.jsonl", "rollouts.jsonl", "examinations.jsonl")
    MEASURING_LOGS = ("samples.jsonl", "examinations.jsonl")
    """Those that are written when a step is over."""
    DURABLE_LOGS = ("alarms.jsonl",)

    def __init__(self, path: Path):
        self.path = Path(path)
        self._logs: dict[str, JsonlLog] = {}

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
        return (self.path / "stage.json").exists()

    # -- whole files

    def write_stage(self, **changes: Any) -> Record:
        """Change keys of stage.json, keep the others, and return all of them."""
        stage = {**(self.stage() if self.exists else {}), **changes}
        write_json(self.path / "stage.json", stage)
        return stage

    def stage(self) -> Record:
        return dict(read_json(self.path / "stage.json"))

    def write_config(self, text: str) -> None:
        write_text(self.path / "config.yaml", text)

    def write_preflight(self, preflight: Mapping[str, Any]) -> None:
        write_json(self.path / "preflight.json", preflight)

    def preflight(self) -> Record | None:
        return self._optional("preflight.json")

    def write_evaluation(self, evaluation: Mapping[str, Any]) -> None:
        """{suite: {metric: {"value", "low", "high", "n"}}}"""
        write_json(self.path / "evaluation.json", evaluation)

    def evaluation(self) -> Record | None:
        return self._optional("evaluation.json")

    def reward_evaluation(self) -> Record | None:
        """The figures of a reward model on its held-out pairs; see `posttrain.evaluate.reward`."""
        return self._optional("reward_evaluation.json")

    def step_evaluation(self) -> Record | None:
        """The figures of a process reward model on its held-out steps; see `posttrain.evaluate.steps`."""
        return self._optional("step_evaluation.json")

    def _optional(self, name: str) -> Record | None:
        path = self.path / name
        return dict(read_json(path)) if path.exists() else None

    # -- logs

    def log(self, name: str) -> JsonlLog:
        """The open log `name`, "metrics.jsonl" say; opened when it is first written."""
        if name not in self._logs:
            self._logs[name] = JsonlLog(self.path / name, "machine" if name in self.DURABLE_LOGS else "process")
        return self._logs[name]

    def append_metrics(
        self,
        *,
        step: int,
        epoch: float,
        seconds: float,
        values: Mapping[str, float],
        counts: Mapping[str, float] | None = None,
        split: Literal["train", "held_out"] = "train",
    ) -> None:
        record = {"step": step, "epoch": epoch, "seconds": seconds, "split": split}
        self.log("metrics.jsonl").append({**record, "values": values, "counts": counts or {}})

    def append_sample(self, record: Mapping[str, Any]) -> None:
        """{"step", "row", "prompt", "responses": [{"role", "text", "logprob"}]}"""
        self.log("samples.jsonl").append(record)

    def append_alarm(self, record: Mapping[str, Any]) -> None:
        """{"step", "name", "severity", "message", "evidence", "remedy", "last_good_checkpoint"}"""
        self.log("alarms.jsonl").append(record)

    def append_pair(self, record: Mapping[str, Any]) -> None:
        """{"when", "row", "rewards_chosen", "rewards_rejected", "logprob_chosen", ...}"""
        self.log("pairs.jsonl").append(record)

    def append_dropped(self, record: Mapping[str, Any]) -> None:
        """{"row", "reason", "message", "content"}"""
        self.log("dropped.jsonl").append(record)

    def metrics(self, split: str | None = None) -> list[Record]:
        records = read_jsonl(self.path / "metrics.jsonl")
        return [record for record in records if split in (None, record["split"])]

    def samples(self) -> list[Record]:
        return read_jsonl(self.path / "samples.jsonl")

    def alarms(self) -> list[Record]:
        return read_jsonl(self.path / "alarms.jsonl")

    def pairs(self) -> list[Record]:
        return read_jsonl(self.path / "pairs.jsonl")

    def dropped(self) -> list[Record]:
        return read_jsonl(self.path / "dropped.jsonl")

    def answers(self, suite: str) -> list[Record]:
        """What the stage's model answered in one evaluation suite."""
        return read_jsonl(self.path / "evaluations" / f"{suite}.jsonl")

    def truncate_after(self, step: int, *, measured: bool = True) -> None:
        """Forget what was logged after `step`, the step of the checkpoint that a resumed run starts from.

        Those steps are taken again, and each must stand in the logs once.

        Args:
            measured: whether the checkpoint was written after the step had been measured on held-out rows; else what
                was written of that is forgotten too.
        """
        self.close()

        def stands(record: Record, *, of_measuring: bool) -> bool:
            return int(record["step"]) < step + (measured or not of_measuring)

        for name in self.STEP_LOGS:
            measuring = name in self.MEASURING_LOGS
            keep_lines(
                self.path / name,
                lambda record, measuring=measuring: stands(  # type: ignore[misc]
                    record, of_measuring=measuring or record.get("split") == "held_out"
                ),
            )
        keep_lines(self.path / "pairs.jsonl", lambda record: record["when"] == "start")

    def forget_logs(self) -> None:
        """Begin a stage anew: no line of an earlier attempt may stay in its curves."""
        self.close()
        for path in [*self.path.glob("*.jsonl"), *self.path.glob("*_evaluation.json")]:
            path.unlink(missing_ok=True)

    def sync(self) -> None:
        for log in self._logs.values():
            log.sync()

    def close(self) -> None:
        for log in self._logs.values():
            log.close()
        self._logs.clear()


class RunFolder:
    """runs/<recipe>/"""

    def __init__(self, path: Path):
        self.path = Path(path)

    @property
    def exists(self) -> bool:
        return (self.path / "run.json").exists()

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
        """The stages that have begun, in the recipe's order."""
        folders = [self.stage(entry["name"]) for entry in self.run().get("stages", [])]
        return [folder for folder in folders if folder.exists]

    def evaluations(self) -> dict[str, Record]:
        """{stage: {suite: {metric: {"value", "low", "high", "n"}}}}, the start first; {} if nothing was asked."""
        folders = [self.start, *self.stages()] if self.exists else []
        return {folder.name: found for folder in folders if (found := folder.evaluation()) is not None}

    def reward_evaluations(self) -> dict[str, Record]:
        """{stage: reward_evaluation.json} of the stages that trained a reward model and held pairs out."""
        folders = self.stages() if self.exists else []
        return {folder.name: found for folder in folders if (found := folder.reward_evaluation()) is not None}

    def held_out_scores(self) -> dict[str, Record]:
        """{stage: {"start", "best", "last", "kept": {"step", "value", "low", "high", "n"}}} of stages that sampled."""
        folders = self.stages() if self.exists else []
        return {folder.name: found for folder in folders if (found := folder.stage().get("held_out_score"))}

    def warnings(self) -> list[tuple[str, str]]:
        """(stage, what is wrong with it as a whole), in the order of the stages."""
        folders = self.stages() if self.exists else []
        return [(folder.name, line) for folder in folders for line in folder.stage().get("warnings") or ()]

    def pass_at_k_changes(self) -> list[Record]:
        """What each stage did to pass@k, in words and figures; see `posttrain.evaluate.pass_at_k_change`."""
        path = self.path / "pass_at_k.json"
        return list(read_json(path)["changes"]) if path.exists() else []

    def step_evaluations(self) -> dict[str, Record]:
        """{stage: step_evaluation.json} of the stages that trained a process reward model and held rows out."""
        folders = self.stages() if self.exists else []
        return {folder.name: found for folder in folders if (found := folder.step_evaluation()) is not None}

    def write_run(self, **changes: Any) -> Record:
        """Change keys of run.json, keep the others, and return all of them."""
        run = {"schema": SCHEMA, **(self.run() if self.exists else {}), **changes}
        write_json(self.path / "run.json", run)
        return run

    def run(self) -> Record:
        run = read_json(self.path / "run.json")
        if not isinstance(run, dict):
            run = {"schema": f"none; it holds a {type(run).__name__}"}
        if run.get("schema") != SCHEMA:
            raise SourceError(
                "the run folder has a layout that this version does not know",
                where=self.path / "run.json",
                found=f"schema: {run.get('schema')}",
                expected=f"schema: {SCHEMA}",
                remedy="read it with the version that wrote it, named in its posttrain_version",
            )
        return run

    def write_recipe(self, text: str) -> None:
        write_text(self.path / "recipe.yaml", text)

    def recipe(self) -> str | None:
        path = self.path / "recipe.yaml"
        return path.read_text(encoding="utf-8") if path.exists() else None

    def write_summary(self, summary: Mapping[str, Mapping[str, float]]) -> None:
        """{stage: {metric: value}}, the stage "start" first."""
        write_json(self.path / "summary.json", summary)

    def summary(self) -> dict[str, dict[str, float | None]]:
        path = self.path / "summary.json"
        return dict(read_json(path)) if path.exists() else {}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for one process; the lock ends with the process, however it dies.

        Raises ResumeError if another process runs the same recipe into the same folder, ConfigError if the folder
        cannot be made.
        """
        make_folder(self.path)
        with (self.path / ".lock").open("a+") as file:
            if not _lock(file.fileno()):
                raise ResumeError(
                    "another process is writing to this run folder",
                    where=self.path,
                    remedy="wait for it or stop it, or choose another folder with --out",
                )
            yield


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


def _lock(handle: int) -> bool:
    if os.name == "nt":  # no advisory lock of this kind there; two runs in one folder are the user's care
        return True
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
