"""TRL's step on a mixture of experts: PEER_PYTHON -m benchmarks.peer_router --model FOLDER --method sft --out FOLDER

SFTTrainer or DPOTrainer as they are, but for the rows, which are ids already; one step of plain gradient descent on all
rows at once, no clipping. Saves the trained model.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from benchmarks.router_rows import BETA, PAD, RATE, VOCAB, rows


class Sft(SFTTrainer):
    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset


class Dpo(DPOTrainer):
    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--method", choices=("sft", "dpo"), required=True)
    parser.add_argument("--out", required=True)
    given = parser.parse_args()
    data = rows()
    options: dict[str, Any] = {
        "output_dir": given.out,
        "per_device_train_batch_size": len(data),
        "max_steps": 1,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "report_to": [],
        "save_strategy": "no",
        "logging_steps": 1,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
    }
    vocabulary = {f"w{index}": index for index in range(VOCAB)}
    names = {"pad_token": f"w{PAD}", "eos_token": f"w{PAD}", "unk_token": f"w{PAD}"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(vocabulary, f"w{PAD}")), **names)
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32)
    if given.method == "sft":
        examples = [_demonstration(row) for row in data]
        trainer: Any = Sft(
            model, SFTConfig(**options), train_dataset=Dataset.from_list(examples), processing_class=tokenizer
        )
    else:
        pairs = [{f"{side}_ids": list(ids) for side, ids in row.items()} for row in data]
        trainer = Dpo(
            model,
            args=DPOConfig(**options, beta=BETA),
            train_dataset=Dataset.from_list(pairs),
            processing_class=tokenizer,
        )
    trainer.train()
    trainer.model.save_pretrained(given.out)
    logged = next(line for line in trainer.state.log_history if "aux_loss" in line)
    print(json.dumps({"loss": logged["loss"], "aux_loss": logged["aux_loss"]}))


def _demonstration(row: Any) -> dict[str, list[int]]:
    ids = [*row["prompt"], *row["chosen"]]
    return {"input_ids": ids, "labels": [-100] * len(row["prompt"]) + list(row["chosen"])}


if __name__ == "__main__":
    main()
