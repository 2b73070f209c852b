"""A reward model in one flat loop, on the same pieces as the trainer: read, encode, pack, score, loss, step.

    python examples/reward_model.py pairs.jsonl --model smollm2-135m-instruct --steps 20 --out my-reward-model

Shape suffixes: B responses, P pairs, H outputs of the head (one). The loss is equation 1 of Ouyang et al. 2022,
arXiv:2203.02155, with the centring term of Eisenstein et al. 2023, arXiv:2312.09244. What the trainer has beside this:
checkpoints, preflight, alarms, LoRA, other heads and objectives, reports, and a folder that is read back.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from torch.nn.functional import logsigmoid

import posttrain as pt
from posttrain.data.reward_encode import RewardEncoder
from posttrain.data.trees import collate, count, pack
from posttrain.losses.reduce import sides
from posttrain.losses.reward_rule import RewardRule
from posttrain.models.reward.folders import start_reward
from posttrain.models.tree.heads import ScoreModel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", help="rows with prompt, chosen and rejected, in any format that posttrain reads")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--pairs-per-step", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--centre", type=float, default=0.01)
    parser.add_argument("--held-out", type=int, default=64, help="pairs at the end of the file that never train")
    parser.add_argument("--tokens-per-microbatch", type=int, default=1024)
    parser.add_argument("--out", type=Path, help="save the model here; AutoModelForSequenceClassification loads it")
    given = parser.parse_args()

    policy = pt.load(given.model)
    encoder = RewardEncoder(policy.tokenizer, pt.EncoderSettings(max_length=1024))
    loaded = start_reward(policy, RewardRule(), stop_ids=encoder.stop_ids)  # a head of zeros: every reward is 0
    model = ScoreModel(loaded.model)
    with tempfile.TemporaryDirectory() as folder:
        trees = pt.encode(pt.read(given.pairs), encoder, store=Path(folder))
        if len(trees) <= given.held_out:
            parser.error(f"--held-out {given.held_out} leaves none of the {len(trees)} pairs to train on")
        rows, held_out = trees[: len(trees) - given.held_out], trees[len(trees) - given.held_out :]
        print(f"held-out accuracy before {accuracy(model, held_out, given):.1%}")
        train(given, model, rows)
        print(f"held-out accuracy after  {accuracy(model, held_out, given):.1%}")
    if given.out:
        loaded.model.save_pretrained(given.out)
        loaded.tokenizer.save_pretrained(given.out)


def train(given: argparse.Namespace, model: ScoreModel, trees: pt.EncodedDataset) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=given.learning_rate, fused=True)
    order = torch.randperm(len(trees), generator=torch.Generator().manual_seed(0)).tolist()

    for step in range(given.steps):
        first = step * given.pairs_per_step
        rows = [trees[order[i % len(order)]] for i in range(first, first + given.pairs_per_step)]
        pairs = count(rows).trees  # the global denominator, known before the first forward
        loss_sum = margin_sum = 0.0

        for micro in pack(rows, given.tokens_per_microbatch):
            chosen_P, rejected_P = sides(model(collate(micro)).scores_BH[:, 0])
            loss_P = -logsigmoid(chosen_P - rejected_P) + given.centre * (chosen_P + rejected_P).square()
            loss = loss_P.sum() / pairs
            loss.backward()
            loss_sum += loss.item()
            margin_sum += (chosen_P - rejected_P).sum().item()

        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step + 1:3}  loss {loss_sum:.4f}  margin {margin_sum / pairs:+.4f}  grad norm {float(norm):.2f}")


@torch.no_grad()
def accuracy(model: ScoreModel, trees: pt.EncodedDataset, given: argparse.Namespace) -> float:
    """Share of pairs whose chosen response has the higher reward; a tie counts half."""
    right = 0.0
    for micro in pack([trees[i] for i in range(len(trees))], given.tokens_per_microbatch):
        chosen_P, rejected_P = sides(model(collate(micro)).scores_BH[:, 0])
        right += float((torch.sign(chosen_P - rejected_P) + 1).sum() / 2)
    return right / len(trees)


if __name__ == "__main__":
    main()
