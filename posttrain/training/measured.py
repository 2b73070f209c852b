"""What trees were worth under a policy: of a rank's micro-batches, and of all ranks together.

gathered = Gathered()
gathered.add(out, routing, batch, part)      # a micro-batch
gathered.measured()                          # Measured, of the whole step, alike on every rank
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from posttrain.diagnostics.metrics import merge, numbers
from posttrain.models.tree.router import router_metrics, summed
from posttrain.outputs import LossOutput, Metric, Routing, Total
from posttrain.parallel.world import world
from posttrain.types import Batch, RowRef

BY_SOURCE = ("loss", "reward_accuracy", "reward_margin", "step_accuracy", "supervised_tokens", "rows")
"""The metrics that a mixture has for each source as well; all of them would be a hundred curves."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What trees were worth under a policy.

    Measured(metrics={"loss": Mean(5.5, 8)}, per_tree={"rewards_chosen": [...]}, rows=(RowRef("pairs.jsonl", 1), ...))
    """

    metrics: dict[str, Metric]
    per_tree: dict[str, list[float]] = field(default_factory=dict)
    """One value per tree, in the order of `rows`."""
    rows: tuple[RowRef, ...] = ()
    tokens: int = 0
    """All tokens that went through the model, prompts included, each once."""


@dataclass(slots=True)
class Gathered:
    """What a rank's micro-batches were worth; `measured` puts all ranks' together."""

    metrics: list[dict[str, Metric]] = field(default_factory=list)
    of_part: dict[str, list[Mapping[str, Metric]]] = field(default_factory=dict)
    per_tree: dict[str, list[float]] = field(default_factory=dict)
    rows: list[RowRef] = field(default_factory=list)
    routings: list[Routing] = field(default_factory=list)
    tokens: int = 0

    def add(self, out: LossOutput, routing: Routing | None, batch: Batch, part: str | None) -> None:
        """One micro-batch, whose trees are all of one source of a mixture."""
        self.metrics.append(out.metrics)
        if part is not None:
            self.of_part.setdefault(part, []).append({**out.metrics, "rows": Total(batch.num_trees)})
        for name, values_P in out.per_tree.items():
            self.per_tree.setdefault(name, []).extend(values_P.tolist())
        self.rows.extend(batch.rows)
        self.routings += [routing.detach()] if routing is not None else []
        self.tokens += int(batch.input_ids_T.shape[0])

    def measured(self) -> Measured:
        """Of the whole step, alike on every rank; rows in the order of the ranks."""
        here = world()
        if here.is_alone:
            return self.merged()
        whole = Gathered()
        for part in here.gather(self._portable()):
            whole.join(part)
        return whole.merged()

    def merged(self) -> Measured:
        """Of the micro-batches that are in it."""
        metrics = {**merge(self.metrics), **router_metrics(summed(self.routings)), **by_source(self.of_part)}
        return Measured(metrics, self.per_tree, tuple(self.rows), self.tokens)

    def join(self, other: Gathered) -> None:
        """Another rank's behind what is here."""
        self.metrics += other.metrics
        for name, values in other.per_tree.items():
            self.per_tree.setdefault(name, []).extend(values)
        for name, metrics in other.of_part.items():
            self.of_part.setdefault(name, []).extend(metrics)
        self.rows += other.rows
        self.routings += other.routings
        self.tokens += other.tokens

    def _portable(self) -> Gathered:
        """Merged as far as one rank can, and on the CPU: it travels to every rank."""
        merged = [numbers(merge(self.metrics))] if self.metrics else []
        of_part: dict[str, list[Mapping[str, Metric]]] = {
            name: [numbers(merge(metrics))] for name, metrics in self.of_part.items()
        }
        routing = on_cpu(summed(self.routings))
        return Gathered(merged, of_part, self.per_tree, self.rows, [] if routing is None else [routing], self.tokens)


def on_cpu(routing: Routing | None) -> Routing | None:
    return None if routing is None else routing.detach().to("cpu")


def by_source(of_part: Mapping[str, Sequence[Mapping[str, Metric]]]) -> dict[str, Metric]:
    """The metrics of each source of a mixture under its name: {"loss/maths": Mean(5.5, 8), "rows/maths": Total(21)}."""
    return {
        f"{name}/{part}": metric
        for part, metrics in of_part.items()
        for name, metric in merge(metrics).items()
        if name in BY_SOURCE
    }
