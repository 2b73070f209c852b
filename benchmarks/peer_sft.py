"""The peer's SFT step: TRL's SFTTrainer on prompt and chosen response, the loss on the response, fp32.

PEER_PYTHON -m benchmarks.peer_sft --model FOLDER --data rows.jsonl
"""

from __future__ import annotations

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from benchmarks import peer
from benchmarks.record import read_rows, step_arguments


def main() -> None:
    given = step_arguments(batch=8, steps=6).parse_args()
    dataset = Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": row["prompt"]}],
                "completion": [{"role": "assistant", "content": row["chosen"]}],
            }
            for row in read_rows(given.data)
        ]
    )
    timer = peer.StepTimer()
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32),
        args=SFTConfig(**peer.options(given.batch, given.steps, given.max_length)),
        train_dataset=dataset,
        processing_class=AutoTokenizer.from_pretrained(given.model),
        callbacks=[timer],
    )
    peer.train("trl", trainer, timer)


if __name__ == "__main__":
    main()
