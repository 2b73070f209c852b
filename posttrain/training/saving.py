"""What a run can go on from: checkpoints of whole steps, written when one is due, and when an error ends the run.

    saver.resume()                    # from the newest checkpoint, if there is one
    with saver.guarded():             # an error or Ctrl-C in here saves what the last whole step reached, and is raised
        ...                           # a step, or what follows it
    saver.save()

Where ranks share the model, each writes its part of a periodic checkpoint while the training goes on. What became of it
is asked at the end of every step, and waited for by whatever ends the run.

A step changes more than weights, and before it moves one: a curriculum notes what was solved, a reward draws numbers.
So `guarded` takes a copy of all that moves when it begins, and an error saves that copy beside the weights.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from posttrain.diagnostics.alarms import Alarms, non_finite
from posttrain.errors import CheckpointError, NonFiniteError, ResumeError, SourceError
from posttrain.models.folders.finite import non_finite_tensors, non_finite_weights
from posttrain.models.sharding.shards import mesh_of
from posttrain.parallel.world import ALONE, is_everywhere, world
from posttrain.runs.checkpoints import Checkpoint
from posttrain.runs.folder import StageFolder
from posttrain.runs.progress import Progress
from posttrain.runs.values import missing_steps
from posttrain.training import checkpoint
from posttrain.training.optimizer import Optimizer
from posttrain.training.sharded_checkpoint import Writing, begin
from posttrain.training.source import Parts, Source
from posttrain.training.work import Work


@dataclass(slots=True)
class RunState:
    """How far a run is."""

    step: int = 0
    """Whole steps taken."""
    seconds: float = 0.0
    is_measured: bool = True
    """Whether what follows the last whole step (held-out rows, samples) is done; a resumed run does it again."""
    is_ended: bool = False
    """The last step is taken and the held-out rows are measured: only the export is left."""


class Saver:
    """See the module's docstring.

    Args:
        parts: what trains beside the policy.
    """

    def __init__(
        self,
        work: Work,
        folder: StageFolder,
        progress: Progress,
        optimizer: Optimizer,
        source: Source,
        parts: Parts,
        alarms: Alarms,
    ):
        self.work, self.folder, self.progress = work, folder, progress
        self.optimizer, self.source, self.parts, self.alarms = optimizer, source, parts, alarms
        self.state = RunState()
        self.latest: str | None = None
        """The newest checkpoint, by its name in the folder."""
        self._saved_at = time.monotonic()
        self._writing: Writing | None = None
        """A checkpoint on its way, where ranks share the model; there is at most one."""
        self._within_step = False
        """Whether the weights have moved since the last whole step: they are then no step's, and cannot be saved."""
        self._before: Mapping[str, Any] | None = None
        """What moved with training when `guarded` began; None outside of it."""

    # ------------------------------------------------------------ as the run goes

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """An error inside saves what the last whole step reached, before it ends the run: a reward that raises, an
        engine that is gone, a store that cannot be read. So does Ctrl-C, where nothing waits for the step's end."""
        self._before = self._moving_state()
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            # Saving is done by all ranks together; one that failed alone has nobody to do it with.
            if world().is_alone or is_everywhere(error):
                self._save_whole_step(error)
            raise
        self._before = None

    def weights_moved(self) -> None:
        self._within_step = True

    def step_taken(self, seconds: float) -> None:
        self._within_step, self.state.is_measured = False, False
        self.state.step += 1
        self.state.seconds += seconds

    def measured(self) -> None:
        """What follows a step is done: a checkpoint from now on holds what it moved."""
        self.state.is_measured, self._before = True, None

    # ------------------------------------------------------------ saving

    def save(self, *, wait: bool = True) -> None:
        """Write a checkpoint.

        Args:
            wait: False lets the ranks of a sharded model write it while they train; see `look`.

        Raises:
            NonFiniteError: weights or moments are not finite; nothing is written but the alarm.
            SourceError: the disk refuses this one, or the one before it that was still being written.
        """
        with self.progress.doing("checkpoint"):
            self.finish()
            self._write()
            if wait:
                self.finish()

    def look(self) -> None:
        """At the end of each step: whether the checkpoint on its way has its name by now.

        Raises:
            SourceError: it could not be written; see `save`.
        """
        # Over on all ranks, or on none: they raise at the same step, or count the checkpoint from the same step on.
        if self._writing is not None and self._writing.is_done():
            self.finish()

    def finish(self) -> None:
        """Wait for the checkpoint on its way, if there is one.

        Raises:
            SourceError: it could not be written; see `save`.
        """
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        with self.progress.doing("checkpoint"):
            self.latest = str(writing.result().relative_to(self.folder.path))

    def _write(self) -> None:
        self._refuse_non_finite_state()
        # The logs first: a checkpoint that is ahead of its logs would leave a gap in them for ever.
        with world().together("syncing the logs"):
            self.folder.sync()
        state = {
            "identity": self.work.identity,
            "seconds": self.state.seconds,
            "ended": self.state.is_ended,
            "unmeasured": not self.state.is_measured,
            "processes": world().size,
            **(self._moving_state() if self._before is None else self._before),
        }
        parts = checkpoint.parts_of(self.work.policy.model, self.optimizer, self.parts)
        tensors, keep = checkpoint.tensors_of(parts), self.work.stage.checkpoint.keep
        self._saved_at = time.monotonic()
        if (mesh := mesh_of(tensors.values())) is not None:
            state = {"random_state": checkpoint.random_state(), "threads": torch.get_num_threads(), **state}
            state["mesh"] = list(mesh.shape)
            self._writing = begin(self.folder.checkpoints, self.state.step, tensors, state, keep)
            return
        # Every rank holds the same; one writes, and the others go on when it is whole.
        path = world().agreed(
            lambda: checkpoint.save(
                self.folder.checkpoints,
                step=self.state.step,
                model=self.work.policy.model,
                optimizer=self.optimizer,
                others=self.parts,
                state=state,
                keep=keep,
            )
        )
        self.latest = str(path.relative_to(self.folder.path))

    def is_due(self, every_minutes: float | None) -> bool:
        """Whether the newest checkpoint, or the run's begin, is that long ago. No number depends on where a run was
        saved, so the clock may decide it."""
        # By rank 0's clock: the ranks save together or not at all.
        return every_minutes is not None and world().agreed(
            lambda: time.monotonic() - self._saved_at >= 60 * every_minutes
        )

    def _moving_state(self) -> dict[str, Any]:
        """What moves with training beside weights and moments, as it is now."""
        moving: dict[str, Any] = {
            "alarms": self.alarms.state_dict(),
            "source": dict(self.source.state_dict()),
            "random_state": checkpoint.random_state(),
        }
        # With dropout each rank draws from a stream of its own.
        if self.work.policy.dropout and not world().is_alone:
            moving["random_states"] = world().gather(checkpoint.random_state())
        # Copied: an objective changes its memory in place, while the step runs that may fail.
        if self.work.algorithm.memory is not None:
            moving["objective"] = copy.deepcopy(self.work.algorithm.memory.state_dict())
        return moving

    def _save_whole_step(self, error: BaseException) -> None:
        """The error itself is raised in any case, also where this cannot be saved."""
        # Gradients of half a step take as much memory as the weights, and the copy below needs it.
        self.optimizer.adamw.zero_grad(set_to_none=True)
        step = self.state.step
        try:
            self.finish()
            # A part of a step is no step: going on from it would train the rest of its rows twice or never.
            if not step or self._within_step or self.latest == f"checkpoints/step-{step:08d}":
                return
            if broken := self._non_finite_state():
                self.progress.say(
                    f"{self.folder.name}: step {step} is not saved: its weights are not finite ({broken[0]})"
                )
                return
            self.save()
        # A full disk is a SourceError; what cannot be read back may be an error of safetensors' own.
        except (OSError, SafetensorError, SourceError, CheckpointError) as failure:
            self.progress.say(f"{self.folder.name}: {step} steps are done, and could not be saved: {failure}")
            return
        self.progress.say(
            f"{self.folder.name}: stopped after {step} steps, which are saved: the same command goes on from there"
            if isinstance(error, KeyboardInterrupt)
            else f"{self.folder.name}: {type(error).__name__} after {step} steps, which are saved: once its cause is "
            "mended, the same command goes on from there"
        )

    # ------------------------------------------------------------ numbers that are none

    def write_non_finite(self, step: int, error: NonFiniteError) -> None:
        """The alarm, with the newest checkpoint that was looked through and is finite: older ones than the newest are
        not good by their age, since a weight may have been NaN for long before a loss was."""
        finite = self._latest_finite(is_together=is_everywhere(error))
        name = None if finite is None else str(finite.relative_to(self.folder.path))
        self.folder.append(non_finite(step, error.tensors, error.rows, last_good_checkpoint=name))
        self.folder.sync()

    def _latest_finite(self, *, is_together: bool) -> Path | None:
        """Read through by one rank where all ask; by whoever asks where an error is one rank's own."""
        folder = self.folder.checkpoints
        return (world().agreed if is_together else ALONE.agreed)(lambda: checkpoint.latest_finite(folder))

    def _non_finite_state(self) -> list[str]:
        """What a checkpoint would hold that is no number: weights and moments of all that trains."""
        trained = checkpoint.parts_of(self.work.policy.model, self.optimizer, self.parts)
        names: list[str] = []
        for prefix, (model, optimizer) in trained.items():
            names += [prefix + name for name in non_finite_weights(model)]
            moments = ((f"{n}|{key}", v) for n, own in optimizer.state_dict().items() for key, v in own.items())
            names += [prefix + name for name in non_finite_tensors(moments)]
        return names

    def _refuse_non_finite_state(self) -> None:
        """Before anything is saved or exported as good: an update of finite gradients can overflow the weights."""
        bad = self._non_finite_state()
        if not bad:
            return
        # What a user needs next is a checkpoint to go on from, so the error names it.
        finite = self._latest_finite(is_together=True)
        error = NonFiniteError(
            f"after step {self.state.step}, {', '.join(bad[:3])}{f' and {len(bad) - 3} more' if len(bad) > 3 else ''} "
            "hold NaN or infinity; they were not saved. "
            + ("No checkpoint is finite" if finite is None else f"The last checkpoint that is finite is {finite.name}"),
            remedy="lower learning_rate, set optimizer.clip_norm, and start anew with --fresh",
            tensors=bad,
        )
        self.write_non_finite(self.state.step, error)
        raise error

    # ------------------------------------------------------------ resuming

    def resume(self) -> None:
        """Go on from the newest checkpoint, if there is one.

        Raises:
            ResumeError: it is of another recipe, other data or another start model.
        """
        if strangers := checkpoint.strangers(self.folder.checkpoints):
            self.progress.say(f"{self.folder.checkpoints}: {', '.join(strangers)} is no checkpoint, and is left alone")
        here = world()
        path = here.agreed(lambda: checkpoint.newest(self.folder.checkpoints))
        if path is None:
            return
        kept, bad = checkpoint.read_together(path, here)
        if kept.state["identity"] != self.work.identity:
            raise ResumeError(
                "the recipe, the data, the start model or the objective's source changed since this checkpoint",
                where=kept.path,
                remedy="undo the change to go on, or start the stage anew with --fresh (from Python: fresh=True)",
            )
        here.agreed(lambda: checkpoint.require_finite(path, bad))
        with here.together("reading the checkpoint"):
            checkpoint.restore(kept, self.work.policy.model, self.optimizer, self.parts)
        before, now = int(kept.state.get("processes", 1)), here.size
        if before == now and (states := kept.state.get("random_states")) is not None:
            checkpoint.restore_random_state(states[here.rank])
        # An older checkpoint has no such key; a source of rows needs none.
        self.source.load_state_dict(kept.state.get("source", {}))
        if self.work.algorithm.memory is not None:
            self.work.algorithm.memory.load_state_dict(kept.state["objective"])
        self.alarms.load_state_dict(kept.state["alarms"])
        self.state = RunState(
            kept.step,
            float(kept.state["seconds"]),
            is_measured=not kept.state.get("unmeasured", False),
            is_ended=bool(kept.state["ended"]),
        )
        self.latest = str(kept.path.relative_to(self.folder.path))
        if not self.state.is_ended:
            # Lines of steps that were taken after the checkpoint: the run writes them again.
            self.folder.truncate_after(kept.step, measured=self.state.is_measured)
            self._say_missing_steps()
        self._say_other_ranks(kept)
        # A sum over threads is cut into as many parts as there are threads.
        threads, had = torch.get_num_threads(), kept.state.get("threads")
        if had is not None and had != threads:
            self.progress.say(
                f"{self.folder.name}: torch had {had} threads and has {threads} now: sums round differently, so "
                "that this run need not equal an uninterrupted one bit for bit"
            )
        self.progress.say(f"{self.folder.name}: goes on after step {kept.step} of {self.source.steps}")

    def _say_other_ranks(self, kept: Checkpoint) -> None:
        """Sums over ranks are cut into as many parts as there are ranks, and as the mesh lays them out."""
        before, now = int(kept.state.get("processes", 1)), world().size
        mesh = mesh_of(self.work.policy.model.parameters())
        had, has = kept.state.get("mesh"), None if mesh is None else list(mesh.shape)
        rounding = "the same steps on the same rows, equal to rounding and not bit for bit"
        if before != now:
            self.progress.say(f"{self.folder.name}: {before} processes saved it and {now} go on: {rounding}")
        elif had != has:
            self.progress.say(f"{self.folder.name}: the model was {_spread(had)} and is {_spread(has)} now: {rounding}")

    def _say_missing_steps(self) -> None:
        """A log that was cut or deleted changes no weight, and would be noticed only as a hole in the curves."""
        steps = [line.step for line in self.folder.metrics("train") if line.step is not None]
        if lacking := missing_steps(steps, last=self.state.step):
            after = [step for step in steps if step > 0]
            begin = min(after) if after and min(after) > 1 else self.state.step + 1 if not after else None
            where = f"begin at step {begin}" if begin is not None else "have no points there"
            self.progress.say(f"{self.folder.name}: metrics.jsonl lacks {lacking}: curves and report {where}")


def _spread(mesh: Sequence[int] | None) -> str:
    """`compute.mesh` in words."""
    if mesh is None:
        return "whole on each process"
    return f"shared by {mesh[-1]} processes" + (f" in each of {mesh[0]} groups" if len(mesh) > 1 else "")
