"""Rewards over HTTP: the reward model's own numbers, in each of the shapes that a request may have."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from posttrain.data.encoder_settings import EncoderSettings
from posttrain.losses.reward_rule import RewardRule
from posttrain.models.folders.loading import LoadedModel
from posttrain.models.folders.source import ModelSource
from posttrain.models.reward.folders import RewardFolder, start_reward
from posttrain.models.reward.scoring import RewardModel
from posttrain.serve.served import Served
from posttrain.types import Message
from tests.fixtures import byte_tokenizer, tiny_model
from tests.unit.serve.kit import HI, client_of, tiny_policy

PROMPT, ANSWERS = "Who are you?", ["I am Pia.", "Nobody, and you?"]


def reward_model(rule: RewardRule) -> RewardModel:
    tokenizer = byte_tokenizer("CHATML", eos="<|im_end|>", pad_is_eos=True)
    source = ModelSource("tiny", "folder", Path("/secret/place"), "model")
    model = tiny_model(vocab=len(tokenizer), max_position_embeddings=128)
    loaded = start_reward(LoadedModel(model, tokenizer, source, "", source), rule, init="normal")
    return RewardModel(RewardFolder(loaded, rule, EncoderSettings()))


MODEL = reward_model(RewardRule())
STEPS = reward_model(RewardRule(pooling="steps", step_mark="\n"))


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with client_of(Served(reward=MODEL, reward_name="judge")) as client:
        yield client


@pytest.fixture(scope="module")
def stepwise() -> Iterator[TestClient]:
    with client_of(Served(reward=STEPS, reward_name="steps")) as client:
        yield client


def scores(client: TestClient, path: str = "/v1/score", **body: Any) -> list[Any]:
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    assert [row["index"] for row in data] == list(range(len(data)))
    return [row["score"] if "score" in row else row["data"] for row in data]


def refused(client: TestClient, path: str = "/v1/score", **body: Any) -> dict[str, Any]:
    answer = client.post(path, json=body)
    assert answer.status_code == 400, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert "/secret" not in error["message"]
    return error


EXPECTED = [MODEL.score(PROMPT, answer) for answer in ANSWERS]


def conversation(answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": answer}]


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": PROMPT, "responses": ANSWERS},
        {"prompt": [{"role": "user", "content": PROMPT}], "responses": [conversation(a)[1:] for a in ANSWERS]},
        {"rows": [{"prompt": PROMPT, "response": answer} for answer in ANSWERS]},
        {"text_1": PROMPT, "text_2": ANSWERS, "model": "judge"},
        {"text_1": [PROMPT, PROMPT], "text_2": ANSWERS, "user": "me"},
    ],
)
def test_every_shape_gives_the_models_rewards(client: TestClient, body: dict[str, Any]) -> None:
    assert scores(client, **body) == pytest.approx(EXPECTED, abs=1e-5)


def test_one_response_and_what_the_answer_holds(client: TestClient) -> None:
    answer = client.post("/score", json={"prompt": PROMPT, "response": ANSWERS[0]}).json()
    assert answer["data"][0]["score"] == pytest.approx(EXPECTED[0], abs=1e-5)
    assert answer["model"] == "judge" and answer["usage"]["prompt_tokens"] > 0 and answer["object"] == "list"


def test_a_prompt_of_several_turns(client: TestClient) -> None:
    turns = [*HI, {"role": "assistant", "content": "Hello."}, {"role": "user", "content": PROMPT}]
    expected = MODEL.score([Message(turn["role"], turn["content"]) for turn in turns], ANSWERS[0])  # type: ignore[arg-type]
    assert scores(client, prompt=turns, response=ANSWERS[0]) == pytest.approx([expected], abs=1e-5)
    whole = [*turns, {"role": "assistant", "content": ANSWERS[0]}]
    assert scores(client, "/pooling", messages=whole) == [pytest.approx([expected], abs=1e-5)]


def test_pooling_of_conversations(client: TestClient) -> None:
    found = scores(client, "/pooling", input=[conversation(answer) for answer in ANSWERS])
    assert [row[0] for row in found] == pytest.approx(EXPECTED, abs=1e-5)


def test_a_step_wise_model_gives_the_scores_of_its_steps(stepwise: TestClient) -> None:
    answer = stepwise.post("/v1/score", json={"prompt": "2 + 3?", "response": "a = 2\nb = 3\n5"}).json()["data"][0]
    assert len(answer["steps"]) == 3
    assert scores(stepwise, "/pooling", messages=[*HI, {"role": "assistant", "content": "a\nb"}])[0] == pytest.approx(
        scores_of_steps("a\nb"), abs=1e-5
    )


def scores_of_steps(answer: str) -> list[float]:
    from posttrain.types import Feedback, RowRef

    row = Feedback((Message("user", "Hi"),), (Message("assistant", answer),), True, RowRef("x", 1))
    (rating,) = STEPS.score_rows([row])
    assert rating.steps is not None
    return list(rating.steps[0])


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": PROMPT}, "response"),
        ({"prompt": PROMPT, "response": "a", "responses": ["b"]}, "response"),
        ({"prompt": PROMPT, "responses": []}, "responses"),
        ({"prompt": PROMPT, "response": [{"role": "user", "content": "a"}]}, "response"),
        ({"rows": [{"prompt": PROMPT, "response": "a", "x": 1}]}, "rows[0].x"),
        ({"rows": []}, "rows"),
        ({"text_1": ["a", "b", "c"], "text_2": ["a", "b"]}, "text_2"),
        ({"text_1": "a", "text_2": 4}, "text_2"),
        ({"prompt": PROMPT, "response": "a", "headd": "x"}, "headd"),
        ({"prompt": PROMPT, "response": "a" * 300}, "response"),
        ({"rows": [{"prompt": "a", "response": "b"}, {"prompt": "a", "response": "b" * 300}]}, "rows[1].response"),
        ({"rows": [{"prompt": "a", "response": "b" * (300 if i == 9 else 1)} for i in range(10)]}, "rows[9].response"),
    ],
)
def test_every_wrong_field_is_named(client: TestClient, body: dict[str, Any], param: str) -> None:
    assert refused(client, **body)["param"] == param


def test_an_unknown_head_is_refused(client: TestClient) -> None:
    error = refused(client, prompt=PROMPT, response="a", head="kind")
    assert error["param"] == "head" and "no output called 'kind'" in error["message"]


@pytest.mark.parametrize("body", [{}, {"input": "text"}, {"messages": HI}, {"input": [HI]}, {"input": []}])
def test_what_ends_with_no_response_is_not_pooled(client: TestClient, body: dict[str, Any]) -> None:
    refused(client, "/pooling", **body)


def test_a_reward_model_answers_nobody_and_a_policy_rates_nobody(client: TestClient) -> None:
    for path, body in (
        ("/v1/completions", {"prompt": "Hi"}),
        ("/v1/chat/completions", {"messages": HI}),
        ("/tokenize", {"prompt": "Hi"}),
    ):
        assert "has a reward model, which gives scores and no answers" in refused(client, path, **body)["message"]
    with client_of(tiny_policy()) as policy:
        message = refused(policy, prompt=PROMPT, response="a")["message"]
    assert "has a language model, which gives no rewards" in message
    assert client.get("/v1/models").json()["data"][0]["id"] == "judge"
