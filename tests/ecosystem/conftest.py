"""A real server in a process of the project's environment, and the same model beside it, asked directly.

These tests run in an environment of their own (`make ecosystem`), which has the clients; the server runs in the
project's, which has none of them. What both must agree on is computed here by the same package and the same torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks.serving import Server, serve
from posttrain.types import Message

ROOT = Path(__file__).resolve().parents[2]
EMBEDDED = ROOT / "posttrain" / "embedded" / "model"
COMMAND = ROOT / os.environ.get("POSTTRAIN_COMMAND", ".venv/bin/posttrain")
"""The `posttrain` whose `serve` is asked: the project's own, not that of the clients' environment."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Warnings of other people's packages are no errors here; ours are, in our own tests."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore"))


@dataclass(frozen=True)
class Direct:
    """The embedded model without a server: what clients get is compared with it."""

    engine: Any
    encoder: Any
    tokenizer: Any

    def chat_ids(self, *turns: str) -> list[int]:
        """The prompt's ids for user, assistant, user, ..."""
        roles = ("user", "assistant")
        return list(self.encoder.prompt(tuple(Message(roles[i % 2], turn) for i, turn in enumerate(turns))))

    def text_ids(self, prompt: str) -> list[int]:
        return list(self.tokenizer(prompt)["input_ids"])

    def complete(self, prompt: Sequence[int], *, n: int = 1, max_tokens: int = 16, **sampling: Any) -> list[Any]:
        """Completions as the engine gives them, with the stops that the model's folder has."""
        from posttrain.sampling import SamplingDistribution

        asked = SamplingDistribution(max_new_tokens=max_tokens, stop_ids=self.encoder.stop_ids, **sampling)
        return list(self.engine.generate([list(prompt)], asked, completions_per_prompt=n)[0])

    def text(self, completion: Any) -> str:
        return str(self.tokenizer.decode(list(completion.answer_ids), skip_special_tokens=True))

    def greedy(self, prompt: Sequence[int], max_tokens: int = 16) -> str:
        return self.text(self.complete(prompt, max_tokens=max_tokens, temperature=0.0)[0])


@pytest.fixture(scope="session")
def direct() -> Direct:
    from posttrain.data.encode import Encoder
    from posttrain.models import load
    from posttrain.rollout.native import NativeEngine

    loaded = load("embedded")
    encoder = Encoder(loaded.tokenizer, loaded.speech.settings())
    return Direct(NativeEngine(loaded.model), encoder, loaded.tokenizer)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The embedded model, served as a user serves it: without an option."""
    with serve("embedded", command=COMMAND) as running:
        yield running


KEY = "secret-of-the-test"


@pytest.fixture(scope="session")
def guarded() -> Iterator[Server]:
    """With a key, and a queue that is soon full."""
    with serve("embedded", "--api-key", KEY, "--max-waiting", "2", command=COMMAND) as running:
        yield running


def asking(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def client_of(server: Server, key: str, retries: int = 0) -> Any:
    import openai

    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=retries, timeout=60)


@pytest.fixture
def openai_client(server: Server) -> Iterator[Any]:
    with client_of(server, "none") as client:
        yield client


REPLIES = {
    "": '<tool_call>{"name": "add", "arguments": {"a": 17, "b": 25}}</tool_call>',
    "42": "The sum is 42.",
    ">": "Right and short.\n[[7]]",
}
"""What the scripted model says, by what the last message ends in: it calls, reads a result, and marks a text, which
ends in a closing tag."""


@pytest.fixture(scope="session")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A model whose template has tools, and that calls them."""
    from tests.ecosystem.scripted import scripted_model

    folder = scripted_model(tmp_path_factory.mktemp("scripted") / "caller", REPLIES)
    with serve(str(folder), command=COMMAND, name="caller") as running:
        yield running
