"""A loss of one's own on the whole trainer: preflight, alarms, checkpoints, held-out rows, export and report.

    python examples/objective.py pairs.jsonl --model smollm2-135m-instruct --steps 20

The loss is DPO's (equation 7 of Rafailov et al. 2023, arXiv:2305.18290) with a squared hinge in the place of
-log sigmoid. Shape suffix: P pairs. examples/dpo.py shows the other way: the same pieces in a flat loop, without the
trainer.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

import posttrain as pt
from posttrain.training.on_step import StepReport


@pt.objective(kind="pairwise", reference=True)
def hinge_squared(
    chosen_P: Tensor, rejected_P: Tensor, ref_chosen_P: Tensor, ref_rejected_P: Tensor, beta: float = 0.1
) -> tuple[Tensor, dict[str, Tensor]]:
    """One loss for each pair, before any mean; `inside` is the share of pairs that still teach."""
    margin_P = beta * ((chosen_P - ref_chosen_P) - (rejected_P - ref_rejected_P))
    return torch.relu(1 - margin_P).square(), {"inside": (margin_P < 1).float()}


def show(step: StepReport) -> None:
    figures = step.metrics
    print(f"step {step.step:3}  loss {figures['loss']:.4f}  margin {figures['reward_margin']:+.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", help="rows with prompt, chosen and rejected, in any format that posttrain reads")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--pairs-per-step", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--out", default="runs/objective")
    given = parser.parse_args()

    stage = pt.Objective(
        hinge_squared,
        parameters={"beta": given.beta},
        steps=given.steps,
        rows_per_step=given.pairs_per_step,
        learning_rate=given.learning_rate,
    )
    run = pt.train(stage, given.model, given.pairs, out=given.out, on_step=show, progress=False)
    print(run.summary())


if __name__ == "__main__":
    main()
