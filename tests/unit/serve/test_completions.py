"""`/v1/completions` on a tiny model: the engine's own ids, their texts and their log-probs, in both ways of asking."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

from posttrain.errors import ModelError
from posttrain.rollout.engine import Alternatives
from posttrain.rollout.text import completion_text
from posttrain.sampling import SamplingDistribution
from posttrain.serve.logprobs import CompletionLogprobs, TokenNames
from posttrain.serve.served import ServedPolicy
from tests.fixtures import tiny_model
from tests.unit.serve.kit import client_of, events_of, scripted_policy, served, tiny_policy

POLICY = tiny_policy()


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with client_of(served(POLICY, tiny_policy("other", add_bos=True))) as client:
        yield client


def asked(client: TestClient, **body: Any) -> dict[str, Any]:
    answer = client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


def refused(client: TestClient, **body: Any) -> dict[str, Any]:
    answer = client.post("/v1/completions", json=body)
    assert 400 <= answer.status_code < 500, answer.text
    error: dict[str, Any] = answer.json()["error"]
    return {**error, "status": answer.status_code}


def test_ids_and_text_are_the_engines(client: TestClient) -> None:
    answer = asked(client, prompt="Hi", max_tokens=12, seed=5, n=2, return_token_ids=True, temperature=0.9, top_k=40)
    ids = POLICY.encoder.tokens.ids("Hi")
    sampling = SamplingDistribution(
        max_new_tokens=12, seed=5, temperature=0.9, top_k=40, stop_ids=POLICY.encoder.stop_ids
    )
    (group,) = tiny_policy().engine.generate([ids], sampling, completions_per_prompt=2)
    assert [choice["token_ids"] for choice in answer["choices"]] == [list(c.ids) for c in group]
    assert [c["text"] for c in answer["choices"]] == [completion_text(c, POLICY.detokenizer) for c in group]
    assert [c["prompt_token_ids"] for c in answer["choices"]] == [ids, ids]
    assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 24, "total_tokens": 26}
    assert answer["object"] == "text_completion" and answer["model"] == "tiny" and answer["seed"] == 5


def test_prompts_as_texts_and_as_ids(client: TestClient) -> None:
    ids = POLICY.encoder.tokens.ids("Hi")
    common = {"max_tokens": 5, "seed": 1, "return_token_ids": True}
    text, numbers = asked(client, prompt="Hi", **common), asked(client, prompt=ids, **common)
    both = asked(client, prompt=["Hi", ids, "No"], **common)
    first = text["choices"][0]["token_ids"]
    assert first == numbers["choices"][0]["token_ids"]
    assert [choice["token_ids"] for choice in both["choices"][:2]] == [first, first]
    assert [choice["index"] for choice in both["choices"]] == [0, 1, 2]
    assert both["usage"]["prompt_tokens"] == 6


def test_without_a_seed_equal_requests_differ_and_the_answer_names_the_seed(client: TestClient) -> None:
    body: dict[str, Any] = {"prompt": "Hi", "max_tokens": 12, "return_token_ids": True}
    first, second = asked(client, **body), asked(client, **body)
    assert first["choices"][0]["token_ids"] != second["choices"][0]["token_ids"]
    again = asked(client, **body, seed=first["seed"])
    assert again["choices"][0]["token_ids"] == first["choices"][0]["token_ids"]


def test_a_tokenizer_that_begins_texts_with_a_token_does_so_once(client: TestClient) -> None:
    body: dict[str, Any] = {"model": "other", "max_tokens": 1, "echo": True, "return_token_ids": True, "logprobs": 0}
    bare = POLICY.encoder.tokens.ids("Hi")
    choice = asked(client, prompt="Hi", **body)["choices"][0]
    bos = POLICY.encoder.bos_id
    assert choice["prompt_token_ids"] == [bos, *bare] and choice["text"].startswith("Hi")
    assert choice["logprobs"]["text_offset"][:3] == [0, 0, 1], "what the tokenizer adds stands in no text"
    assert asked(client, prompt="<s>Hi", **body)["choices"][0]["prompt_token_ids"] == [bos, *bare]
    assert asked(client, prompt="Hi", add_special_tokens=False, **body)["choices"][0]["prompt_token_ids"] == bare
    said = asked(client, prompt="Hi", add_special_tokens=True, **body)
    assert said["choices"][0]["prompt_token_ids"] == [bos, *bare], "vLLM's clients may write out its default"


# ---------------------------------------------------------------- log-probs


def test_echo_gives_the_log_probs_of_the_prompt_and_of_one_token(client: TestClient) -> None:
    """What lm-eval asks for: exactly one entry for each id of the prompt and one for the token behind it."""
    ids = POLICY.encoder.tokens.ids("Hi there")
    answer = asked(client, prompt=[ids], max_tokens=1, logprobs=1, echo=True, temperature=0, seed=1234)
    lists = answer["choices"][0]["logprobs"]
    scores = POLICY.engine.prompt_scores([ids], top=1)[0]
    assert {name: len(values) for name, values in lists.items()} == dict.fromkeys(lists, len(ids) + 1)
    assert lists["token_logprobs"][0] is None and lists["top_logprobs"][0] is None
    expected = [said.logprob for said in scores if said is not None]
    assert lists["token_logprobs"][1:-1] == pytest.approx(expected)
    # The one that was sampled at temperature 0 is the likeliest, by the very same number.
    assert lists["token_logprobs"][-1] == max(lists["top_logprobs"][-1].values())
    for said, top in zip(scores[1:], lists["top_logprobs"][1:-1], strict=True):
        assert said is not None and max(top.values()) == pytest.approx(said.top[0][1])
    assert lists["text_offset"][:8] == list(range(8)) and answer["choices"][0]["text"].startswith("Hi there")


def test_a_prompt_alone_is_scored_without_a_token(client: TestClient) -> None:
    answer = asked(client, prompt=["Hi", "Hello"], max_tokens=0, logprobs=0, echo=True)
    assert [c["text"] for c in answer["choices"]] == ["Hi", "Hello"]
    assert [len(c["logprobs"]["tokens"]) for c in answer["choices"]] == [2, 5]
    assert answer["usage"]["completion_tokens"] == 0


def test_prompt_logprobs_in_the_shape_of_vllm(client: TestClient) -> None:
    ids = POLICY.encoder.tokens.ids("Hi")
    entry = asked(client, prompt="Hi", max_tokens=1, prompt_logprobs=2)["choices"][0]["prompt_logprobs"]
    assert entry[0] is None
    assert next(iter(entry[1])) == str(ids[1]), "the token itself comes first"
    assert entry[1][str(ids[1])]["decoded_token"] == "i"
    assert {one["rank"] for one in entry[1].values()} >= {1, 2}


def test_log_probs_are_raw_at_any_temperature(client: TestClient) -> None:
    body: dict[str, Any] = {"prompt": "Hi", "max_tokens": 4, "seed": 3, "logprobs": 2, "echo": True}
    hot = asked(client, temperature=1.7, **body)["choices"][0]
    ids = [*POLICY.encoder.tokens.ids("Hi")]
    tokens = asked(client, temperature=1.7, return_token_ids=True, **body)["choices"][0]["token_ids"]
    scores = POLICY.engine.prompt_scores([[*ids, *tokens]], top=0)[0]
    expected = [said.logprob for said in scores if said is not None]
    assert hot["logprobs"]["token_logprobs"][1:] == pytest.approx(expected, abs=1e-4)


def test_tokens_that_are_half_a_character_keep_names_of_their_own() -> None:
    with client_of(scripted_policy("€")) as client:
        lists = asked(client, prompt="Hi", max_tokens=9, logprobs=1)["choices"][0]["logprobs"]
    assert lists["tokens"] == ["bytes:\\xe2", "bytes:\\x82", "bytes:\\xac", "<|im_end|>"]
    assert lists["text_offset"] == [2, 2, 2, 3]


# ---------------------------------------------------------------- ends, streams


def rounded(value: Any) -> Any:
    """Log-probs to four figures: a batch of another size rounds otherwise."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return (
        [rounded(item) for item in value]
        if isinstance(value, list)
        else f"{value:.4f}"
        if isinstance(value, float)
        else value
    )


