"""Our losses against TRL's own on the same log-probs: values and gradients.

    python -m benchmarks.trl_losses --peer .venv-peer/bin/python

TRL runs in its own environment (`peer_losses.py`), on the trainers' own loss methods. Prints one table, and ends with
an error if a loss or a gradient differs by more than rounding.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.loss_cases import CASES, Case, Sides, sides
from benchmarks.record import run_module
from posttrain.data.trees import collate
from posttrain.losses.feedback import FEEDBACK
from posttrain.outputs import LossOutput, TokenLogprobs
from posttrain.training.objectives import algorithm
from posttrain.types import Batch, Branch, RowRef, TokenTree

ALLOWED = {"dpo_alpha": 1e-5, "orpo": 1e-5, "exo_pair": 1e-6}
"""Relative differences where TRL computes in fp32; `DOUBLE` elsewhere."""
DOUBLE = 1e-9


@dataclass(frozen=True, slots=True)
class Difference:
    """Difference("dpo", ours=0.69, theirs=0.69, loss=1.6e-16, gradient=2.1e-16, remark="")"""

    name: str
    ours: float
    theirs: float
    loss: float
    """|ours - theirs| / |theirs|"""
    gradient: float
    """Largest difference of the gradient per token, relative to its largest entry."""
    remark: str

    @property
    def agrees(self) -> bool:
        allowed = ALLOWED.get(self.name, DOUBLE)
        return self.loss <= allowed and self.gradient <= allowed


def tree_of(lengths: Sequence[int], row: int, label: bool | None = None) -> TokenTree:
    """A tree whose branches have so many trained tokens."""
    branches = tuple(Branch(np.arange(n, dtype=np.int32), np.ones(n, dtype=bool)) for n in lengths)
    return TokenTree(np.arange(3, dtype=np.int32), branches, f"tree-{row}", RowRef("cases", row), label=label)


def ours(case: Case, given: Sides) -> tuple[LossOutput, list[Tensor]]:
    """Our loss, and the log-probs of each response in the order of `given`."""
    rows = [torch.tensor(row, dtype=torch.float64, requires_grad=True) for row in given.policy]
    pairs = len(rows) // 2
    if case.name in FEEDBACK:
        order = list(range(2 * pairs))
        trees = [tree_of([len(rows[i])], i, label=i < pairs) for i in order]
    else:
        order = [side for pair in range(pairs) for side in (pair, pairs + pair)]
        trees = [tree_of([len(rows[i]), len(rows[pairs + i])], i) for i in range(pairs)]
    batch = collate(trees)
    policy = TokenLogprobs(torch.cat([rows[i] for i in order]), log_collision_N=_flat(given.collision, order))
    method = algorithm(case.name, dict(case.ours))
    statistics = statistics_of(case, batch, given)
    reference_N = _flat(given.reference, order) if method.needs_reference else None
    if statistics is None:
        return method.loss(policy, reference_N, batch, batch.count), rows
    return method.loss(policy, reference_N, batch, batch.count, statistics=statistics), rows


def statistics_of(case: Case, batch: Batch, given: Sides) -> Mapping[str, Tensor] | None:
    """What TRL's side has in place of our step: no reward shift, and the KL of the same mismatched completions."""
    if case.name in ("bco_pair", "mpo"):
        return {"shift": torch.zeros(batch.num_trees, dtype=torch.float64)}
    if case.name == "kto":
        coupling = FEEDBACK["kto"].coupling
        assert coupling is not None
        return coupling.reduce({"log_ratio": torch.tensor(given.mismatched, dtype=torch.float64)})
    return None


def _flat(rows: Sequence[Sequence[float]], order: Sequence[int]) -> Tensor:
    return torch.tensor([value for index in order for value in rows[index]], dtype=torch.float64)


def compare(case: Case, given: Sides, theirs: Mapping[str, Any]) -> Difference:
    """Both sides of one case."""
    out, rows = ours(case, given)
    loss = out.loss
    if case.trainer == "orpo":  # only the odds term is TRL's function
        loss = loss - out_nll(rows)
    slopes = torch.autograd.grad(loss, rows, allow_unused=True)
    mine = torch.cat([torch.zeros_like(row) if g is None else g for g, row in zip(slopes, rows, strict=True)])
    other = torch.tensor([value for row in theirs["gradient"] for value in row], dtype=torch.float64)
    value = float(loss.detach())
    return Difference(
        case.name,
        value,
        float(theirs["loss"]),
        abs(value - theirs["loss"]) / abs(theirs["loss"]),
        float((mine - other).abs().max() / other.abs().max()),
        case.remark,
    )


def out_nll(rows: Sequence[Tensor]) -> Tensor:
    """The NLL term of ORPO: mean over pairs of the chosen response's mean."""
    chosen = rows[: len(rows) // 2]
    return torch.stack([-row.mean() for row in chosen]).mean()


def table(found: Sequence[Difference]) -> str:
    """
    objective                  ours           TRL     loss   gradient
    dpo                    0.680725      0.680725  1.6e-16    2.1e-16
    """
    lines = [f"{'objective':<20}{'ours':>15}{'TRL':>15}{'loss':>10}{'gradient':>10}  remark"]
    for d in found:
        mark = "" if d.agrees else "  DIFFERS"
        lines.append(f"{d.name:<20}{d.ours:15.9g}{d.theirs:15.9g}{d.loss:10.1e}{d.gradient:10.1e}  {d.remark}{mark}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--peer", required=True, help="python of the environment that holds trl")
    arguments = parser.parse_args()
    theirs = json.loads(run_module(arguments.peer, "benchmarks.peer_losses", []).splitlines()[-1])
    found = [compare(case, sides(), theirs[case.name]) for case in CASES]
    print(table(found))
    if not all(difference.agrees for difference in found):
        raise SystemExit("a loss differs by more than rounding")


if __name__ == "__main__":
    main()
