"""The peer's reward-model step: TRL's RewardTrainer, all weights trained, fp32.

PEER_PYTHON -m benchmarks.peer_reward --model REWARD_FOLDER --data rows.jsonl
"""

from __future__ import annotations

import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer

from benchmarks import peer
from benchmarks.record import read_rows, step_arguments


def main() -> None:
    given = step_arguments(batch=4, steps=6).parse_args()
    dataset = Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": row["prompt"]}],
                "chosen": [{"role": "assistant", "content": row["chosen"]}],
                "rejected": [{"role": "assistant", "content": row["rejected"]}],
            }
            for row in read_rows(given.data)
        ]
    )
    timer = peer.StepTimer()
    trainer = RewardTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(given.model, dtype=torch.float32),
        args=RewardConfig(**peer.options(given.batch, given.steps, given.max_length)),
        train_dataset=dataset,
        processing_class=AutoTokenizer.from_pretrained(given.model),
        callbacks=[timer],
    )
    peer.train("trl", trainer, timer)


if __name__ == "__main__":
    main()
