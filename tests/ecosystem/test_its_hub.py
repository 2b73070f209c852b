"""`its-hub`: its strategies draw their samples from our server, and its judge asks it."""

from __future__ import annotations

import json
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.serving import Server, serve
from tests.ecosystem.conftest import COMMAND, EMBEDDED, Direct

pytestmark = pytest.mark.ecosystem

QUESTION = "What is 3 plus 4?"


def model_of(server: Server, **settings: Any) -> Any:
    from its_hub import OpenAICompatibleLanguageModel

    return OpenAICompatibleLanguageModel(f"{server.url}/v1", "none", server.model, max_tries=1, **settings)


@pytest.fixture
def model(server: Server) -> Iterator[Any]:
    yield model_of(server, temperature=1.0, max_completion_tokens=12)


def test_self_consistency_draws_and_votes(model: Any) -> None:
    from its_hub import SelfConsistency

    result = SelfConsistency().infer(model, QUESTION, 24, return_response_only=False)
    texts = [response["content"] for response in result.responses]
    assert len(texts) == 24
    assert len(set(texts)) > 1  # it sends no seed: each request has its own
    assert result.the_one["content"].strip() in {
        text for text, count in Counter(map(str.strip, texts)).items() if count == max(result.response_counts.values())
    }


def test_best_of_n_takes_the_best(model: Any, direct: Direct) -> None:
    from its_hub import AbstractOutcomeRewardModel, BestOfN

    class Longest(AbstractOutcomeRewardModel):
        """Characters of the answer."""

        def score(self, messages: Any, **_: Any) -> Any:
            return [float(len(conversation[-1].content)) for conversation in messages]

        async def ascore(self, messages: Any, orchestrator: Any = None, **more: Any) -> Any:
            return self.score(messages)

    result = BestOfN(Longest()).infer(model, QUESTION, 12, return_response_only=False)
    lengths = [len(response["content"]) for response in result.responses]
    assert len(result.the_one["content"]) == max(lengths)
    assert result.usage.prompt_tokens == 12 * len(direct.chat_ids(QUESTION))
    assert 12 <= result.usage.completion_tokens <= 12 * 12


@pytest.fixture(scope="module")
def reward_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model with a random head of one number, as `transformers` saves a reward model."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = tmp_path_factory.mktemp("reward") / "model"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(EMBEDDED, num_labels=1, dtype=torch.float32)
        torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(EMBEDDED).save_pretrained(folder)
    return folder


def test_best_of_n_by_a_served_reward_model(model: Any, reward_folder: Path) -> None:
    from its_hub import AbstractOutcomeRewardModel, BestOfN

    from posttrain.models.reward.scoring import load_reward

    class Served(AbstractOutcomeRewardModel):
        """The rewards that `/v1/score` gives."""

        def score(self, messages: Any, **_: Any) -> Any:
            rows = [{"prompt": talk[0].content, "response": talk[-1].content} for talk in messages]
            body = json.dumps({"rows": rows}).encode()
            asked = urllib.request.Request(f"{rewarding.url}/v1/score", body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(asked, timeout=60) as reply:
                return [row["score"] for row in json.load(reply)["data"]]

        async def ascore(self, messages: Any, orchestrator: Any = None, **more: Any) -> Any:
            return self.score(messages)

    with serve(str(reward_folder), command=COMMAND) as rewarding:
        result = BestOfN(Served()).infer(model, QUESTION, 8, return_response_only=False)
    own = load_reward(reward_folder)
    wanted = [own.score(QUESTION, response["content"]) for response in result.responses]
    assert result.scores == pytest.approx(wanted, abs=1e-4)
    assert result.selected_index == result.scores.index(max(result.scores))


def test_its_judge_asks_our_model(model: Any, scripted: Server) -> None:
    from its_hub import BestOfN, LLMJudge

    prompt = "{conversation}\nYour mark: {{}} 42"  # what the scripted model answers to is the end
    judge = LLMJudge(model_of(scripted, temperature=0.0), prompt, fallback_score=2.0, response_format=None)
    result = BestOfN(judge).infer(model, QUESTION, 6, return_response_only=False)
    assert set(result.scores) == {2.0}  # "The sum is 42." is no JSON, which its judge calls the fallback


def test_steps_continue_an_answer(server: Server, direct: Direct) -> None:
    from its_hub import StepGeneration

    whole = direct.greedy(direct.chat_ids(QUESTION), 6)
    steps = StepGeneration(max_steps=3, tokens_per_step=2, temperature=0.0)
    model, so_far = model_of(server), list[str]()
    for _ in range(3):
        step, _ = steps.forward(model, QUESTION, so_far)
        so_far.append(step)
    assert "".join(so_far) == whole
