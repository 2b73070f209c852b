"""Which corrections still learn where the engine samples from another policy than the one that trains?

    python -m benchmarks.corrections                          # everything; about a quarter of an hour on one core
    python -m benchmarks.corrections --only stale --seeds 1 --steps 10

GRPO on the embedded model, after SFT on the package's demonstrations, learns sums from right and wrong. The engine has
weights of its own, and one fault is planted in them:

none       the trainer's weights: what there is to lose
rounded    the trainer's weights, each matrix rounded row by row to four bits, as a low-bit engine has them
stale      the trainer's weights, taken only every so many steps: completions are up to that many updates old

One update per rollout, so that without a correction nothing makes up for the difference. A line of the table is the
mean over seeds of the share of held-out sums that the *trainer's* weights get right, greedily, after the last step,
with the lowest and the highest seed; effective sample and masked share are means over all steps. A flat loop, as in
examples/grpo.py.
"""

from __future__ import annotations

import argparse
import copy
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import numpy as np
import torch

import posttrain as pt
from benchmarks.first_steps import encoded, nll, steps_of
from benchmarks.first_steps import train as fine_tune
from posttrain.advantages import group_advantages
from posttrain.data.trees import collate, count, pack
from posttrain.diagnostics.metrics import merge, values
from posttrain.losses.corrections import PUBLISHED, Published
from posttrain.losses.online import ONLINE, variant
from posttrain.losses.policy import policy_loss
from posttrain.rollout.engine import Completion
from posttrain.rollout.native import NativeEngine
from posttrain.rollout.text import completion_text
from posttrain.rollout.turns import completion_tree
from posttrain.sampling import SamplingDistribution
from posttrain.types import Task, TokenTree

METHODS: Mapping[str, Published] = {"none": Published({}, {}, "nothing is made up for"), **PUBLISHED}
NEW_TOKENS, TOKENS = 40, 2048


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with the engine's weights: Fault("rounded", levels=7)."""

    name: str
    levels: int = 0
    """Steps of the grid on either side of 0; 0: not rounded."""
    every: int = 1
    """Steps after which the engine takes the trainer's weights anew."""


FAULTS = {fault.name: fault for fault in (Fault("none"), Fault("rounded", levels=7), Fault("stale", every=8))}


@dataclass(frozen=True, slots=True)
class Cell:
    """One run: what it came to, and what its steps rested on."""

    score: float
    effective: float
    masked: float


