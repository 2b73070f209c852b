"""What 10, 60 and 1,000 rows need: epochs by learning rate on the embedded model, several seeds.

    python -m benchmarks.first_steps                       # everything; about twenty minutes on one core
    python -m benchmarks.first_steps --only identity --seeds 1

Three questions, each a grid of training runs from the same start, printed as a table for docs/first-steps.md:

chat      held-out loss of 100 other conversations, after SFT on N of the package's demonstrations
identity  share of 37 held-out questions answered with the name, after SFT on N rows that say it
pairs     held-out accuracy of 100 other pairs, after DPO with the chosen's own loss on N pairs, from an SFT start

A flat loop on the trainer's own pieces, as in examples/dpo.py: the recipe's schedule (cosine, a tenth of warm-up),
AdamW and clipping, without checkpoints, checks and exports, which would take most of the time of so short a run.
"""

from __future__ import annotations

import argparse
import math
import random
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from torch.nn.functional import logsigmoid

import posttrain as pt
from posttrain.data.questions import questions
from posttrain.data.read import Examples
from posttrain.data.trees import collate, count, pack
from posttrain.evaluate.asking import EvaluatedModel
from posttrain.evaluate.runner import evaluate_suites
from posttrain.evaluate.suites.answers import AnswerSuite
from posttrain.evaluate.suites.match import matches
from posttrain.losses.reduce import branch_sums, sides
from posttrain.models.folders.loading import LoadedModel
from posttrain.sampling import SamplingDistribution
from posttrain.types import Batch, Count, Demonstration, Example, TokenTree

MODEL = "embedded"
HELD_OUT = 100
TOKENS = 2048
"""Of a micro-batch."""
BETA, NLL_WEIGHT = 0.1, 1.0
ROWS_PER_STEP = {10: 2, 60: 4, 500: 16, 1000: 16}
"""As in posttrain/starting/choices.py."""


@dataclass(frozen=True, slots=True)
class Grid:
    """One question: Grid((10, 60), rates=(1e-3,), epochs=(1, 4), unit="%", measure=...)"""

    rows: tuple[int, ...]
    rates: tuple[float, ...]
    epochs: tuple[int, ...]
    most: int
    """Rows times epochs beyond which a cell is left out."""
    run: Callable[[int, float, int, int], float]
    """(rows, rate, epochs, seed) -> what was measured."""
    percent: bool


def steps_of(trees: Sequence[TokenTree], each: int, epochs: int, seed: int) -> list[list[TokenTree]]:
    """Every epoch a permutation of its own; the last step of an epoch may be smaller."""
    made = []
    for epoch in range(epochs):
        order = random.Random(1_000 * seed + epoch).sample(range(len(trees)), len(trees))
        made += [[trees[i] for i in order[first : first + each]] for first in range(0, len(order), each)]
    return made


def train(policy: pt.Policy, steps: list[list[TokenTree]], rate: float, loss_of: Callable[..., torch.Tensor]) -> None:
    """Cosine with a tenth of warm-up, as the recipes have it."""
    optimizer = torch.optim.AdamW(policy.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
    warmup = max(1, round(0.1 * len(steps)))
    for step, rows in enumerate(steps):
        done = (step - warmup) / max(1, len(steps) - warmup)
        factor = (step + 1) / warmup if step < warmup else 0.5 * (1 + math.cos(math.pi * done))
        optimizer.param_groups[0]["lr"] = rate * factor
        of = count(rows)
        for micro in pack(rows, TOKENS):
            loss_of(policy, collate(micro), of).backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0, error_if_nonfinite=True)
        optimizer.step()
        optimizer.zero_grad()


def nll(policy: pt.Policy, batch: Batch, of: Count) -> torch.Tensor:
    return -policy(batch).logprobs_N.sum() / of.tokens


def encoded(encoder: pt.Encoder, rows: Examples, folder: Path) -> list[TokenTree]:
    return list(pt.encode(rows, encoder, store=folder))


def says(row: Example, name: str) -> bool:
    return isinstance(row, Demonstration) and any(
        message.role == "assistant" and re.search(rf"\b{name}\b", message.content or "") for message in row.messages
    )