@pytest.mark.parametrize(("keep", "text"), [(False, "one"), (True, "one\n")])
def test_stop_strings(keep: bool, text: str) -> None:
    with client_of(scripted_policy("one\ntwo")) as client:
        body: dict[str, Any] = {"prompt": "Hi", "stop": ["\n", "x"], "include_stop_str_in_output": keep}
        choice = asked(client, **body)["choices"][0]
        assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == (text, "stop", "\n")
        pieces = [
            json.loads(e) for e in events_of(client.post("/v1/completions", json={**body, "stream": True}).text)[:-1]
        ]
        assert "".join(p["choices"][0]["text"] for p in pieces) == text


def test_of_two_tokens_with_one_text_the_larger_number_stays() -> None:
    texts = POLICY.detokenizer.texts
    lists = CompletionLogprobs(TokenNames(texts))
    one, other = POLICY.encoder.tokens.ids("ab")
    texts._known[other] = texts.of(one)
    lists.add(other, Alternatives(-2.0, ((one, -0.5), (other, -2.0))))
    assert lists.take()["top_logprobs"] == [{"a": -0.5}]
    del texts._known[other]


def test_stop_token_ids_and_ignored_ends() -> None:
    policy = scripted_policy("one")
    with client_of(policy) as client:
        asked(client, prompt="Hi", stop_token_ids=[70], ignore_eos=True, max_tokens=3)
        asked(client, prompt="Hi", stop_token_ids=[70])
    sampling = [request.sampling for request in policy.engine.requests]  # type: ignore[attr-defined]
    assert sampling[0].stop_ids == {70} and sampling[1].stop_ids == {70, *policy.encoder.stop_ids}


