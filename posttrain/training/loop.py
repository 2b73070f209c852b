"""The one training loop.

    for step in range(done, steps):
        trees = rows of this step
        accumulate(policy, reference, algorithm, trees)    # gradients, metrics
        optimizer.step()                                   # refuses what is not finite
        run.write(metrics, alarms.check(metrics), samples)

A file and live rollouts look the same from here: something that answers `at(step)` with trees.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from posttrain.config.stages import TrainingStage
from posttrain.diagnostics import metrics as metric_tools
from posttrain.diagnostics.alarms import Alarm, Alarms, non_finite
from posttrain.diagnostics.checks import CHECKS
from posttrain.diagnostics.progress import Phase, Progress
from posttrain.diagnostics.run_store import StageFolder
from posttrain.errors import NonFiniteError, ResumeError, TrainingError
from posttrain.models.logprobs import Policy
from posttrain.training import checkpoint
from posttrain.training.algorithms import Algorithm
from posttrain.training.memory import MemoryPlan, explained
from posttrain.training.optimizer import Optimizer
from posttrain.training.order import RowOrder, stream_seed
from posttrain.training.preflight import Decoder
from posttrain.training.step import Measured, Reference, accumulate, measure
from posttrain.types import Metric, TokenTree, Total

SAMPLED_ROWS = 3


@dataclass(frozen=True, slots=True)
class Work:
    """All that a stage trains with, once it has passed its preflight."""

    stage: TrainingStage
    algorithm: Algorithm
    policy: Policy
    reference: Reference | None
    rows: Sequence[TokenTree]
    held_out: Sequence[TokenTree]
    decoder: Decoder
    tokens_per_microbatch: int
    memory: MemoryPlan | None
    seed: int
    identity: str
    """Hash of the recipe's stage, the data and the start model: a checkpoint of another identity is refused."""


class Interrupted(TrainingError):
    """The user stopped the run; it can go on from its checkpoint."""