class Bench:
    """The starts, the encoded rows and the measurements that all cells share."""

    def __init__(self, scratch: Path):
        self.scratch = scratch
        loaded = pt.load(MODEL)
        self.encoder = pt.Encoder(loaded.tokenizer, pt.EncoderSettings(max_length=256))
        self.chats = encoded(self.encoder, pt.read("package://demonstrations.jsonl"), scratch / "chats")
        self.named = [
            tree
            for tree, row in zip(self.chats, pt.read("package://demonstrations.jsonl"), strict=True)
            if says(row, "Ada")
        ]
        self.pairs = encoded(self.encoder, pt.read("package://preferences.jsonl"), scratch / "pairs")
        self.asked = questions(list(pt.read("package://heldout_identity.jsonl")))
        self.taught: dict[str, torch.Tensor] | None = None

    def start(self) -> tuple[pt.Policy, LoadedModel]:
        loaded = pt.load(MODEL)
        return pt.Policy(loaded.model), loaded

    def chosen(self, trees: Sequence[TokenTree], rows: int, seed: int) -> tuple[list[TokenTree], list[TokenTree]]:
        """(N rows of this seed, the held-out rows, which are the same for every seed)"""
        order = random.Random(7).sample(range(len(trees)), len(trees))
        held_out, others = order[:HELD_OUT], order[HELD_OUT:]
        return [trees[i] for i in random.Random(seed).sample(others, rows)], [trees[i] for i in held_out]

    def chat(self, rows: int, rate: float, epochs: int, seed: int) -> float:
        policy, _ = self.start()
        train_rows, held_out = self.chosen(self.chats, rows, seed)
        train(policy, steps_of(train_rows, ROWS_PER_STEP[rows], epochs, seed), rate, nll)
        return self.loss(policy, held_out)

    def loss(self, policy: pt.Policy, rows: list[TokenTree]) -> float:
        of = count(rows)
        with torch.no_grad():
            return sum(nll(policy, collate(micro), of).item() for micro in pack(rows, TOKENS))

    def identity(self, rows: int, rate: float, epochs: int, seed: int) -> float:
        policy, loaded = self.start()
        train_rows = random.Random(seed).sample(self.named, rows)
        train(policy, steps_of(train_rows, ROWS_PER_STEP[rows], epochs, seed), rate, nll)
        suite = AnswerSuite(
            "named", self.asked, "match", matches(r"\bAda\b"), SamplingDistribution(temperature=0.0, max_new_tokens=24)
        )
        asked = EvaluatedModel.of(loaded.model, loaded.tokenizer, 0, pt.EncoderSettings())
        with tempfile.TemporaryDirectory() as out:
            return evaluate_suites(asked, [suite], Path(out))["named"]["match"].value

    def preference(self, rows: int, rate: float, epochs: int, seed: int) -> float:
        policy, _ = self.start()
        if self.taught is None:  # an assistant first, once: preferences of a model that cannot answer mean nothing
            train(policy, steps_of(self.chats, 16, 2, 0), 1e-3, nll)
            self.taught = {name: value.clone() for name, value in policy.state_dict().items()}
        policy.load_state_dict(self.taught)
        train_rows, held_out = self.chosen(self.pairs, rows, seed)
        with torch.no_grad():
            reference = {tree.key: policy(collate([tree])).logprobs_N for tree in (*train_rows, *held_out)}

        def ratio(policy: pt.Policy, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
            logprobs_N = policy(batch).logprobs_N
            before_N = torch.cat([reference[key] for key in batch.keys])
            return logprobs_N, branch_sums(logprobs_N - before_N, batch)

        def loss(policy: pt.Policy, batch: Batch, of: Count) -> torch.Tensor:
            logprobs_N, sums = ratio(policy, batch)
            chosen, rejected = sides(sums)
            own, _ = sides(branch_sums(-logprobs_N, batch))
            lengths, _ = sides(branch_sums(torch.ones_like(logprobs_N), batch))
            return (-logsigmoid(BETA * (chosen - rejected)) + NLL_WEIGHT * own / lengths).sum() / of.trees

        train(policy, steps_of(train_rows, ROWS_PER_STEP[rows], epochs, seed), rate, loss)
        right = 0
        with torch.no_grad():
            for micro in pack(held_out, TOKENS):
                chosen, rejected = sides(ratio(policy, collate(micro))[1])
                right += int((chosen > rejected).sum())
        return right / len(held_out)


def grids(bench: Bench) -> dict[str, Grid]:
    return {
        "identity": Grid((10, 60), (3e-4, 1e-3, 3e-3), (2, 5, 10), 10**9, bench.identity, True),
        "chat": Grid((10, 60, 1000), (3e-4, 1e-3, 3e-3), (1, 2, 4, 8), 2_000, bench.chat, False),
        "pairs": Grid((10, 60, 500), (5e-5, 1.5e-4, 5e-4), (1, 2, 4), 2_000, bench.preference, True),
    }


def line_of(grid: Grid, rows: int, rate: float, seeds: int) -> str:
    """A line of the table: the mean over the seeds, with the lowest and highest of them."""
    cells = []
    for epochs in grid.epochs:
        if rows * epochs > grid.most:
            cells.append("")
            continue
        found = [grid.run(rows, rate, epochs, seed) for seed in range(seeds)]
        scale, digits = (100, 0) if grid.percent else (1, 2)
        low, high = min(found) * scale, max(found) * scale
        cells.append(f"{fmean(found) * scale:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})")
    return f"| {rows:,} | {rate:g} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("identity", "chat", "pairs"))
    parser.add_argument("--seeds", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(Path(scratch))
        for name, grid in grids(bench).items():
            if given.only in (None, name):
                started = time.monotonic()
                print(
                    f"\n{name}\n\n| rows | rate | " + " | ".join(f"{e} epochs" for e in grid.epochs) + " |", flush=True
                )
                print("|---" * (2 + len(grid.epochs)) + "|", flush=True)
                for rows in grid.rows:
                    for rate in grid.rates:
                        print(line_of(grid, rows, rate, given.seeds), flush=True)
                print(f"\n{given.seeds} seeds, {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
