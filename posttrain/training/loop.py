"""The one training loop.

    for step in range(done, steps):
        for trees in source.at(step):                          # one update for a file, several for a rollout
            accumulate(policy, reference, algorithm, trees)    # gradients, metrics
            optimizer.step()                                   # refuses what is not finite
        run.write(metrics, alarms.check(metrics), samples)

A file and live rollouts look the same from here: something that answers `at(step)` with trees (`source.py`).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from safetensors import SafetensorError

from posttrain.config.adapters import AdapterSettings
from posttrain.config.base import RowStage, TrainingStage
from posttrain.diagnostics import metrics as metric_tools
from posttrain.diagnostics.alarms import Alarm, Alarms, make_checks, non_finite
from posttrain.errors import CheckpointError, NonFiniteError, ResumeError, TrainingError
from posttrain.models.folders.finite import non_finite_tensors, non_finite_weights
from posttrain.models.tree.model import TreeModel
from posttrain.runs.folder import StageFolder
from posttrain.runs.progress import Phase, Progress
from posttrain.training import checkpoint, faults
from posttrain.training.checks.memory import MemoryPlan, explain_out_of_memory
from posttrain.training.checks.preflight import Decoder
from posttrain.training.loop_parts import deferred_interrupt, in_slices, of_updates, together
from posttrain.training.objectives import Algorithm
from posttrain.training.optimizer import Optimizer, Update
from posttrain.training.order import RowOrder, stream_seed
from posttrain.training.source import RowSource, Source
from posttrain.training.step import Measured, Reference, accumulate, branch_values, measure, require_two_rows, slices
from posttrain.types import TokenTree

SAMPLED_ROWS = 3


@dataclass(frozen=True, slots=True)
class Work:
    """All that a stage trains with, once it has passed its preflight."""

    stage: TrainingStage
    algorithm: Algorithm
    policy: TreeModel
    reference: Reference | None
    rows: Sequence[TokenTree]
    held_out: Sequence[TokenTree]
    decoder: Decoder
    tokens_per_microbatch: int
    memory: MemoryPlan | None
    seed: int
    identity: str
    """Hash of the recipe's stage, the data and the start model: a checkpoint of another identity is refused."""
    adapter: AdapterSettings | None = None
    """The record of the fresh adapter that trains."""
    source: Source | None = None
    """Where a step's trees come from; None: `rows`."""


class Interrupted(TrainingError):
    """The user stopped the run; it can go on from its checkpoint."""


