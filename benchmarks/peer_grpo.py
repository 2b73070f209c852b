"""The peer's GRPO step: TRL's GRPOTrainer, all weights trained, fp32, a reference, its own sampling.

PEER_PYTHON -m benchmarks.peer_grpo --model FOLDER --data prompts.jsonl
"""

from __future__ import annotations

import json
import sys

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from benchmarks import peer
from benchmarks.grpo_settings import KL_BETA, arguments, near_sixty
from benchmarks.record import Record, peak_rss, read_rows
from benchmarks.settings import ADAM_BETAS, LEARNING_RATE, SEED


def main() -> None:
    given = arguments().parse_args()
    prompts = [row["prompt"] for row in read_rows(given.data)][: given.prompts]
    rows = [{"prompt": [{"role": "user", "content": prompt}]} for prompt in prompts * given.steps]
    lengths: list[float] = []

    def reward(completions: list[list[dict[str, str]]], completion_ids: list[list[int]], **_: object) -> list[float]:
        lengths.append(sum(map(len, completion_ids)) / len(completion_ids))
        return [near_sixty(completion[0]["content"]) for completion in completions]

    sampled = given.prompts * given.completions
    timer = peer.StepTimer()
    options = peer.options(given.micro, given.steps, 0)
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32),
        args=GRPOConfig(
            **{name: value for name, value in options.items() if name not in ("max_length", "train_sampling_strategy")},
            gradient_accumulation_steps=sampled // given.micro,
            num_generations=given.completions,
            max_completion_length=given.new_tokens,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            beta=KL_BETA,
            shuffle_dataset=False,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(given.model, padding_side="left"),
        reward_funcs=reward,
        callbacks=[timer],
    )
    assert (options["learning_rate"], options["adam_beta1"], options["seed"]) == (LEARNING_RATE, ADAM_BETAS[0], SEED)
    loaded = peak_rss()
    trainer.train()
    print(json.dumps(trainer.state.log_history), file=sys.stderr)
    tokens = tuple(round(length * sampled) for length in lengths)
    Record("trl", tuple(timer.seconds), tuple(timer.losses), loaded, peak_rss(), tokens).emit()


if __name__ == "__main__":
    main()
