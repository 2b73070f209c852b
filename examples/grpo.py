"""GRPO in one flat loop, on the same pieces as the trainer: sample, score, advantages, trees, loss, step.

    python examples/grpo.py --model runs/quickstart/sft/model --steps 30

Shape suffixes: B completions, L tokens of the longest one. The loss is equation 3 of Shao et al. 2024,
arXiv:2402.03300, without its KL. What the trainer has beside this: checkpoints that resume bit for bit, preflight,
alarms, held-out tasks with the best weights kept, KL to the start, several updates per rollout, value models, reports.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import replace

import torch

import posttrain as pt
from posttrain.advantages import group_advantages
from posttrain.data.trees import collate, count, pack
from posttrain.losses.online import ONLINE
from posttrain.losses.policy import policy_loss
from posttrain.rollout.engine import Completion
from posttrain.rollout.native import NativeEngine
from posttrain.rollout.text import completion_text
from posttrain.rollout.turns import completion_tree
from posttrain.sampling import SamplingDistribution
from posttrain.types import Task, TokenTree

GRPO = ONLINE["dr_grpo"]  # centred rewards, a constant length in the denominator, no KL; see docs/online.md for others


def reward(text: str, task: Task) -> float:
    """1 if the last number is the answer."""
    numbers = re.findall(r"-?\d+", text)
    return float(bool(numbers) and numbers[-1] == task.answer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="?", default="package://tasks.jsonl", help="rows with prompt and answer")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--prompts-per-step", type=int, default=16)
    parser.add_argument("--completions-per-prompt", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=40)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--tokens-per-microbatch", type=int, default=1024)
    given = parser.parse_args()

    loaded = pt.load(given.model)
    policy, encoder = pt.Policy(loaded.model), pt.Encoder(loaded.tokenizer)
    tasks = [row for row in pt.read(given.tasks) if isinstance(row, Task)]
    train(given, policy, encoder, tasks)


def train(given: argparse.Namespace, policy: pt.Policy, encoder: pt.Encoder, tasks: Sequence[Task]) -> None:
    engine = NativeEngine(policy.model, decode=encoder.tokens.decode)  # samples from the weights that train
    optimizer = torch.optim.AdamW(policy.parameters(), lr=given.learning_rate, betas=(0.9, 0.95), fused=True)
    order = torch.randperm(len(tasks), generator=torch.Generator().manual_seed(0)).tolist()

    for step in range(given.steps):
        first = step * given.prompts_per_step
        asked = [tasks[order[i % len(order)]] for i in range(first, first + given.prompts_per_step)]
        prompts = [encoder.prompt(task.prompt) for task in asked]
        sampling = SamplingDistribution(
            temperature=1.0, max_new_tokens=given.max_new_tokens, stop_ids=encoder.stop_ids, seed=step
        )
        groups = engine.generate(prompts, sampling, completions_per_prompt=given.completions_per_prompt)

        texts = [[completion_text(one, encoder.tokens.decode) for one in group] for group in groups]
        rewards_B = torch.tensor(
            [reward(text, task) for task, of_group in zip(asked, texts, strict=True) for text in of_group]
        )
        group_B = torch.arange(len(groups)).repeat_interleave(given.completions_per_prompt)
        credit = group_advantages(GRPO.advantage, rewards_B, group_B)

        each_B = credit.values_B.split(given.completions_per_prompt)
        trees = [
            with_advantages(task, prompt, group, values_B.tolist())
            for task, prompt, group, values_B in zip(asked, prompts, groups, each_B, strict=True)
        ]
        total = count(trees)  # the global denominator, known before the first forward
        parameters = GRPO.resolve({"constant_length": float(given.max_new_tokens)})  # checks names and ranges
        for micro in pack(trees, given.tokens_per_microbatch):
            batch = collate(micro)
            out = policy_loss(GRPO, parameters, policy(batch), batch, total, on_policy=True)
            out.loss.backward()

        norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0, error_if_nonfinite=True)
        optimizer.step()
        optimizer.zero_grad()
        silent = int(credit.zero_signal_G.sum())
        print(
            f"step {step + 1:3}  reward {rewards_B.mean().item():.3f}  tokens {total.tokens / total.branches:4.1f}  "
            f"groups without a signal {silent}/{len(groups)}  grad norm {float(norm):.2f}"
        )


def with_advantages(
    task: Task, prompt: Sequence[int], group: Sequence[Completion], advantages: Sequence[float]
) -> TokenTree:
    """The prompt once, a branch for each completion: its ids as sampled, and its advantage at each of them."""
    tree = completion_tree(prompt, group, task.row)
    branches = tuple(
        replace(branch, columns={"advantages": torch.full((len(branch.ids),), advantage).numpy()})
        for branch, advantage in zip(tree.branches, advantages, strict=True)
    )
    return replace(tree, branches=branches)


if __name__ == "__main__":
    main()