def test_an_ordinary_token_that_ends_an_answer_is_no_part_of_its_text(client: TestClient) -> None:
    body: dict[str, Any] = {"prompt": "Hi", "max_tokens": 6, "seed": 8, "return_token_ids": True, "ignore_eos": True}
    ids = asked(client, **body)["choices"][0]["token_ids"]
    choice = asked(client, **body, stop_token_ids=[ids[3]])["choices"][0]
    end = ids.index(ids[3]) + 1
    assert choice["token_ids"] == ids[:end] and choice["text"] == POLICY.detokenizer(ids[: end - 1])
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", ids[3])


def test_a_stream_is_the_answer_in_pieces(client: TestClient) -> None:
    body: dict[str, Any] = {
        **{"prompt": ["Hi", "Ho"], "n": 2, "max_tokens": 15, "seed": 2, "logprobs": 1, "echo": True},
        "return_token_ids": True,
    }
    whole = asked(client, **body)
    text = client.post("/v1/completions", json={**body, "stream": True, "stream_options": {"include_usage": True}}).text
    *chunks, last = events_of(text)
    assert last == "[DONE]"
    parsed = [json.loads(chunk) for chunk in chunks]
    assert parsed[-1]["choices"] == [] and parsed[-1]["usage"] == whole["usage"]
    assert all(chunk["usage"] is None for chunk in parsed[:-1])
    for choice in whole["choices"]:
        own = [c for chunk in parsed for c in chunk["choices"] if c["index"] == choice["index"]]
        assert "".join(c["text"] for c in own) == choice["text"]
        assert [n for c in own for n in c.get("token_ids", [])] == choice["token_ids"]
        assert [c["finish_reason"] for c in own if c["finish_reason"]] == [choice["finish_reason"]]
        for name, values in choice["logprobs"].items():
            together = [value for c in own for value in c["logprobs"][name]]
            assert rounded(together) == rounded(values)


