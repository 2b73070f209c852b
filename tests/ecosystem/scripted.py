"""Model folders that give chosen replies: a client's tools and verdicts need a model that calls and judges.

A model of two layers learns its lines in some seconds. Its layers attend to `WINDOW` tokens each, so that what it says
depends on the last few words of the prompt alone, and is the same after a prompt of any length.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

import torch
from torch.nn import functional

from tests.fixtures import byte_tokenizer, tiny_model

WINDOW = 16
STEPS = 250
NOISE = (8, 40)
"""Characters of nonsense before an ending, from and below."""
ASSISTANT = "<|im_end|>\n<|im_start|>assistant\n"
"""What stands before each reply, by the template `TOOLS`."""


def scripted_model(folder: Path, replies: Mapping[str, str], seed: int = 0) -> Path:
    """A folder whose model says `replies[ending]` after a prompt that ends so; "" is any other ending.

    Raises:
        AssertionError: it has not learned its lines.
    """
    tokenizer = byte_tokenizer("TOOLS", eos="<|im_end|>")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        options = {"hidden_size": 96, "intermediate_size": 192, "max_position_embeddings": 8192, "head_dim": 24}
        model = tiny_model("mistral", vocab=len(tokenizer), sliding_window=WINDOW, **options)
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                torch.nn.init.normal_(parameter, std=0.05)
        _learn(model, tokenizer, replies, random.Random(seed))
    model.config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _learn(model: torch.nn.Module, tokenizer: object, replies: Mapping[str, str], rng: random.Random) -> None:
    assert callable(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=STEPS)
    endings = list(replies)
    loss = torch.tensor(float("inf"))
    for _ in range(STEPS):
        rows = []
        for ending in endings * 2:
            noise = "".join(chr(rng.randrange(32, 127)) for _ in range(rng.randrange(*NOISE)))
            prompt = tokenizer(noise + ending + ASSISTANT, add_special_tokens=False)["input_ids"]
            rows.append((prompt, tokenizer(replies[ending] + "<|im_end|>", add_special_tokens=False)["input_ids"]))
        longest = max(len(prompt) + len(reply) for prompt, reply in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        labels = torch.full((len(rows), longest), -100)
        for row, (prompt, reply) in enumerate(rows):
            ids[row, : len(prompt) + len(reply)] = torch.tensor(prompt + reply)
            labels[row, len(prompt) : len(prompt) + len(reply)] = torch.tensor(reply)
        logits = model(input_ids=ids).logits
        loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    assert loss.item() < 0.02, f"the model has not learned its lines: loss {loss.item():.3f}"
