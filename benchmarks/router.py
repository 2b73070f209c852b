"""One step on a mixture of experts against TRL's: the load-balancing loss, and the weights after the step.

    python -m benchmarks.router --peer .venv-peer/bin/python

The same tiny Qwen3-MoE, the same rows of ids, plain gradient descent; once as one micro-batch and once as several,
which TRL would give another gradient. Ends with an error if the updates differ by more than rounding.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

from benchmarks.record import run_module
from benchmarks.router_rows import BETA, PAD, RATE, SHAPE, rows
from posttrain.config import DPO, SFT
from posttrain.data.tree_key import make_tree
from posttrain.models.folders.quiet import quiet
from posttrain.models.reference import LiveReference
from posttrain.models.tree.logprobs import Policy
from posttrain.training.balance import balanced
from posttrain.training.objectives import algorithm
from posttrain.training.step import accumulate
from posttrain.types import RowRef, TokenTree

ALLOWED = 1e-5
"""Of the update's norm, and of the losses: fp32 on both sides."""
BUDGETS = {"one micro-batch": 1 << 20, "several": 40}


@dataclass(frozen=True, slots=True)
class Step:
    """Step(loss=4.61, aux_loss=2.03, weights={...}): the loss without the router's part."""

    loss: float
    aux_loss: float
    weights: Mapping[str, Tensor]


def start(folder: Path) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(Qwen3MoeConfig(**SHAPE, pad_token_id=PAD, norm_topk_prob=True))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    model.save_pretrained(folder)


def trees(method: str) -> list[TokenTree]:
    sides = ("chosen",) if method == "sft" else ("chosen", "rejected")
    return [
        make_tree(list(row["prompt"]), [(list(row[s]), [True] * len(row[s])) for s in sides], RowRef("rows", index))
        for index, row in enumerate(rows())
    ]


def ours(folder: Path, method: str, budget: int) -> Step:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    policy = Policy(model)
    parameters = {"beta": BETA} if method == "dpo" else None
    stage = SFT() if method == "sft" else DPO(beta=BETA)
    objective = balanced(algorithm(method, parameters), policy, stage)
    reference = LiveReference(policy) if objective.needs_reference else None
    measured = accumulate(policy, reference, objective, trees(method), budget, step=0)
    torch.optim.SGD(model.parameters(), lr=RATE).step()
    values = {name: metric.value for name, metric in measured.metrics.items()}
    return Step(values["loss"], values["router_aux_loss"], {k: v.detach() for k, v in model.named_parameters()})


def theirs(peer: str, folder: Path, method: str, out: Path) -> dict[str, float]:
    printed = run_module(
        peer, "benchmarks.peer_router", ["--model", str(folder), "--method", method, "--out", str(out)]
    )
    return json.loads(printed.splitlines()[-1])


def apart(step: Step, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> float:
    """|our update - TRL's| / |TRL's|, over the weights as they are saved: one tensor for each expert."""
    own = saved(step.weights)
    gap = torch.stack([(own[name] - after[name]).norm() for name in after]).norm()
    return float(gap / torch.stack([(after[name] - before[name]).norm() for name in after]).norm())


def saved(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Named and shaped as in a folder."""
    model = AutoModelForCausalLM.from_config(Qwen3MoeConfig(**SHAPE, pad_token_id=PAD, norm_topk_prob=True))
    model.load_state_dict(dict(weights), strict=False)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return load_file(Path(folder) / "model.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--peer", required=True, help="a Python that has trl")
    given = parser.parse_args()
    failed = False
    print("method  split              loss      aux_loss  TRL's aux_loss  update apart")
    with quiet(), tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "start"
        start(folder)
        before = load_file(folder / "model.safetensors")
        for method in ("sft", "dpo"):
            out = Path(name) / method
            peer = theirs(given.peer, folder, method, out)
            after = load_file(out / "model.safetensors")
            for split, budget in BUDGETS.items():
                step = ours(folder, method, budget)
                gap = apart(step, before, after)
                failed |= gap > ALLOWED or abs(step.aux_loss - peer["aux_loss"]) > 1e-3  # TRL logs four digits
                line = f"{method:<7} {split:<16} {step.loss:9.6f} {step.aux_loss:9.6f} {peer['aux_loss']:15.6f}"
                print(f"{line} {gap:13.1e}")
    if failed:
        raise SystemExit("the updates differ by more than rounding")


if __name__ == "__main__":
    main()