class Loop:
    """One stage's training: Loop(work, folder, progress).run() -> steps taken in all."""

    def __init__(self, work: Work, folder: StageFolder, progress: Progress):
        self.work = work
        self.folder = folder
        self.progress = progress
        stage = work.stage
        self.source = work.source or _rows(work)
        self.optimizer = Optimizer(
            work.policy.model,
            stage.optimizer,
            learning_rate=stage.learning_rate,
            schedule=stage.schedule,
            steps=self.source.steps * self.source.updates,
            adapter=work.adapter,
        )
        self.alarms = Alarms(make_checks(stage.alarms.changes))
        self.step = 0
        """Steps taken."""
        self.seconds = 0.0
        self._within_step = False
        """Whether the weights have moved since the last whole step."""
        self._whole: Mapping[str, Any] | None = None
        """While a step is under way: what a checkpoint of the last whole step holds beside weights and moments."""
        self._unmeasured = False
        """Whether what follows the last whole step (held-out rows, samples) is still to be done."""
        self._last_checkpoint: str | None = None
        self._said_not_watched = False
        self._ended = False
        """The last step is taken and the held-out rows are measured: only the export is left."""

    def arithmetic(self) -> str:
        """The batch in the user's units, one line."""
        return f"{self.source.arithmetic()}; micro-batches of up to {self.work.tokens_per_microbatch:,} tokens"

    # ------------------------------------------------------------ the run

    def run(self) -> int:
        """Train to the end, from the newest checkpoint if there is one.

        Raises:
            NonFiniteError: after the last good weights were saved and the alarm was written; it names the first module,
                parameter and rows that are not finite.
            Interrupted: after Ctrl-C, when a checkpoint has been written.
            TrainingError: a critical alarm, where the stage says that it stops.
        """
        torch.manual_seed(stream_seed(self.work.seed, "dropout") % 2**63)
        with explain_out_of_memory(self.work.memory):
            return self._train()

    def _train(self) -> int:
        self._resume()
        if self.step == 0 and not self._ended:
            self._measure("start")
        with deferred_interrupt() as interrupted:
            phase = self.progress.phase(
                f"{self.folder.name}: training", total=self.source.steps, unit="steps", done=self.step
            )
            with phase:
                if self._unmeasured:
                    self._after_step()
                while self.step < self.source.steps and self.source.stop() is None:
                    self._one_step(phase)
                    if interrupted():
                        self._save()
                        raise Interrupted(
                            f"stopped after step {self.step} of {self.source.steps}, with a checkpoint",
                            where=self.folder.path,
                            remedy="run the same command again to go on",
                        )
        if not self._ended:
            if (why := self.source.stop()) is not None:
                self.progress.say(f"{self.folder.name}: ended after step {self.step}: {why}")
            self.source.finish()
            self._measure("end")
            self._ended = True
            self._save()
        return self.step

    def _one_step(self, phase: Phase) -> None:
        started = time.perf_counter()
        done: list[tuple[Measured, Update]] = []
        self._whole = self._moving_state()
        try:
            for place, trees in enumerate(self.source.at(self.step)):
                done.append(self._update(trees, self.step * self.source.updates + place, phase))
        except NonFiniteError as error:
            self._stop_on_non_finite(error)
            raise
        except Exception as error:
            self._keep_whole_step(error)
            raise
        elapsed = time.perf_counter() - started
        self.step += 1
        self._within_step, self._whole, self._unmeasured = False, None, True
        self.seconds += elapsed
        measured = together([one for one, _ in done])
        values = self._write_metrics(measured, **of_updates([one for _, one in done], measured.tokens / elapsed))
        self._raise_alarms(self.alarms.check(self.step, values, last_good_checkpoint=self._last_checkpoint))
        self._say_not_watched(values)
        self._after_step()
        phase.advance(1, note=_note(values))

    def _update(self, trees: Sequence[TokenTree], index: int, phase: Phase) -> tuple[Measured, Update]:
        """One update; `index` counts them from 0."""
        with self.progress.doing("update"):
            return self._take_update(trees, index, phase)

    def _take_update(self, trees: Sequence[TokenTree], index: int, phase: Phase) -> tuple[Measured, Update]:
        work = self.work
        given = (work.policy, work.reference, work.algorithm, trees, work.tokens_per_microbatch)
        try:
            measured = accumulate(
                *given, step=index, seed=work.seed, tick=lambda tokens: phase.advance(0, tokens=tokens)
            )
            update = self.optimizer.step(index, [str(tree.row) for tree in trees])
        except NonFiniteError as error:
            raise faults.explained(error, *given, step=index, seed=work.seed) from None
        self._within_step = True
        more = self.source.after(trees, index)
        return replace(measured, metrics={**measured.metrics, **more}), update

    def _after_step(self) -> None:
        """What is due after a whole step; an error in it (a judge that is down) loses none of the steps, and a resumed
        run does it again from its beginning."""
        self._whole = self._moving_state()
        try:
            self._periodic()
        except Exception as error:
            self._keep_whole_step(error)
            raise

    def _periodic(self) -> None:
        stage, last = self.work.stage, self.step == self.source.steps
        due = self.source.measures(self.step)
        if due or (due is None and _due(stage.log.held_out_every, self.step) and not last):
            self._measure(None)
        if _due(stage.log.samples_every, self.step) or self.step == 1 or last:
            with self.progress.doing("samples"):
                self._write_samples()
        self._unmeasured, self._whole = False, None
        if _due(stage.checkpoint.every_steps, self.step) and not last:
            self._save()

    # ------------------------------------------------------------ what is written

    def _write_metrics(self, measured: Measured, split: Any = "train", **extra: float) -> dict[str, float]:
        values = {**metric_tools.values(measured.metrics), **extra}
        if split == "train":
            values |= self.source.ended(self.step, values)
        self.folder.append_metrics(
            step=self.step,
            epoch=self.source.epoch_after(self.step),
            seconds=self.seconds,
            values=values,
            counts=metric_tools.counts(measured.metrics),
            split=split,
        )
        return values

    def _measure(self, when: str | None) -> None:
        """Held-out metrics of step 0, of the end, or of a step between; a source that measures itself says when."""
        due = self.source.measures(self.step)
        if due is None:
            self._measure_rows(when)
        elif due and when != "end":
            values = self._write_metrics(Measured(dict(self.source.held_out(self.step))), "held_out")
            self._raise_alarms(
                self.alarms.check(self.step, values, split="held_out", last_good_checkpoint=self._last_checkpoint)
            )

    def _measure_rows(self, when: str | None) -> None:
        """The held-out rows; at both ends also one line per pair or response, for the report's distributions."""
        work = self.work
        if not work.held_out:
            return
        title = f"{self.folder.name}: held-out rows"
        with self.progress.phase(title, total=len(work.held_out), unit="rows") as phase:
            measured = in_slices(
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
        values = self._write_metrics(measured, "held_out")
        self._raise_alarms(
            self.alarms.check(self.step, values, split="held_out", last_good_checkpoint=self._last_checkpoint)
        )
        if when and not {"rewards_chosen", "good"}.isdisjoint(measured.per_tree):
            columns = measured.per_tree
            for index, row in enumerate(measured.rows):
                figures = {name: column[index] for name, column in columns.items()}
                self.folder.append_pair({"when": when, "row": str(row), **figures})

    def _write_samples(self) -> None:
        """What the policy gives a few rows now, as text with log-probs."""
        work = self.work
        source = work.held_out or work.rows
        trees = [source[i] for i in range(min(SAMPLED_ROWS, len(source)))]
        for tree in trees:
            values = branch_values(work.policy, work.reference, work.algorithm, tree)
            prompt, responses = _texts(tree, work.decoder)
            self.folder.append_sample(
                {
                    "step": self.step,
                    "row": str(tree.row),
                    "prompt": prompt,
                    "responses": [
                        {"role": role, "text": text, **{name: column[place] for name, column in values.items()}}
                        for place, (role, text) in enumerate(zip(tree.roles, responses, strict=True))
                    ],
                }
            )

    # ------------------------------------------------------------ alarms and checkpoints

    def _say_not_watched(self, values: dict[str, float]) -> None:
        """After the first step that trained: the alarms that cannot ring, in stage.json and in a line."""
        if self._said_not_watched or "loss" not in values:
            return
        self._said_not_watched = True
        blind = self.alarms.not_watched()
        self.folder.write_stage(alarms_not_watched=blind)
        if blind:
            said = "; ".join(f"{name} ({why})" for name, why in blind.items())
            self.progress.say(f"{self.folder.name}: alarms that cannot ring here: {said}")

    def _raise_alarms(self, alarms: Sequence[Alarm]) -> None:
        for alarm in alarms:
            self.folder.append_alarm(alarm.record())
            self.progress.say(f"{alarm.severity}: {alarm.name} at step {alarm.step}: {alarm.message}. {alarm.remedy}")
        on_critical = self.work.stage.alarms.on_critical == "stop"
        for alarm in alarms:
            if alarm.stops or (on_critical and alarm.severity == "critical"):
                self._save()
                raise TrainingError(f"step {alarm.step}: {alarm.name}: {alarm.message}", remedy=alarm.remedy)

    def _stop_on_non_finite(self, error: NonFiniteError) -> None:
        """The weights after the last whole step are worth keeping if they are finite; those of a part of a step are not
        a step's, and a run could not go on from them."""
        self._keep_whole_step(error)
        self._write_non_finite(self.step + 1, error)

    def _keep_whole_step(self, error: Exception) -> None:
        """Save what the last whole step reached, before an error ends the run: a reward that raises, an engine that is
        gone, a store that cannot be read. The error itself is raised in any case, also where this cannot be saved."""
        self.optimizer.adamw.zero_grad(set_to_none=True)
        if not self.step or self._within_step or self._last_checkpoint == _name(self.step):
            return
        if broken := self._non_finite_state():
            self.progress.say(
                f"{self.folder.name}: step {self.step} is not saved: its weights are not finite ({broken[0]})"
            )
            return
        try:
            self._save()
        except (OSError, SafetensorError, CheckpointError) as failure:  # a full disk is safetensors' own kind of error
            self.progress.say(f"{self.folder.name}: {self.step} steps are done, and could not be saved: {failure}")
            return
        self.progress.say(
            f"{self.folder.name}: {type(error).__name__} after {self.step} steps, which are saved: once its cause is "
            "mended, the same command goes on from there"
        )

    def _moving_state(self) -> dict[str, Any]:
        """What moves with training beside weights and moments, as it is now. A step changes it before it moves a
        weight (a curriculum notes what was solved, a reward draws numbers), and a checkpoint of the step before must
        not have that."""
        moving: dict[str, Any] = {
            "alarms": self.alarms.state_dict(),
            "source": dict(self.source.state_dict()),
            "random_state": checkpoint.random_state(),
        }
        if self.work.algorithm.memory is not None:
            moving["objective"] = copy.deepcopy(self.work.algorithm.memory.state_dict())
        return moving

    def _write_non_finite(self, step: int, error: NonFiniteError) -> None:
        """The alarm, with the newest checkpoint that was looked through and is finite: older ones than the newest are
        not good by their age, since a weight may have been NaN for long before a loss was."""
        finite = checkpoint.latest_finite(self.folder.checkpoints)
        name = None if finite is None else str(finite.relative_to(self.folder.path))
        self.folder.append_alarm(non_finite(step, error.tensors, error.rows, last_good_checkpoint=name).record())
        self.folder.sync()

    def _non_finite_state(self) -> list[str]:
        """What a checkpoint would hold that is no number: weights and moments of all that trains."""
        parts = {
            "": (self.work.policy.model, self.optimizer),
            **{f"{k}::": part for k, part in self.source.parts.items()},
        }
        found: list[str] = []
        for prefix, (model, optimizer) in parts.items():
            found += [prefix + name for name in non_finite_weights(model)]
            moments = ((f"{n}|{key}", v) for n, own in optimizer.state_dict().items() for key, v in own.items())
            found += [prefix + name for name in non_finite_tensors(moments)]
        return found

    def _refuse_non_finite_state(self) -> None:
        """Before anything is saved or exported as good: an update of finite gradients can overflow the weights."""
        bad = self._non_finite_state()
        if not bad:
            return
        finite = checkpoint.latest_finite(self.folder.checkpoints)
        error = NonFiniteError(
            f"after step {self.step}, {', '.join(bad[:3])}{f' and {len(bad) - 3} more' if len(bad) > 3 else ''} "
            "hold NaN or infinity; they were not saved. "
            + ("No checkpoint is finite" if finite is None else f"The last checkpoint that is finite is {finite.name}"),
            remedy="lower learning_rate, set optimizer.clip_norm, and start anew with --fresh",
            tensors=bad,
        )
        self._write_non_finite(self.step, error)
        raise error

    def _save(self) -> None:
        with self.progress.doing("checkpoint"):
            self._write_checkpoint()

    def _write_checkpoint(self) -> None:
        self._refuse_non_finite_state()
        self.folder.sync()
        state = {
            "identity": self.work.identity,
            "seconds": self.seconds,
            "ended": self._ended,
            "unmeasured": self._unmeasured,
            **(self._moving_state() if self._whole is None else self._whole),
        }
        path = checkpoint.save(
            self.folder.checkpoints,
            step=self.step,
            model=self.work.policy.model,
            optimizer=self.optimizer,
            others=self.source.parts,
            state=state,
            keep=self.work.stage.checkpoint.keep,
        )
        self._last_checkpoint = str(path.relative_to(self.folder.path))

    def _resume(self) -> None:
        found = checkpoint.latest(self.folder.checkpoints)
        if found is None:
            return
        if found.state["identity"] != self.work.identity:
            raise ResumeError(
                "the recipe, the data or the start model changed since this checkpoint was written",
                where=found.path,
                remedy="undo the change to go on, or start the stage anew with --fresh (from Python: fresh=True)",
            )
        checkpoint.restore(found, self.work.policy.model, self.optimizer, self.source.parts)
        self.source.load_state_dict(found.state.get("source", {}))
        if self.work.algorithm.memory is not None:
            self.work.algorithm.memory.load_state_dict(found.state["objective"])
        self.alarms.load_state_dict(found.state["alarms"])
        self.step, self.seconds = found.step, float(found.state["seconds"])
        self._last_checkpoint = str(found.path.relative_to(self.folder.path))
        self._ended = bool(found.state["ended"])
        self._unmeasured = bool(found.state.get("unmeasured", False))
        if not self._ended:
            self.folder.truncate_after(self.step, measured=not self._unmeasured)
        threads, before = torch.get_num_threads(), found.state.get("threads")
        if before is not None and before != threads:
            self.progress.say(
                f"{self.folder.name}: torch had {before} threads and has {threads} now: sums round differently, so "
                "that this run need not equal an uninterrupted one bit for bit"
            )
        self.progress.say(f"{self.folder.name}: goes on after step {self.step} of {self.source.steps}")


# ---------------------------------------------------------------- small things


def _due(every: int | None, step: int) -> bool:
    return every is not None and step % every == 0


def _name(step: int) -> str:
    return f"checkpoints/step-{step:08d}"


def _note(values: dict[str, float]) -> str:
    parts = [f"loss {values['loss']:.4f}"] if "loss" in values else []
    if "reward_accuracy" in values:
        parts.append(f"accuracy {values['reward_accuracy']:.0%}")
    if "reward" in values:
        parts.append(f"reward {values['reward']:.3f}")
    return "  ".join(parts)


def _rows(work: Work) -> RowSource:
    """The stage's own rows as a source."""
    stage = work.stage
    assert isinstance(stage, RowStage)  # every other stage brings its source
    order = RowOrder.plan(len(work.rows), stage.rows_per_step, epochs=stage.epochs, steps=stage.steps, seed=work.seed)
    require_two_rows(work.algorithm, order, len(work.held_out))
    return RowSource(work.rows, order, "pairs" if work.algorithm.unit == "pairs" else "rows")


def _rows_at_once(work: Work) -> int:
    return work.stage.rows_per_step if isinstance(work.stage, RowStage) else len(work.held_out)


def _texts(tree: TokenTree, decoder: Decoder) -> tuple[str, list[str]]:
    """The prompt's text, and that of each branch from its first trained token on."""
    marked = [decoder.decode_marked(tree, index) for index in range(len(tree.branches))]
    prompt = marked[0][0][0] if not marked[0][0][1] else ""
    return prompt, ["".join(text for text, _ in pieces[1 if prompt else 0 :]) for pieces in marked]