class Bench:
    """The start, the tasks and the held-out sums that all runs share."""

    def __init__(self, given: argparse.Namespace, scratch: Path):
        self.given = given
        loaded = pt.load("embedded")
        self.encoder = pt.Encoder(loaded.tokenizer, pt.EncoderSettings(max_length=256))
        policy = pt.Policy(loaded.model)
        rows = encoded(self.encoder, pt.read("package://demonstrations.jsonl"), scratch / "rows")
        fine_tune(policy, steps_of(rows, 16, given.epochs, 0), 1e-3, nll)
        self.start = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
        self.tasks = [row for row in pt.read("package://tasks.jsonl") if isinstance(row, Task)]
        self.held_out, self.tasks = self.tasks[: given.held_out], self.tasks[given.held_out :]

    def run(self, method: str, fault: Fault, seed: int) -> Cell:
        given, chosen = self.given, METHODS[method]
        policy = pt.Policy(pt.load("embedded").model)
        policy.model.load_state_dict(self.start)
        behaviour = copy.deepcopy(policy.model)
        engine = NativeEngine(behaviour, decode=self.encoder.tokens.decode)
        row = variant(ONLINE["grpo"], kl="none", **chosen.choices)
        parameters = row.resolve(chosen.parameters)
        optimizer = torch.optim.AdamW(policy.parameters(), lr=given.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
        order = torch.randperm(len(self.tasks), generator=torch.Generator().manual_seed(seed)).tolist()
        measured = []
        for step in range(given.steps):
            if step % fault.every == 0:
                take_weights(behaviour, policy.model, fault)
            first = step * given.prompts
            asked = [self.tasks[order[i % len(order)]] for i in range(first, first + given.prompts)]
            trees = self.rollout(engine, asked, 1_000 * seed + step)
            total = count(trees)
            outputs = []
            for micro in pack(trees, TOKENS):
                batch = collate(micro)
                out = policy_loss(row, parameters, policy(batch), batch, total, on_policy=True)
                out.loss.backward()
                outputs.append(out.metrics)
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0, error_if_nonfinite=True)
            optimizer.step()
            optimizer.zero_grad()
            measured.append(values(merge(outputs)))
        return Cell(
            self.score(policy),
            fmean(one["sampler_effective_size"] for one in measured),
            fmean(one.get("masked_share", 0.0) for one in measured),
        )

    def rollout(self, engine: NativeEngine, asked: Sequence[Task], seed: int) -> list[TokenTree]:
        """A tree per task, with advantages and what the engine said of its own tokens."""
        each = self.given.completions
        prompts = [self.encoder.prompt(task.prompt) for task in asked]
        sampling = SamplingDistribution(
            temperature=1.0, max_new_tokens=NEW_TOKENS, stop_ids=self.encoder.stop_ids, seed=seed
        )
        groups = engine.generate(prompts, sampling, completions_per_prompt=each)
        rewards_B = torch.tensor(
            [self.right(one, task) for task, group in zip(asked, groups, strict=True) for one in group]
        )
        credit = group_advantages("group_std", rewards_B, torch.arange(len(asked)).repeat_interleave(each))
        return [
            with_columns(completion_tree(prompt, group, task.row), group, advantages)
            for task, prompt, group, advantages in zip(asked, prompts, groups, credit.values_B.split(each), strict=True)
        ]

    def right(self, completion: Completion, task: Task) -> float:
        numbers = re.findall(r"-?\d+", completion_text(completion, self.encoder.tokens.decode))
        return float(bool(numbers) and numbers[-1] == task.answer)

    def score(self, policy: pt.Policy) -> float:
        engine = NativeEngine(policy.model, decode=self.encoder.tokens.decode)
        greedy = SamplingDistribution(
            temperature=0.0, max_new_tokens=NEW_TOKENS, stop_ids=self.encoder.stop_ids, seed=0
        )
        prompts = [self.encoder.prompt(task.prompt) for task in self.held_out]
        answers = engine.generate(prompts, greedy, completions_per_prompt=1)
        return fmean(self.right(one, task) for (one,), task in zip(answers, self.held_out, strict=True))


@torch.no_grad()
def take_weights(engine: torch.nn.Module, trainer: torch.nn.Module, fault: Fault) -> None:
    """The trainer's weights, with the fault. Norms and biases stay: no engine rounds them."""
    for ours, theirs in zip(trainer.parameters(), engine.parameters(), strict=True):
        if fault.levels and ours.dim() == 2:
            grid = ours.abs().amax(1, keepdim=True).clamp(min=1e-8) / fault.levels
            theirs.copy_((ours / grid).round() * grid)
        else:
            theirs.copy_(ours)


def with_columns(tree: TokenTree, group: Sequence[Completion], advantages: torch.Tensor) -> TokenTree:
    branches = [
        replace(
            branch,
            columns={
                "advantages": np.full(len(branch.ids), advantage, dtype=np.float32),
                "sampler_logprobs": np.asarray(one.logprobs, dtype=np.float32),
            },
        )
        for branch, one, advantage in zip(tree.branches, group, advantages.tolist(), strict=True)
    ]
    return replace(tree, branches=tuple(branches))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=FAULTS, help="faults")
    parser.add_argument("--methods", nargs="*", choices=METHODS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=2, help="of the demonstrations before")
    parser.add_argument("--prompts", type=int, default=8, help="of a step")
    parser.add_argument("--completions", type=int, default=8, help="of a prompt")
    parser.add_argument("--held-out", type=int, default=100, help="sums that are never trained on")
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(given, Path(scratch))
        policy = pt.Policy(pt.load("embedded").model)
        policy.model.load_state_dict(bench.start)
        print(f"start: {bench.score(policy):.1%} of {given.held_out} held-out sums right")
        print("| fault | correction | right (lowest to highest seed) | effective sample | masked |")
        print("|---|---|---|---|---|")
        for name in given.only or FAULTS:
            for method in given.methods or (METHODS if name != "none" else ("none",)):
                seeds = range(given.first_seed, given.first_seed + given.seeds)
                cells = [bench.run(method, FAULTS[name], seed) for seed in seeds]
                scores = [cell.score for cell in cells]
                print(
                    f"| {name} | `{method}` | {fmean(scores):.1%} ({min(scores):.1%} to {max(scores):.1%}) | "
                    f"{fmean(cell.effective for cell in cells):.1%} | {fmean(cell.masked for cell in cells):.1%} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
