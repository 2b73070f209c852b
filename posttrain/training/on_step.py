"""`train(..., on_step=f)`: a function of the user's own that is told of every step, and may end the run.

    def stop_early(step):
        print(step.step, step.metrics["loss"])
        if step.held_out and step.held_out["loss"] > 1.2 * best:
            return "stop"

It is called when all that belongs to the step is written: its metrics, its alarms, held-out figures where they were
due, and a checkpoint where one was. "stop" ends the stage there as if it had been its last step: held-out rows are
measured and the model is exported; the learning rate's schedule is cut off. It changes no number of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import nn

from posttrain.arguments import wrong_argument
from posttrain.errors import FOREIGN, TrainingError, place_of
from posttrain.evaluate.asking import undisturbed
from posttrain.runs.records.logs import Alarm

STOP = "stop"


@dataclass(frozen=True, slots=True)
class StepReport:
    """What a function is told of a step.

    StepReport(step=3, steps=100, epoch=0.12, seconds=4.1, metrics={"loss": 0.66, "grad_norm": 2.1, ...},
               held_out=None, alarms=())
    """

    step: int
    """Steps taken."""
    steps: int
    """Steps that the stage has."""
    epoch: float | None
    seconds: float
    """Of training so far, over all attempts."""
    metrics: Mapping[str, float]
    """The values of the step's line in metrics.jsonl; NaN where nothing was counted."""
    held_out: Mapping[str, float] | None
    """Of the held-out rows or tasks, where they were measured after this step."""
    alarms: tuple[Alarm, ...]
    """That rang in this step."""


OnStep = Callable[[StepReport], str | None]


def require_callable(function: object) -> None:
    """Raises ConfigError for what cannot be told of a step."""
    if function is not None and (not callable(function) or isinstance(function, type)):
        raise wrong_argument(
            "on_step",
            function,
            expected='a function that takes a step and gives None, or "stop"',
            remedy='write `on_step=lambda step: print(step.metrics["loss"])`, or leave `on_step` out',
        )


def tell(function: OnStep, report: StepReport, model: nn.Module) -> bool:
    """Call the function; whether it asked to stop.

    Raises:
        TrainingError: it raised, or gave something else than None or "stop".
    """
    told = StepReport(
        report.step,
        report.steps,
        report.epoch,
        report.seconds,
        MappingProxyType(dict(report.metrics)),
        None if report.held_out is None else MappingProxyType(dict(report.held_out)),
        report.alarms,
    )
    name = getattr(function, "__qualname__", type(function).__qualname__)
    try:
        # A function that draws a number, or puts the model into another mode to try it, must not change the next step.
        with undisturbed(model):
            said = function(told)
    except FOREIGN as error:  # the boundary: other people's code
        raise TrainingError(
            f"step {report.step}: `on_step={name}` raised {type(error).__name__}",
            found=f"{type(error).__name__}: {error}{place_of(error, caller=__file__)}",
            expected='a function that takes a step and gives None, or "stop"',
            remedy="mend the function and run again: it goes on from this step's checkpoint",
        ) from error
    if said is None:
        return False
    # By its type first: an array answers `==` with an array, and a table with a table.
    if isinstance(said, str) and said == STOP:
        return True
    raise TrainingError(
        f"step {report.step}: `on_step={name}` gave what says neither to go on nor to stop",
        found=repr(said)[:80],
        expected='None, or "stop"',
        remedy="return nothing to go on; run again: it goes on from this step's checkpoint",
    )
