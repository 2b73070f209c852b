"""What the tests of the server share: a tiny model that is served, and engines that say what a test wants.

with client_of(served(tiny_policy())) as client: client.post("/v1/completions", json={"prompt": "Hi"})
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from starlette.testclient import TestClient

from posttrain.data.encode import Encoder
from posttrain.rollout.engine import Alternatives, Completion, FinishReason, Request, SampledToken
from posttrain.rollout.native import NativeEngine
from posttrain.serve.app import create_app
from posttrain.serve.served import Detokenizer, Served, ServedPolicy
from posttrain.serve.state import Settings
from tests.fixtures import byte_tokenizer, tiny_model

HI = [{"role": "user", "content": "Hi"}]


def encoder_of(template: str = "CHATML", **options: Any) -> Encoder:
    return Encoder(byte_tokenizer(template, **options))


def tiny_policy(name: str = "tiny", template: str = "CHATML", *, longest: int = 200, **options: Any) -> ServedPolicy:
    """A random model of two layers that speaks bytes."""
    encoder = encoder_of(template, **options)
    model = tiny_model(vocab=len(encoder.tokenizer))
    engine = NativeEngine(model, decode=Detokenizer(encoder.tokenizer), cache_tokens=4096)
    return ServedPolicy(name, engine, encoder, longest=longest, vocabulary=len(encoder.tokenizer), fingerprint="f" * 64)


class ScriptedEngine:
    """An engine that says what it is told: text by completion number, one id at a time.

    Args:
        answers: one for each completion number; the last one is for all others.
    """

    def __init__(self, encoder: Encoder, answers: Sequence[str], finish: FinishReason = FinishReason.STOP_TOKEN):
        self._encoder, self._answers, self._finish = encoder, answers, finish
        self.policy_version = 0
        self.held = False
        """While True, no token comes."""
        self.running: set[Request] = set()
        self.requests: list[Request] = []
        self.aborted = False
        self.failure: Exception | None = None

    @property
    def in_flight(self) -> int:
        return len(self.running)

    def generate(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    def abort(self, request: Request | None = None) -> None:
        self.aborted = True

    async def generate_one(self, request: Request) -> Completion:
        self.running.add(request)
        self.requests.append(request)
        try:
            if self.failure is not None:
                raise self.failure
            return await self._said(request)
        finally:
            self.running.discard(request)

    async def _said(self, request: Request) -> Completion:
        ids = self._encoder.tokens.ids(self._answers[min(request.completion, len(self._answers) - 1)])
        if self._finish is FinishReason.STOP_TOKEN:
            ids.append(self._encoder.template.stops[0].id)
        said = []
        for number in ids[: request.sampling.max_new_tokens]:
            while self.held and not self.aborted:
                await asyncio.sleep(0.001)
            if self.aborted:
                return Completion(tuple(said), (-0.5,) * len(said), FinishReason.ABORTED)
            alternatives = None if request.alternatives is None else Alternatives(-0.5, ((number, -0.5),))
            said.append(number)
            if request.on_token is not None:
                request.on_token(SampledToken(number, -0.5, alternatives))
            await asyncio.sleep(0)
            stopped = next((s for s in request.sampling.stop if s in self._encoder.tokens.decode(said)), None)
            if stopped is not None:
                return Completion(tuple(said), (-0.5,) * len(said), FinishReason.STOP_STRING, stopped_by=stopped)
        finish = self._finish if len(said) == len(ids) else FinishReason.LENGTH
        return Completion(tuple(said), (-0.5,) * len(said), finish)


def scripted_policy(
    *answers: str, template: str = "CHATML", finish: FinishReason = FinishReason.STOP_TOKEN, **options: Any
) -> ServedPolicy:
    """A policy that answers with these texts, special tokens among them."""
    encoder = encoder_of(template, **options)
    engine: Any = ScriptedEngine(encoder, answers, finish)
    return ServedPolicy("said", engine, encoder, longest=4000, vocabulary=len(encoder.tokenizer))


def served(*policies: ServedPolicy) -> Served:
    return Served({policy.name: policy for policy in policies}, created=1)


@contextmanager
def client_of(what: Served | ServedPolicy, settings: Settings | None = None) -> Iterator[TestClient]:
    """A client of an app that runs, on its loop and with its engines' thread."""
    app = create_app(what if isinstance(what, Served) else served(what), settings)
    with TestClient(app, base_url="http://localhost:8000") as client:
        yield client


def events_of(text: str) -> list[str]:
    """The data of a stream's events."""
    return [line.removeprefix("data: ") for line in text.split("\n\n") if line]