def test_a_refusal_of_the_models_own_shows_no_folder() -> None:
    policy = scripted_policy("one")
    policy.engine.failure = ModelError("broken", where="/secret/model", remedy="mend it")  # type: ignore[attr-defined]
    what = replace(served(policy), hidden=("/secret/model",))
    with client_of(what) as client:
        for stream in (True, False):
            text = client.post("/v1/completions", json={"prompt": "Hi", "stream": stream}).text
            assert "broken" in text and "mend it" in text and "secret" not in text


def test_a_fault_in_a_stream_is_an_event_of_its_own() -> None:
    policy = scripted_policy("one")
    policy.engine.failure = RuntimeError("of the model, at /secret/path")  # type: ignore[attr-defined]
    with client_of(policy) as client:
        events = events_of(client.post("/v1/completions", json={"prompt": "Hi", "stream": True}).text)
        plain = client.post("/v1/completions", json={"prompt": "Hi"})
    assert json.loads(events[-1])["error"]["type"] == "server_error"
    assert plain.status_code == 500 and "secret" not in plain.text + events[-1]


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({}, "prompt", "there is no `prompt`"),
        ({"prompt": []}, "prompt", "is no prompt"),
        ({"prompt": ""}, "prompt", "no tokens"),
        ({"prompt": [[]]}, "prompt[0]", "is no prompt"),
        ({"prompt": [True]}, "prompt[0]", "is no prompt"),
        ({"prompt": {"a": 1}}, "prompt", "is no prompt"),
        ({"prompt": [5, 99999]}, "prompt", "id that the model does not have"),
        ({"prompt": [[5], [-1]]}, "prompt[1]", "id that the model does not have"),
        ({"prompt": "Hi", "temprature": 1}, "temprature", "did you mean `temperature`"),
        ({"prompt": "Hi", "temperature": -1}, "temperature", "from 0"),
        ({"prompt": "Hi", "temperature": 1e-300}, "temperature", "temperature: 0"),
        ({"prompt": "Hi", "temperature": "1"}, "temperature", "number"),
        ({"prompt": "Hi", "temperature": True}, "temperature", "number"),
        ({"prompt": "Hi", "top_p": 0}, "top_p", "temperature: 0"),
        ({"prompt": "Hi", "top_k": 1.5}, "top_k", "whole number"),
        ({"prompt": "Hi", "min_p": 2}, "min_p", "from 0 to 1"),
        ({"prompt": "Hi", "frequency_penalty": 3}, "frequency_penalty", "from -2 to 2"),
        ({"prompt": "Hi", "repetition_penalty": 0}, "repetition_penalty", "from"),
        ({"prompt": "Hi", "n": 129}, "n", "from 1 to 128"),
        ({"prompt": "Hi", "n": 0}, "n", "from 1 to 128"),
        ({"prompt": "Hi", "best_of": 3}, "best_of", "not supported"),
        ({"prompt": "Hi", "suffix": "x"}, "suffix", "not supported"),
        ({"prompt": "Hi", "logit_bias": {"5": 1}}, "logit_bias", "not supported"),
        ({"prompt": "Hi", "stop": [""]}, "stop", "at least one character"),
        ({"prompt": "Hi", "stop": ["a"] * 17}, "stop", "at most 16"),
        ({"prompt": "Hi", "stop": ["a" * 2000]}, "stop", "at most 1,000"),
        ({"prompt": "Hi", "stop_token_ids": ["a"]}, "stop_token_ids", "token ids"),
        ({"prompt": "Hi", "logprobs": 21}, "logprobs", "from 0 to 20"),
        ({"prompt": "Hi", "logprobs": True}, "logprobs", "whole number"),
        ({"prompt": "Hi", "max_tokens": -1}, "max_tokens", "at least 0"),
        ({"prompt": "Hi", "max_tokens": 0}, "max_tokens", "echo"),
        ({"prompt": "Hi", "max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", "the same"),
        ({"prompt": "Hi", "max_tokens": 0, "echo": True, "stream": True}, "stream", "at once"),
        ({"prompt": "Hi", "stream": "yes"}, "stream", "true or false"),
        ({"prompt": "Hi", "stream_options": {"include_usge": True}}, "stream_options.include_usge", "include_usage"),
        ({"prompt": "Hi", "response_format": {"type": "json_object"}}, "response_format", "grammar"),
        ({"prompt": "Hi", "guided_json": {}}, "guided_json", "grammar"),
        ({"prompt": "Hi", "seed": "a"}, "seed", "whole number"),
        ({"prompt": "Hi", "model": 5}, "model", "a text"),
        ({"prompt": "Hi", "model": "tinny"}, "model", "did you mean `tiny`"),
    ],
)
def test_every_wrong_field_is_named(client: TestClient, body: dict[str, Any], param: str, words: str) -> None:
    error = refused(client, **body)
    assert error["param"] == param
    assert words in error["message"]
    assert "remedy" in error["message"] and "Traceback" not in error["message"]
    assert error["status"] == (404 if words.startswith("did you mean `tiny") else 400)


