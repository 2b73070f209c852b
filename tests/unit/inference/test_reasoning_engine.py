"""Reasoning and context strategies on a real engine: repeated by their seed, alone or not, every token counted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from posttrain.config.strategies import strategy_of
from posttrain.data.encode import Encoder
from posttrain.inference.run import solve_all, tasks_of
from posttrain.inference.scorers import Scorers
from posttrain.inference.solution import Stopped, recounted
from posttrain.inference.solving import Asked
from posttrain.inference.strategies.critique_by import critic_key
from posttrain.rollout.native import NativeEngine
from tests.fixtures import byte_tokenizer, tiny_model

PROMPTS = ["2 + 2?", "3 + 3?", "2 + 2?"]
SHORT = {"sampling": {"max_new_tokens": 6}}
ASK = {"critique_prompt": "c {question}{answer}{stop_phrase}", "revise_prompt": "r {question}{answer}{critique}"}
STRATEGIES = {
    "chain_of_thought": {"instruction": "Think.", "votes": 2, **SHORT},
    "budget_forcing": {"begin": "[", "end": "]", "max_thinking_tokens": 4, "waits": 1, "final": None, **SHORT},
    "self_refine": {"stop_unchanged": False, **ASK, **SHORT},
    "critique_by": {"critic": "other", **ASK, **SHORT},
    "self_verification": {"n": 2, "checks": 2, "check_tokens": 4, "check_prompt": "{question}{answer}", **SHORT},
    "few_shot": {"then": {"kind": "chain_of_thought", "votes": 2, **SHORT}},
    "retrieval": {"prompt": "{documents}{question}", "top": 1, **SHORT},
}


@pytest.fixture(scope="module")
def encoder():
    return Encoder(byte_tokenizer(template="CHATML"))


@pytest.fixture(scope="module")
def model(encoder):
    return tiny_model("llama", vocab=len(encoder.tokenizer), dtype=torch.float64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    (folder / "rows.jsonl").write_text('{"prompt": "1 + 1?", "answer": "2"}\n')
    (folder / "documents").mkdir()
    (folder / "documents" / "a.txt").write_text("2 and 3.")
    return folder


class Counting(NativeEngine):
    """A native engine that counts what it gave out."""

    sampled = 0

    async def generate_one(self, request):
        completion = await super().generate_one(request)
        self.sampled += len(completion.ids)
        return completion


def asked(model, encoder, seed=0):
    first, other = (Counting(model, decode=encoder.tokens.decode) for _ in range(2))
    whole = Asked(first, encoder, Scorers(), seed)
    whole.once(critic_key("other"), lambda: replace(whole, engine=other))
    return whole, (first, other)


def settings_of(kind, folder, **more):
    files = {
        "few_shot": {"demonstrations": {"path": str(folder / "rows.jsonl"), "count": 1}},
        "retrieval": {"documents": str(folder / "documents")},
    }
    return strategy_of({"kind": kind, **STRATEGIES[kind], **files.get(kind, {}), **more})


def drawn(found):
    return [(node.kind, node.parents, node.ids) for node in found.nodes], found.chosen, found.facts


@pytest.mark.parametrize("kind", STRATEGIES)
def test_each_is_repeated_by_its_seed_alone_and_beside_others(model, encoder, folder, kind):
    settings = settings_of(kind, folder)
    whole, engines = asked(model, encoder)
    together = solve_all(whole, tasks_of(PROMPTS), settings)
    assert sum(found.spent.sampled for found in together) == sum(engine.sampled for engine in engines)
    for prompt, found in zip(PROMPTS[:2], together, strict=False):
        (alone,) = solve_all(asked(model, encoder)[0], tasks_of(prompt), settings)
        assert drawn(alone) == drawn(found) and found.spent.sampled == recounted(found.nodes)
    assert drawn(together[0]) != drawn(together[2])
    other = solve_all(asked(model, encoder, seed=1)[0], tasks_of(PROMPTS), settings)
    assert [drawn(found) for found in other] != [drawn(found) for found in together]


@pytest.mark.parametrize("kind", STRATEGIES)
def test_a_limit_of_tokens_is_kept_and_said(model, encoder, folder, kind):
    whole, _ = asked(model, encoder)
    found = solve_all(whole, tasks_of("2 + 2?"), settings_of(kind, folder, spend={"tokens": 3}))[0]
    assert found.spent.sampled == 3 == recounted(found.nodes) and found.stopped is Stopped.TOKENS


@pytest.mark.parametrize("kind", STRATEGIES)
def test_a_limit_of_time_is_kept_and_said(model, encoder, folder, kind):
    whole, _ = asked(model, encoder)
    found = solve_all(whole, tasks_of("2 + 2?"), settings_of(kind, folder, spend={"seconds": 1e-9}))[0]
    assert found.stopped is Stopped.SECONDS and found.answer == "" and not found.nodes