class Loop:
    """One stage's training: Loop(work, folder, progress).run() -> steps taken in all."""

    def __init__(self, work: Work, folder: StageFolder, progress: Progress):
        self.work = work
        self.folder = folder
        self.progress = progress
        stage = work.stage
        self.order = RowOrder.plan(
            len(work.rows), stage.rows_per_step, epochs=stage.epochs, steps=stage.steps, seed=work.seed
        )
        self.optimizer = Optimizer(
            work.policy.model,
            stage.optimizer,
            learning_rate=stage.learning_rate,
            schedule=stage.schedule,
            steps=self.order.steps,
        )
        self.alarms = Alarms([check for name, check in CHECKS.items() if name not in stage.alarms.off])
        self.step = 0
        """Steps taken."""
        self.seconds = 0.0
        self._last_checkpoint: str | None = None
        self._ended = False
        """The last step is taken and the held-out rows are measured: only the export is left."""

    def arithmetic(self) -> str:
        """The batch in the user's units, one line."""
        noun = "pairs" if self.work.algorithm.unit == "pairs" else "rows"
        return f"{self.order.arithmetic(noun)}; micro-batches of up to {self.work.tokens_per_microbatch:,} tokens"

    # ------------------------------------------------------------ the run

    def run(self) -> int:
        """Train to the end, from the newest checkpoint if there is one.

        Raises:
            NonFiniteError: after the last good weights were saved and the alarm was written.
            Interrupted: after Ctrl-C, when a checkpoint has been written.
            TrainingError: a critical alarm, where the stage says that it stops.
        """
        torch.manual_seed(stream_seed(self.work.seed, "dropout") % 2**63)
        self._resume()
        if self.step == 0:
            self._measure_held_out("start")
        with explained(self.work.memory), _deferred_interrupt() as interrupted:
            phase = self.progress.phase(
                f"{self.folder.name}: training", total=self.order.steps, unit="steps", done=self.step
            )
            with phase:
                while self.step < self.order.steps:
                    self._one_step(phase)
                    if interrupted():
                        self._save()
                        raise Interrupted(
                            f"stopped after step {self.step} of {self.order.steps}, with a checkpoint",
                            where=self.folder.path,
                            remedy="run the same command again to go on",
                        )
        if not self._ended:
            self._measure_held_out("end")
            self._ended = True
            self._save()
        return self.step

    def _one_step(self, phase: Phase) -> None:
        work, started = self.work, time.perf_counter()
        trees = [work.rows[index] for index in self.order.at(self.step)]
        try:
            measured = accumulate(
                work.policy,
                work.reference,
                work.algorithm,
                trees,
                work.tokens_per_microbatch,
                step=self.step,
                tick=lambda tokens: phase.advance(0, tokens=tokens),
            )
            update = self.optimizer.step(self.step, [str(tree.row) for tree in trees])
        except NonFiniteError as error:
            self._stop_on_non_finite(error)
            raise
        elapsed = time.perf_counter() - started
        self.step += 1
        self.seconds += elapsed
        values = self._write_metrics(
            measured,
            grad_norm=update.grad_norm,
            learning_rate=update.learning_rate,
            tokens_per_second=measured.tokens / elapsed,
        )
        self._raise_alarms(self.alarms.check(self.step, values, last_good_checkpoint=self._last_checkpoint))
        self._periodic()
        phase.advance(1, note=_note(values))

    def _periodic(self) -> None:
        stage, last = self.work.stage, self.step == self.order.steps
        if _due(stage.log.held_out_every, self.step) and not last:
            self._measure_held_out(None)
        if _due(stage.log.samples_every, self.step) or self.step == 1 or last:
            self._write_samples()
        if _due(stage.checkpoint.every_steps, self.step) and not last:
            self._save()

    # ------------------------------------------------------------ what is written

    def _write_metrics(self, measured: Measured, split: Any = "train", **extra: float) -> dict[str, float]:
        values = {**metric_tools.values(measured.metrics), **extra}
        self.folder.append_metrics(
            step=self.step,
            epoch=self.order.epoch_after(self.step),
            seconds=self.seconds,
            values=values,
            counts=metric_tools.counts(measured.metrics),
            split=split,
        )
        return values

    def _measure_held_out(self, when: str | None) -> None:
        """Held-out metrics; at both ends also one line per pair, for the report's distributions."""
        work = self.work
        if not work.held_out:
            return
        title = f"{self.folder.name}: held-out rows"
        with self.progress.phase(title, total=len(work.held_out), unit="rows") as phase:
            measured = _in_slices(
                work.held_out,
                work.stage.rows_per_step,
                lambda trees: measure(work.policy, work.reference, work.algorithm, trees, work.tokens_per_microbatch),
                phase,
            )
        values = self._write_metrics(measured, "held_out")
        self._raise_alarms(
            self.alarms.check(self.step, values, split="held_out", last_good_checkpoint=self._last_checkpoint)
        )
        if when and "rewards_chosen" in measured.per_tree:
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
            measured = measure(work.policy, work.reference, work.algorithm, [tree], work.tokens_per_microbatch)
            prompt, responses = _texts(tree, work.decoder)
            roles = ["target"] if len(responses) == 1 else ["chosen", "rejected"]
            names = ["logprob"] if len(responses) == 1 else ["logprob_chosen", "logprob_rejected"]
            self.folder.append_sample(
                {
                    "step": self.step,
                    "row": str(tree.row),
                    "prompt": prompt,
                    "responses": [
                        {"role": role, "text": text, "logprob": measured.per_tree[name][0]}
                        for role, text, name in zip(roles, responses, names, strict=True)
                    ],
                }
            )

    # ------------------------------------------------------------ alarms and checkpoints

    def _raise_alarms(self, alarms: Sequence[Alarm]) -> None:
        for alarm in alarms:
            self.folder.append_alarm(alarm.record())
            self.progress.say(f"{alarm.severity}: {alarm.name} at step {alarm.step}: {alarm.message}. {alarm.remedy}")
        if self.work.stage.alarms.on_critical == "stop":
            for alarm in alarms:
                if alarm.severity == "critical":
                    self._save()
                    raise TrainingError(f"step {alarm.step}: {alarm.name}: {alarm.message}", remedy=alarm.remedy)

    def _stop_on_non_finite(self, error: NonFiniteError) -> None:
        """Nothing has moved since the last update: the weights are good, and worth keeping."""
        self.optimizer.adamw.zero_grad(set_to_none=True)
        if self.step and self._last_checkpoint != _name(self.step):
            self._save()
        alarm = non_finite(self.step + 1, error.tensors, error.rows, last_good_checkpoint=self._last_checkpoint)
        self.folder.append_alarm(alarm.record())
        self.folder.sync()

    def _save(self) -> None:
        self.folder.sync()
        state = {
            "identity": self.work.identity,
            "seconds": self.seconds,
            "ended": self._ended,
            "alarms": self.alarms.state_dict(),
        }
        path = checkpoint.save(
            self.folder.checkpoints,
            step=self.step,
            model=self.work.policy.model,
            optimizer=self.optimizer,
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
                remedy="undo the change to go on, or start the stage anew with --fresh",
            )
        checkpoint.restore(found, self.work.policy.model, self.optimizer)
        self.alarms.load_state_dict(found.state["alarms"])
        self.step, self.seconds = found.step, float(found.state["seconds"])
        self._last_checkpoint = str(found.path.relative_to(self.folder.path))
        self._ended = bool(found.state["ended"])
        if not self._ended:
            self.folder.truncate_after(self.step)
        self.progress.say(f"{self.folder.name}: goes on after step {self.step} of {self.order.steps}")


