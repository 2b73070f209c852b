"""The one training loop.

    for step in range(done, steps):
        for trees in source.at(step):                          # one update for a file, several for a rollout
            accumulate(policy, reference, algorithm, trees)    # gradients, metrics
            optimizer.step()                                   # refuses what is not finite
        run.write(metrics, alarms.check(metrics), samples)

A file and live rollouts look the same from here: something that answers `at(step)` with trees, and hooks for what else
happens around a step (`source.py`). What a run can go on from is in `saving.py`.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from posttrain.config.base import RowStage
from posttrain.data.mixed_rows import spread
from posttrain.diagnostics import metrics as metric_tools
from posttrain.diagnostics.alarms import Alarms, make_checks
from posttrain.errors import NonFiniteError, TrainingError
from posttrain.outputs import Mean, Metric, Total
from posttrain.parallel.world import world
from posttrain.runs.folder import StageFolder
from posttrain.runs.progress import Phase, Progress
from posttrain.runs.records.logs import Alarm, HeldOutRow, MetricsLine, WatchedResponse, WatchedRow
from posttrain.training import faults
from posttrain.training.checks.memory import explain_out_of_memory
from posttrain.training.checks.preflight import Decoder
from posttrain.training.interrupts import deferred_interrupt, heed
from posttrain.training.measured import Measured
from posttrain.training.on_step import OnStep, StepReport, tell
from posttrain.training.optimizer import Optimizer, Update
from posttrain.training.order import RowOrder, stream_seed
from posttrain.training.pausing import Pause, Paused, paused
from posttrain.training.saving import Saver
from posttrain.training.source import RowSource, Source, Units
from posttrain.training.step import accumulate, branch_values, measure, require_two_rows, slices
from posttrain.training.work import Work
from posttrain.types import TokenTree

SAMPLED_ROWS = 3


class Interrupted(TrainingError):
    """The user stopped the run, or a signal did; it can go on from its checkpoint."""

    def __init__(self, problem: str, *, remedy: str, number: int = signal.SIGINT, **details: Any):
        self.number = number
        """Of the signal."""
        super().__init__(problem, remedy=remedy, **details)


def how_it_ended(error: BaseException | None) -> str:
    """done, interrupted (Ctrl-C, a stop that was asked for, a rung), or failed."""
    if error is None:
        return "done"
    return "interrupted" if isinstance(error, KeyboardInterrupt | Interrupted | Paused) else "failed"


class Loop:
    """One stage's training: Loop(work, folder, progress).run() -> steps taken in all."""

    def __init__(
        self,
        work: Work,
        folder: StageFolder,
        progress: Progress,
        on_step: OnStep | None = None,
        pause: Pause | None = None,
    ):
        self.here = world()
        self.work = work
        self.folder = folder
        self.progress = progress
        self.on_step = on_step
        # A user's function is rank 0's alone; that there is one, all know.
        self._tells = self.here.agreed(lambda: on_step is not None)
        self._asked_to_stop = False
        self._held_out: dict[str, float] | None = None
        self._rung: list[Alarm] = []
        stage = work.stage
        self.source, self.units = _source_of(work)
        self._pause_at = None if pause is None else pause.step(self.source.steps)
        self.hooks = work.hooks
        work.policy.settle()  # what is gathered for a pass is not what trains
        self.optimizer = Optimizer(
            work.policy.model,
            stage.optimizer,
            learning_rate=stage.learning_rate,
            schedule=stage.schedule,
            steps=self.source.steps * self.source.updates,
            adapter=work.adapter,
            offload=stage.compute.offload == "optimizer" and work.policy.device.type != "cpu",
        )
        self.alarms = Alarms(make_checks(stage.alarms.changes))
        self.saver = Saver(work, folder, progress, self.optimizer, self.source, self.hooks.parts, self.alarms)
        self._said_not_watched = False

    @property
    def step(self) -> int:
        """Steps taken."""
        return self.saver.state.step

    def arithmetic(self) -> str:
        """The batch in the user's units, one line."""
        return f"{self.units.arithmetic}; micro-batches of up to {self.work.tokens_per_microbatch:,} tokens"

    # ------------------------------------------------------------ the run

    def run(self) -> int:
        """Train to the end, from the newest checkpoint if there is one.

        Raises:
            NonFiniteError: after the last good weights were saved and the alarm was written; it names the first module,
                parameter and rows that are not finite.
            Interrupted: after Ctrl-C, when a checkpoint has been written.
            Paused: at the rung of `pause`, likewise.
            TrainingError: a critical alarm, where the stage says that it stops.
        """
        # Dropout alone draws from the global stream; a resumed run gets its state back from the checkpoint. Each rank
        # has a stream of its own, or the rows of all of them would lose the same units.
        own = () if self.here.is_alone else (self.here.rank,)
        torch.manual_seed(stream_seed(self.work.seed, "dropout", *own) % 2**63)
        try:
            with explain_out_of_memory(self.work.memory):
                return self._train()
        finally:
            self.hooks.close()

    def _train(self) -> int:
        self.saver.resume()
        state = self.saver.state
        if self.step == 0 and not state.is_ended:
            self._measure("start")
        self._take_steps()
        if not state.is_ended:
            if (why := self._why_stop()) is not None:
                self.folder.write_stage(stopped=why)
                self.progress.say(f"{self.folder.name}: ended after step {self.step}: {why}")
            # All steps are taken and the last one has no checkpoint yet: an end here would lose those since the last.
            with self.saver.guarded():
                # Before the last measurement: where the best weights are put back, those are measured and exported.
                self.hooks.finish()
                self._measure("end")
            # Marked before it is saved: a run that is killed during the export resumes to the export alone.
            state.is_ended = True
            self.saver.save()
        return self.step

    def _take_steps(self) -> None:
        title, steps = f"{self.folder.name}: training", self.source.steps
        with (
            deferred_interrupt() as interrupted,
            self.progress.phase(title, total=steps, unit="steps", done=self.step) as phase,
        ):
            if not self.saver.state.is_measured:  # the run ended between a step and what follows it
                self._after_step()
            while self.step < steps and self._why_stop() is None:
                # Before the step, so that a run whose suite failed at the rung pauses there again.
                if self._pause_at is not None and self.step >= self._pause_at:
                    self.saver.save()
                    raise paused(self.folder, self.step, steps)
                self._one_step(phase)
                # Asked of all: a signal reaches one rank, and those that took another step would wait for it.
                if number := self.here.largest(interrupted() or 0):
                    heed(number)
                    self.saver.save()
                    raise Interrupted(
                        f"stopped{_by(number)} after step {self.step} of {steps}, with a checkpoint",
                        where=self.folder.path,
                        remedy="run the same command again to go on",
                        number=number,
                    )

    def _why_stop(self) -> str | None:
        return "on_step asked for it" if self._asked_to_stop else self.hooks.why_stop()

    def _one_step(self, phase: Phase) -> None:
        self._held_out, self._rung = None, []
        started = time.perf_counter()
        parts: list[Measured] = []
        updates: list[Update] = []
        try:
            with self.saver.guarded():
                for place, trees in enumerate(self.source.at(self.step)):
                    measured, update = self._update(trees, self.step * self.source.updates + place, phase)
                    parts.append(measured)
                    updates.append(update)
        except NonFiniteError as error:
            self.saver.write_non_finite(self.step + 1, error)
            raise
        # Sampling included: tokens a second of a whole step is what a user waits for.
        elapsed = time.perf_counter() - started
        self.saver.step_taken(elapsed)
        measured = parts[0] if len(parts) == 1 else _merged(parts)
        values = self._write_metrics(measured, **_update_values(updates, measured.tokens / elapsed))
        self._raise_alarms(self.alarms.check(self.step, values, last_good_checkpoint=self.saver.latest))
        self._say_not_watched(values)
        self._after_step()
        phase.advance(1, note=_note(values))
        if self._tells:
            self._tell(values)

    def _tell(self, values: dict[str, float]) -> None:
        """The user's own function; the step is whole and measured by now, so an error in it loses nothing."""
        seconds, epoch = self.saver.state.seconds, self.units.epoch_after(self.step)
        report = StepReport(self.step, self.source.steps, epoch, seconds, values, self._held_out, tuple(self._rung))
        try:
            # What it asks for, all do.
            self._asked_to_stop = self.here.agreed(
                lambda: self.on_step is not None and tell(self.on_step, report, self.work.policy.model)
            )
        except TrainingError:
            self.saver.save()
            raise

    def _update(self, trees: Sequence[TokenTree], index: int, phase: Phase) -> tuple[Measured, Update]:
        """One update; `index` counts them from 0."""
        work = self.work
        given = (work.policy, work.reference, work.algorithm, trees, work.tokens_per_microbatch)
        with self.progress.doing("update"):
            try:
                measured = accumulate(
                    *given, step=index, seed=work.seed, tick=lambda tokens: phase.advance(0, tokens=tokens)
                )
                with self.here.together("the optimizer's step"):
                    update = self.optimizer.step(index, [str(tree.row) for tree in trees])
            except NonFiniteError as error:
                # The step is computed once more with hooks; nothing has moved, so it fails at the same place.
                raise faults.explained(error, *given, step=index, seed=work.seed) from None
            # From here to the end of the step the weights are between two steps, and no checkpoint may be made of them.
            self.saver.weights_moved()
            more = self.hooks.after_update(trees, index)
            return replace(measured, metrics={**measured.metrics, **more}), update

    def _after_step(self) -> None:
        """What is due after a whole step; an error in it (a judge that is down) loses none of the steps, and a resumed
        run does it again from its beginning."""
        stage, last, examination = self.work.stage, self.step == self.source.steps, self.hooks.examination
        with self.saver.guarded():
            self.saver.look()
            if examination is not None:
                due = examination.is_due(self.step)
            else:
                due = _due(stage.log.held_out_every, self.step) and not last
            if due:
                self._measure(None)
            if _due(stage.log.samples_every, self.step) or self.step == 1 or last:
                with self.progress.doing("samples"):
                    self._write_samples()
            # Only now: a checkpoint before would not be measured again, one after this would be measured twice.
            self.saver.measured()
            # Whichever comes first: fifty steps of a large model may be hours.
            due = _due(stage.checkpoint.every_steps, self.step) or self.saver.is_due(stage.checkpoint.every_minutes)
            if due and not last:
                self.saver.save(wait=False)

    # ------------------------------------------------------------ what is written

    def _write_metrics(self, measured: Measured, split: Any = "train", **extra: float) -> dict[str, float]:
        values = {**metric_tools.values(measured.metrics), **extra}
        if split == "train":
            # The source adds its own, such as rewards, before the line is written and the alarms see it.
            values |= self.hooks.end_of_step(self.step, values)
        # Seconds differ from rank to rank, and an alarm that reads them must ring on all or on none.
        measured_here = values
        values = self.here.agreed(lambda: measured_here)
        self.folder.append(
            MetricsLine(
                step=self.step,
                epoch=self.units.epoch_after(self.step),
                seconds=self.saver.state.seconds,
                split=split,
                values=values,
                counts=metric_tools.counts(measured.metrics),
            )
        )
        return values

    def _measure(self, when: str | None) -> None:
        """Held-out metrics of step 0, of the end, or of a step between. An examination asks after the last step what
        the end would ask again."""
        examination = self.hooks.examination
        if examination is None:
            self._measure_rows(when)
        elif when != "end" and examination.is_due(self.step):
            self._write_held_out(Measured(dict(examination.measure(self.step))))

    def _write_held_out(self, measured: Measured) -> None:
        values = self._held_out = self._write_metrics(measured, "held_out")
        alarms = self.alarms.check(self.step, values, split="held_out", last_good_checkpoint=self.saver.latest)
        self._raise_alarms(alarms)

    def _measure_rows(self, when: str | None) -> None:
        """The held-out rows; at both ends also one line per pair or response, for the report's distributions."""
        work = self.work
        if not work.held_out:
            return
        title = f"{self.folder.name}: held-out rows"
        with self.progress.phase(title, total=len(work.held_out), unit="rows") as phase:
            measured = _measured_in_slices(
                work.held_out,
                slices(len(work.held_out), _rows_at_once(work), work.algorithm),
                lambda trees, first: measure(
                    work.policy,
                    work.reference,
                    work.algorithm,
                    trees,
                    work.tokens_per_microbatch,
                    first=first,
                    seed=work.seed,
                ),
                phase,
            )
        self._write_held_out(measured)
        if when and not {"rewards_chosen", "good"}.isdisjoint(measured.per_tree):
            columns = measured.per_tree
            for index, row in enumerate(measured.rows):
                figures = {name: column[index] for name, column in columns.items()}
                self.folder.append(HeldOutRow(when, str(row), figures))

    def _write_samples(self) -> None:
        """What the policy gives a few rows now, as text with log-probs."""
        work = self.work
        source = work.held_out or work.rows
        trees = [source[place] for place in spread(source, SAMPLED_ROWS)]
        for tree in trees:
            values = branch_values(work.policy, work.reference, work.algorithm, tree)
            prompt, responses = _texts(tree, work.decoder)
            watched = tuple(
                WatchedResponse(role, text, {name: column[place] for name, column in values.items()})
                for place, (role, text) in enumerate(zip(tree.roles, responses, strict=True))
            )
            self.folder.append(WatchedRow(self.step, str(tree.row), prompt, watched))

    # ------------------------------------------------------------ alarms

    def _say_not_watched(self, values: dict[str, float]) -> None:
        """After the first step that trained: the alarms that cannot ring, in stage.json and in a line."""
        if self._said_not_watched or "loss" not in values:
            return
        self._said_not_watched = True
        blind = self.alarms.not_watched()
        self.folder.write_stage(alarms_not_watched=blind)
        if blind:
            reasons = "; ".join(f"{name} ({why})" for name, why in blind.items())
            self.progress.say(f"{self.folder.name}: alarms that cannot ring here: {reasons}")

    def _raise_alarms(self, alarms: Sequence[Alarm]) -> None:
        self._rung += alarms
        for alarm in alarms:
            self.folder.append(alarm)
            self.progress.say(f"{alarm.severity}: {alarm.name} at step {alarm.step}: {alarm.message}. {alarm.remedy}")
        # All are written before any stops the run: the one that stops is rarely the one that explains.
        on_critical = self.work.stage.alarms.on_critical == "stop"
        for alarm in alarms:
            if alarm.stops or (on_critical and alarm.severity == "critical"):
                self.saver.save()
                raise TrainingError(f"step {alarm.step}: {alarm.name}: {alarm.message}", remedy=alarm.remedy)