def test_a_prompt_that_is_too_long_says_both_lengths(client: TestClient) -> None:
    error = refused(client, prompt="a" * 230)
    assert error["code"] == "context_length_exceeded" and error["param"] == "prompt"
    assert "230 tokens" in error["message"] and "at most 199 of the 200" in error["message"]
    assert refused(client, prompt=["a", "b" * 230])["param"] == "prompt[1]"


def test_more_tokens_than_there_is_room_for_end_with_the_room(client: TestClient) -> None:
    choice = asked(client, prompt="a" * 190, max_tokens=1000, ignore_eos=True, return_token_ids=True)["choices"][0]
    assert len(choice["token_ids"]) == 10 and choice["finish_reason"] == "length"


@pytest.mark.parametrize(
    "body",
    [
        {"user": "me", "metadata": {"a": "b"}, "store": True, "service_tier": "auto", "safety_identifier": "x"},
        dict.fromkeys(("stop", "logprobs", "n", "suffix", "max_tokens", "temperature", "tools", "anything")),
        {"stop": [], "logit_bias": {}, "best_of": 1, "logprobs": False, "suffix": ""},
        {"extra_body": {"top_k": 5, "min_p": 0.1}, "top_k": 5},
        {"n": 1.0, "top_k": -1},
    ],
)
def test_what_says_nothing_is_taken(client: TestClient, body: dict[str, Any]) -> None:
    asked(client, prompt="Hi", **{"max_tokens": 1, **body})


def test_fields_of_extra_body_are_those_of_the_body() -> None:
    policy: ServedPolicy = scripted_policy("one")
    with client_of(policy) as client:
        asked(client, prompt="Hi", extra_body={"top_k": 7})
        assert refused(client, prompt="Hi", extra_body={"topk": 7})["param"] == "topk"
    assert policy.engine.requests[0].sampling.top_k == 7  # type: ignore[attr-defined]


def test_echoed_log_probs_are_a_plain_forwards_with_the_token_that_begins_texts() -> None:
    policy = tiny_policy(add_bos=True)
    body: dict[str, Any] = {"max_tokens": 1, "echo": True, "logprobs": 0, "return_token_ids": True}
    with client_of(policy) as client:
        choice = asked(client, prompt="Hi \u00fc there", **body)["choices"][0]
    ids = choice["prompt_token_ids"] + choice["token_ids"]
    assert ids[0] == policy.encoder.bos_id
    with torch.no_grad():
        model = tiny_model(vocab=len(policy.encoder.tokenizer))  # the policy's own weights: its seed is fixed
        logprobs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    expected = [logprobs[at, number].item() for at, number in enumerate(ids[1:])]
    assert choice["logprobs"]["token_logprobs"] == [None, *(pytest.approx(value, abs=1e-5) for value in expected)]


def test_several_completions_of_several_prompts_stand_prompt_by_prompt(client: TestClient) -> None:
    choices = asked(client, prompt=["Hi", "Bye"], n=2, max_tokens=1, echo=True)["choices"]
    assert [choice["text"][:2] for choice in choices] == ["Hi", "Hi", "By", "By"]