# ---------------------------------------------------------------- small things


def _due(every: int | None, step: int) -> bool:
    return every is not None and step % every == 0


def _name(step: int) -> str:
    return f"checkpoints/step-{step:08d}"


def _note(values: dict[str, float]) -> str:
    parts = [f"loss {values['loss']:.4f}"]
    if "reward_accuracy" in values:
        parts.append(f"accuracy {values['reward_accuracy']:.0%}")
    return "  ".join(parts)


def _texts(tree: TokenTree, decoder: Decoder) -> tuple[str, list[str]]:
    """The prompt's text, and that of each branch from its first trained token on."""
    marked = [decoder.decode_marked(tree, index) for index in range(len(tree.branches))]
    prompt = marked[0][0][0] if not marked[0][0][1] else ""
    return prompt, ["".join(text for text, _ in pieces[1 if prompt else 0 :]) for pieces in marked]


def _in_slices(
    trees: Sequence[TokenTree], size: int, call: Callable[[Sequence[TokenTree]], Measured], phase: Phase
) -> Measured:
    """Measure a long sequence a slice at a time, so that the trees of a memory-mapped data set pass through."""
    parts: list[dict[str, Metric]] = []
    per_tree: dict[str, list[float]] = {}
    rows: list[Any] = []
    for start in range(0, len(trees), size):
        taken = [trees[i] for i in range(start, min(start + size, len(trees)))]
        measured = call(taken)
        parts.append({k: m for k, m in measured.metrics.items() if not isinstance(m, Total)})
        for name, column in measured.per_tree.items():
            per_tree.setdefault(name, []).extend(column)
        rows.extend(measured.rows)
        phase.advance(len(taken), tokens=measured.tokens)
    return Measured(metric_tools.merge(parts), per_tree, tuple(rows))


@contextmanager
def _deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Ctrl-C ends the run after the step under way; a second one ends it at once.

    Signals reach the main thread only; elsewhere an interrupt is what it always is.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def ask(number: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)