# ---------------------------------------------------------------- a step's figures


def _merged(parts: Sequence[Measured]) -> Measured:
    """The updates of one step as one."""
    return Measured(metric_tools.merge([part.metrics for part in parts]), tokens=sum(part.tokens for part in parts))


def _update_values(updates: Sequence[Update], tokens_per_second: float) -> dict[str, float]:
    """What is written of a step's updates; nothing where none was made."""
    if not updates:
        return {}
    norm = Mean(sum(update.grad_norm for update in updates), len(updates)).value
    rate = updates[-1].learning_rate
    return {"grad_norm": norm, "learning_rate": rate, "tokens_per_second": tokens_per_second}


def _measured_in_slices(
    trees: Sequence[TokenTree],
    bounds: Sequence[tuple[int, int]],
    call: Callable[[Sequence[TokenTree], int], Measured],
    phase: Phase,
) -> Measured:
    """Measure a long sequence a slice at a time, so that the trees of a memory-mapped data set pass through."""
    parts: list[dict[str, Metric]] = []
    per_tree: dict[str, list[float]] = {}
    rows: list[Any] = []
    for start, end in bounds:
        taken = [trees[i] for i in range(start, end)]
        measured = call(taken, start)
        # A total of a slice depends on how the rows were sliced: means alone are figures of the whole.
        parts.append({k: m for k, m in measured.metrics.items() if not isinstance(m, Total)})
        for name, column in measured.per_tree.items():
            per_tree.setdefault(name, []).extend(column)
        rows.extend(measured.rows)
        phase.advance(len(taken), tokens=measured.tokens)
    return Measured(metric_tools.merge(parts), per_tree, tuple(rows))


