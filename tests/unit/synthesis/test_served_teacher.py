"""`posttrain serve` as a teacher's endpoint: it says what the same model says in process."""

from __future__ import annotations

import pytest

from benchmarks.serving import serve
from posttrain.config.teacher import EndpointTeacher
from posttrain.synthesis.endpoint import EndpointModel
from posttrain.synthesis.local import LocalModel
from posttrain.synthesis.teacher import Ask, Drawing
from posttrain.types import Message


@pytest.mark.slow
def test_a_served_model_answers_as_the_model_itself() -> None:
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    asks = [
        Ask((Message("user", f"What is {n} plus 4?"),), Drawing(temperature, max_new_tokens=24), seed=n)
        for n in range(4)
        for temperature in (0.0, 1.0)
    ]
    local = LocalModel("embedded", device="cpu").ask(asks)
    with serve("embedded") as server:
        served = EndpointModel(EndpointTeacher(url=f"{server.url}/v1", model="embedded")).ask(asks)
    assert [reply.error for reply in served] == [None] * len(asks)
    for ours, theirs in zip(local, served, strict=True):
        assert (theirs.text, theirs.ended) == (ours.text, ours.ended)
        assert (theirs.prompt_tokens, theirs.completion_tokens) == (ours.prompt_tokens, ours.completion_tokens)
