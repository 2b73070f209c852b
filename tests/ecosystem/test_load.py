"""Many clients at once, and clients that are killed: a shorter `benchmarks.serve_load`."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.serve_load import AIM, HELD, ask_all, asks, kill_clients, mixed_up
from benchmarks.serving import Server, serve
from tests.ecosystem.conftest import COMMAND, EMBEDDED

pytestmark = pytest.mark.ecosystem

CLIENTS = 64


def test_many_streams_are_what_each_is_alone_and_come_faster(server: Server) -> None:
    requests = asks(CLIENTS, longest=96)
    asyncio.run(ask_all(server, requests[:4], 2))  # what is set up once
    faster: list[float] = []
    # A second time where the machine was busy with something else during the first.
    while len(faster) < 2 and max(faster, default=0.0) < AIM:
        alone = asyncio.run(ask_all(server, requests, 1))
        together = asyncio.run(ask_all(server, requests, CLIENTS))
        assert mixed_up(alone, together) == []
        faster.append(together.rate / alone.rate)
    assert max(faster) >= AIM


def test_killed_clients_leave_the_batch(server: Server) -> None:
    others = asks(8)
    alone = asyncio.run(ask_all(server, others, 1))
    killed = asyncio.run(kill_clients(server, others, alone))
    assert killed.before >= HELD
    assert killed.after == 0
    assert killed.others_changed == 0
    assert killed.sampled < HELD * 200  # ended early: whole, they would be nearly twice as many


def adapter(folder: Path, seed: int) -> Path:
    """A LoRA of the embedded model that changes what it says: both of its factors are random."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype=torch.float32)
        settings = LoraConfig(r=8, lora_alpha=32, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        get_peft_model(model, settings).save_pretrained(folder)
    AutoTokenizer.from_pretrained(EMBEDDED).save_pretrained(folder)
    return folder


def test_adapters_of_one_base_are_not_mixed_up(tmp_path: Path) -> None:
    folders = [f"{name}={adapter(tmp_path / name, seed)}" for seed, name in enumerate(("one", "two"))]
    with serve("embedded", "--adapter", folders[0], "--adapter", folders[1], command=COMMAND) as running:
        same = asks(1, longest=24)[0]
        models = ("embedded", "one", "two")
        thrice = [replace(same, body={**same.body, "model": model, "max_tokens": 24}) for model in models]
        assert len({answer.ids for answer in asyncio.run(ask_all(running, thrice, 1)).answers}) == 3
        requests = [
            replace(ask, body={**ask.body, "model": models[number % 3]})
            for number, ask in enumerate(asks(24, longest=48))
        ]
        alone = asyncio.run(ask_all(running, requests, 1))
        assert mixed_up(alone, asyncio.run(ask_all(running, requests, 24))) == []