def _by(number: int) -> str:
    """Ctrl-C needs no name: whoever pressed it knows."""
    return "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"


def _due(every: int | None, step: int) -> bool:
    return every is not None and step % every == 0


def _note(values: dict[str, float]) -> str:
    parts = [f"loss {values['loss']:.4f}"] if "loss" in values else []
    if "reward_accuracy" in values:
        parts.append(f"accuracy {values['reward_accuracy']:.0%}")
    if "reward" in values:
        parts.append(f"reward {values['reward']:.3f}")
    return "  ".join(parts)


# ---------------------------------------------------------------- rows


def _source_of(work: Work) -> tuple[Source, Units]:
    """The stage's own source, or its rows."""
    if work.source is not None:
        assert work.units is not None, "a source that is not of rows says how its steps are counted"
        return work.source, work.units
    stage = work.stage
    assert isinstance(stage, RowStage)  # every other stage brings its source
    order = RowOrder.plan(len(work.rows), stage.rows_per_step, epochs=stage.epochs, steps=stage.steps, seed=work.seed)
    require_two_rows(work.algorithm, order, len(work.held_out))
    noun = "pairs" if work.algorithm.unit == "pairs" else "rows"
    return RowSource(work.rows, order), Units(order.arithmetic(noun), order.epoch_after)


def _rows_at_once(work: Work) -> int:
    return work.stage.rows_per_step if isinstance(work.stage, RowStage) else len(work.held_out)


def _texts(tree: TokenTree, decoder: Decoder) -> tuple[str, list[str]]:
    """The prompt's text, and that of each branch from its first trained token on."""
    marked = [decoder.decode_marked(tree, index) for index in range(len(tree.branches))]
    prompt = marked[0][0][0] if not marked[0][0][1] else ""
    return prompt, ["".join(text for text, _ in pieces[1 if prompt else 0 :]) for pieces in marked]
