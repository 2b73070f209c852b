"""DPO in one flat loop, on the same pieces as the trainer: read, encode, pack, log-probs, loss, step.

    python examples/dpo.py pairs.jsonl --model smollm2-135m-instruct --steps 20

Shape suffixes: N trained tokens, P pairs. The loss is equation 7 of Rafailov et al. 2023, arXiv:2305.18290. What the
trainer has beside this: checkpoints, preflight, alarms, a cached reference, held-out rows, exports, reports.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from torch.nn.functional import logsigmoid

import posttrain as pt
from posttrain.data.trees import collate, count, pack
from posttrain.losses.reduce import branch_sums, sides
from posttrain.models.reference import LiveReference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", help="rows with prompt, chosen and rejected, in any format that posttrain reads")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--pairs-per-step", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--tokens-per-microbatch", type=int, default=1024)
    given = parser.parse_args()

    loaded = pt.load(given.model)
    policy = pt.Policy(loaded.model)
    reference = LiveReference(policy)
    encoder = pt.Encoder(loaded.tokenizer, pt.EncoderSettings(max_length=1024))
    with tempfile.TemporaryDirectory() as folder:
        train(given, policy, reference, pt.encode(pt.read(given.pairs), encoder, store=Path(folder)))


def train(given: argparse.Namespace, policy: pt.Policy, reference: LiveReference, trees: pt.EncodedDataset) -> None:
    optimizer = torch.optim.AdamW(policy.parameters(), lr=given.learning_rate, fused=True)
    order = torch.randperm(len(trees), generator=torch.Generator().manual_seed(0)).tolist()

    for step in range(given.steps):
        first = step * given.pairs_per_step
        rows = [trees[order[i % len(order)]] for i in range(first, first + given.pairs_per_step)]
        pairs = count(rows).trees  # the global denominator, known before the first forward
        loss_sum = margin_sum = 0.0

        for micro in pack(rows, given.tokens_per_microbatch):
            batch = collate(micro)
            log_ratio_N = policy(batch).logprobs_N - reference.logprobs(batch)
            chosen_P, rejected_P = sides(branch_sums(log_ratio_N, batch))
            margin_P = given.beta * (chosen_P - rejected_P)
            loss = -logsigmoid(margin_P).sum() / pairs
            loss.backward()
            loss_sum += loss.item()
            margin_sum += margin_P.sum().item()

        norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0, error_if_nonfinite=True)
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step + 1:3}  loss {loss_sum:.4f}  margin {margin_sum / pairs:+.4f}  grad norm {float(norm):.2f}")


if __name__ == "__main__":
    main()
