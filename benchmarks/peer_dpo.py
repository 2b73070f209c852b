"""The peer's DPO step: TRL's DPOTrainer with a live reference, all weights trained, fp32.

PEER_PYTHON -m benchmarks.peer_dpo --model FOLDER --data rows.jsonl
"""

from __future__ import annotations

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from benchmarks import peer
from benchmarks.record import read_rows, step_arguments
from benchmarks.settings import BETA


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
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32),
        args=DPOConfig(**peer.options(given.batch, given.steps, given.max_length), beta=BETA),
        train_dataset=dataset,
        processing_class=AutoTokenizer.from_pretrained(given.model),
        callbacks=[timer],
    )
    peer.train("trl", trainer, timer)


if __name__ == "__main__":
    main()
