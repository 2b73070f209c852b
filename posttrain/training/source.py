"""Where a step's trees come from: a file and live rollouts look the same to the loop.

    source.at(step)                 -> [[tree, tree, ...]]    one list for each update of the step; none: nothing trains
    source.state_dict()             what moves with training, so that `at` gives the same again after a resume
    hooks.after_update(trees, 7)    -> metrics                what else learns, or looks on; see `Hooks`

What `at` gives depends on the seed, the step, the weights and the source's state, and on nothing else: a resumed run
then trains on what the uninterrupted one trains on.

An asynchronous source, whose completions are sampled while others train, owns its queue, and `at` takes the next batch
from it (`rl/async_source.py`). The loop calls `state_dict` before every `at` and saves that if the step fails, so it
says, as plain JSON that later calls do not change, which tasks were asked and have not trained and which comes next.
The completions themselves are on disk from the moment they are scored until they have trained and no checkpoint is left
that would train on them again: those that ended after a checkpoint train after a resume, too, where weights that the
checkpoint knows have sampled them. Requests in flight are no state: they are asked again, under the same seed and
number, of weights that may be newer than those they were first asked of, which is why such a run resumes whole and not
bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn

from posttrain.outputs import Metric
from posttrain.training.optimizer import Optimizer
from posttrain.training.order import Order
from posttrain.types import TokenTree

Parts = Mapping[str, tuple[nn.Module, Optimizer]]
"""What trains beside the policy, by name, each with its own optimizer: {"value": (value model, optimizer)}."""


class Source(Protocol):
    """Batches for the one loop; see the module's docstring."""

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        ...

    @property
    def updates(self) -> int:
        """Optimizer updates of one step, at most."""
        ...

    def at(self, step: int) -> Sequence[Sequence[TokenTree]]:
        """What each update of the step trains on, `step` counted from 0."""
        ...

    def state_dict(self) -> Mapping[str, Any]:
        """What moves with training, as plain JSON."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class RowSource:
    """Rows that are there before training begins: RowSource(rows, RowOrder.plan(...))."""

    updates = 1

    def __init__(self, rows: Sequence[TokenTree], order: Order):
        self.rows = rows
        self.order = order

    @property
    def steps(self) -> int:
        return self.order.steps

    def at(self, step: int) -> Sequence[Sequence[TokenTree]]:
        # One by one: rows may lie memory-mapped on disk, and are read when they are asked for.
        return [[self.rows[index] for index in self.order.at(step)]]

    def state_dict(self) -> Mapping[str, Any]:
        return {}  # the order is a function of the seed and the step

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        return None


# ---------------------------------------------------------------- what goes with a source


@dataclass(frozen=True, slots=True)
class Units:
    """A run's steps as its user counts them: Units("1,000 pairs, 32 a step: ...", epoch_after=order.epoch_after)."""

    arithmetic: str
    """The batch, one line."""
    epoch_after: Callable[[int], float]
    """How often each row has been used after so many steps."""


class Examination(Protocol):
    """Measures the policy in the place of the loop, which would measure the stage's held-out rows."""

    def is_due(self, step: int) -> bool:
        """Whether it is to be measured after `step` steps."""
        ...

    def measure(self, step: int) -> Mapping[str, Metric]:
        """What the policy is worth now."""
        ...


@dataclass(frozen=True, slots=True)
class Hooks:
    """What a source does beside giving batches; a source of rows does none of it: Hooks()."""

    after_update: Callable[[Sequence[TokenTree], int], Mapping[str, Metric]] = lambda trees, index: {}
    """Called after each update with what it trained on; updates are counted from 0."""
    end_of_step: Callable[[int, Mapping[str, float]], Mapping[str, float]] = lambda step, values: {}
    """Called once at the end of a step with the means of its metrics; what it returns is logged beside them."""
    examination: Examination | None = None
    """None: the loop measures held-out rows itself."""
    why_stop: Callable[[], str | None] = lambda: None
    """Why the run should end before its last step; None to go on."""
    finish: Callable[[], None] = lambda: None
    """Called after the last step, before the model is measured for the last time and saved."""
    parts: Parts = field(default_factory=dict)
    """What trains beside the policy; a checkpoint keeps it."""
    close: Callable[[], None] = lambda: None
    """Called however the run ends, by an error or a stop too, when all is saved: what works beside the training ends
    here. May be called twice."""
