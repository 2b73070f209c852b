"""Where a step's trees come from: a file and live rollouts look the same to the loop.

    source.at(step)      -> [[tree, tree, ...]]     one list for each update of the step; none where nothing trains
    source.after(trees)  -> metrics                 after each update
    source.held_out()    -> metrics, or None        what the policy is worth on tasks that it does not train on

A source may hold state that moves with training (a coefficient that adapts, a value model): `state_dict` and `parts`
are what a checkpoint keeps of it, and what `at` gives then depends on the seed, the step, the weights and that state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import nn

from posttrain.outputs import Metric
from posttrain.training.optimizer import Optimizer
from posttrain.training.order import RowOrder
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

    @property
    def parts(self) -> Parts: ...

    def arithmetic(self) -> str:
        """The batch in the user's units, one line."""
        ...

    def epoch_after(self, step: int) -> float:
        """How often each row has been used after `step` steps."""
        ...

    def at(self, step: int) -> Sequence[Sequence[TokenTree]]:
        """What each update of the step trains on, `step` counted from 0."""
        ...

    def after(self, trees: Sequence[TokenTree], step: int) -> Mapping[str, Metric]:
        """Called after each update with what it trained on."""
        ...

    def ended(self, step: int, values: Mapping[str, float]) -> Mapping[str, float]:
        """Called once at the end of a step with the means of its metrics; what it returns is logged beside them."""
        ...

    def measures(self, step: int) -> bool | None:
        """Whether held-out tasks are due after `step` steps; None where the loop measures held-out rows itself."""
        ...

    def held_out(self, step: int) -> Mapping[str, Metric]:
        """Answers the held-out tasks and says how well."""
        ...

    def stop(self) -> str | None:
        """Why the run should end before its last step; None to go on."""
        ...

    def finish(self) -> None:
        """Called after the last step, before the model is measured for the last time and saved."""
        ...

    def state_dict(self) -> Mapping[str, Any]:
        """What moves with training, as plain JSON."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class RowSource:
    """Rows that are there before training begins: RowSource(rows, RowOrder.plan(...), noun="pairs")."""

    updates = 1

    def __init__(self, rows: Sequence[TokenTree], order: RowOrder, noun: str):
        self.rows = rows
        self.order = order
        self.noun = noun
        self.parts: Parts = {}

    @property
    def steps(self) -> int:
        return self.order.steps

    def arithmetic(self) -> str:
        return self.order.arithmetic(self.noun)

    def epoch_after(self, step: int) -> float:
        return self.order.epoch_after(step)

    def at(self, step: int) -> Sequence[Sequence[TokenTree]]:
        return [[self.rows[index] for index in self.order.at(step)]]

    def after(self, trees: Sequence[TokenTree], step: int) -> Mapping[str, Metric]:
        return {}

    def ended(self, step: int, values: Mapping[str, float]) -> Mapping[str, float]:
        return {}

    def measures(self, step: int) -> bool | None:
        return None

    def held_out(self, step: int) -> Mapping[str, Metric]:
        return {}

    def stop(self) -> str | None:
        return None

    def finish(self) -> None:
        return None

    def state_dict(self) -> Mapping[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        return None
