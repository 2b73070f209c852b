"""The `openai` client: what it reads from our answers is what the engine gives alone."""

from __future__ import annotations

import time
from typing import Any

import pytest

from benchmarks.serving import Server
from tests.ecosystem.conftest import Direct, asking

pytestmark = pytest.mark.ecosystem

STORY = "A story about a lion:"
QUESTION = "What is 3 plus 4?"
LOGPROBS = 1e-4
"""Nats between a log-prob by the server and one computed directly: other batches round otherwise."""
WITH_IDS = {"return_token_ids": True}


def test_models_are_listed(openai_client: Any) -> None:
    assert [model.id for model in openai_client.models.list()] == ["embedded"]
    assert openai_client.models.retrieve("embedded").object == "model"


# ---------------------------------------------------------------- the same ids as the engine


def test_a_seed_gives_the_ids_of_the_engine(openai_client: Any, direct: Direct) -> None:
    answer = openai_client.completions.create(
        model="embedded", prompt=STORY, seed=7, temperature=0.9, max_tokens=24, extra_body=WITH_IDS
    )
    (wanted,) = direct.complete(direct.text_ids(STORY), seed=7, temperature=0.9, max_tokens=24)
    (choice,) = answer.choices
    assert choice.token_ids == list(wanted.ids)
    assert choice.text == direct.text(wanted)
    assert answer.usage.completion_tokens == len(wanted.ids)
    assert answer.usage.prompt_tokens == len(direct.text_ids(STORY))
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_chat_has_the_prompt_of_training(openai_client: Any, direct: Direct) -> None:
    answer = openai_client.chat.completions.create(
        model="embedded", messages=asking(QUESTION), seed=3, max_completion_tokens=24, extra_body=WITH_IDS
    )
    ids = direct.chat_ids(QUESTION)
    (wanted,) = direct.complete(ids, seed=3, max_tokens=24)  # at temperature 1, OpenAI's default
    assert answer.usage.prompt_tokens == len(ids)
    assert answer.choices[0].token_ids == list(wanted.ids)
    assert answer.choices[0].message.content == direct.text(wanted)
    assert answer.choices[0].message.role == "assistant"


def test_a_chat_of_several_turns_and_parts_of_text(openai_client: Any, direct: Direct) -> None:
    turns = ("Hello.", "Hello, I am Pia.", "Who are you?")
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "text", "text": turns[0]}]},
        {"role": "assistant", "content": turns[1]},
        {"role": "user", "content": turns[2]},
    ]
    answer = openai_client.chat.completions.create(model="embedded", messages=messages, temperature=0, max_tokens=16)
    assert answer.choices[0].message.content == direct.greedy(direct.chat_ids(*turns))


def test_ids_go_in_as_they_are(openai_client: Any, direct: Direct) -> None:
    prompts = [direct.text_ids(STORY)[1:], direct.text_ids("The rain is")]
    answer = openai_client.completions.create(model="embedded", prompt=prompts, temperature=0, max_tokens=8)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert [choice.text for choice in answer.choices] == [direct.greedy(ids, 8) for ids in prompts]


def test_n_completions_are_those_of_the_engine(openai_client: Any, direct: Direct) -> None:
    answer = openai_client.chat.completions.create(
        model="embedded", messages=asking(QUESTION), n=5, seed=11, temperature=1.3, max_tokens=12, extra_body=WITH_IDS
    )
    wanted = direct.complete(direct.chat_ids(QUESTION), n=5, seed=11, temperature=1.3, max_tokens=12)
    assert [choice.index for choice in answer.choices] == list(range(5))
    assert [tuple(choice.token_ids) for choice in answer.choices] == [one.ids for one in wanted]
    assert answer.usage.completion_tokens == sum(len(one.ids) for one in wanted)


def test_n_of_several_prompts_are_counted_prompt_by_prompt(openai_client: Any, direct: Direct) -> None:
    answer = openai_client.completions.create(model="embedded", prompt=[STORY, "Rain"], n=2, seed=1, max_tokens=6)
    wanted = [
        direct.text(one)
        for text in (STORY, "Rain")
        for one in direct.complete(direct.text_ids(text), n=2, seed=1, max_tokens=6)
    ]
    assert [choice.text for choice in sorted(answer.choices, key=lambda choice: choice.index)] == wanted


def test_without_a_seed_answers_differ(openai_client: Any) -> None:
    texts = {
        openai_client.completions.create(model="embedded", prompt=STORY, max_tokens=16, temperature=1.5).choices[0].text
        for _ in range(4)
    }
    assert len(texts) > 1


@pytest.mark.parametrize(
    "settings",
    [
        {"top_p": 0.7},
        {"presence_penalty": 1.5, "frequency_penalty": 0.5},
        {"extra_body": {"top_k": 3}},
        {"extra_body": {"min_p": 0.2, "repetition_penalty": 1.4}},
    ],
    ids=lambda settings: "-".join(settings.get("extra_body", settings)),
)
def test_every_field_of_sampling_arrives(openai_client: Any, direct: Direct, settings: dict[str, Any]) -> None:
    answer = openai_client.completions.create(model="embedded", prompt=STORY, seed=5, max_tokens=24, **settings)
    flat = {**settings, **settings.get("extra_body", {})}
    flat.pop("extra_body", None)
    (wanted,) = direct.complete(direct.text_ids(STORY), seed=5, max_tokens=24, **flat)
    assert answer.choices[0].text == direct.text(wanted)


# ---------------------------------------------------------------- stops and streams


def test_a_stop_string_is_cut_off(openai_client: Any, direct: Direct) -> None:
    whole = direct.greedy(direct.text_ids(STORY), 40)
    stop = whole[9:12]
    answer = openai_client.completions.create(
        model="embedded", prompt=STORY, temperature=0, max_tokens=40, stop=["never this", stop]
    )
    assert answer.choices[0].text == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("stop", [None, "e", ["the ", "\n\n"]], ids=["no stop", "one", "two"])
def test_a_completion_streams_what_it_gives_whole(openai_client: Any, stop: Any) -> None:
    asked = {"model": "embedded", "prompt": STORY, "seed": 2, "temperature": 1.8, "max_tokens": 60, "stop": stop}
    whole = openai_client.completions.create(**asked)
    chunks = list(openai_client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    pieces = [choice.text for chunk in chunks for choice in chunk.choices]
    assert "".join(pieces) == whole.choices[0].text
    assert chunks[-1].usage == whole.usage
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1] == whole.choices[0].finish_reason


def test_a_chat_streams_what_it_gives_whole(openai_client: Any) -> None:
    asked = {"model": "embedded", "messages": asking(QUESTION), "seed": 2, "n": 3, "temperature": 1.5, "max_tokens": 40}
    whole = openai_client.chat.completions.create(**asked)
    texts, reasons = ["", "", ""], ["", "", ""]
    for chunk in openai_client.chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]


def test_the_clients_own_accumulator_takes_the_stream(openai_client: Any) -> None:
    # Ended by a stop: a limit is an error to this part of the client.
    asked = {"model": "embedded", "messages": asking(QUESTION), "temperature": 0, "max_tokens": 30, "stop": "?"}
    whole = openai_client.chat.completions.create(**asked)
    with openai_client.chat.completions.stream(**asked) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == whole.choices[0].message.content
    assert final.choices[0].finish_reason == whole.choices[0].finish_reason == "stop"


def test_a_stream_that_is_closed_leaves_the_batch(openai_client: Any, server: Server) -> None:
    stream = openai_client.completions.create(
        model="embedded", prompt="on and on", n=64, temperature=100, max_tokens=450, seed=1, stream=True
    )
    next(iter(stream))
    stream.close()
    assert nobody_runs(server)


def nobody_runs(server: Server, seconds: float = 2.0) -> bool:
    """Whether the batch and the queue are empty before the answers could have come to their own end."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        counts = server.metrics()
        if counts["running"] == counts["waiting"] == 0:
            return True
        time.sleep(0.02)
    return False


def test_a_client_that_gave_up_leaves_the_batch(openai_client: Any, server: Server) -> None:
    import openai

    with pytest.raises(openai.APITimeoutError):
        openai_client.with_options(timeout=0.3).completions.create(
            model="embedded", prompt="on and on", n=64, temperature=100, max_tokens=450, seed=1
        )
    assert nobody_runs(server)


# ---------------------------------------------------------------- log-probs


def test_logprobs_of_a_completion(openai_client: Any, direct: Direct) -> None:
    answer = openai_client.completions.create(
        model="embedded", prompt=STORY, seed=7, temperature=0.5, max_tokens=12, logprobs=3, extra_body=WITH_IDS
    )
    choice = answer.choices[0]
    raw = direct.engine.score(direct.text_ids(STORY), choice.token_ids)  # at temperature 1: raw, as vLLM's
    assert choice.logprobs.token_logprobs == pytest.approx(raw, abs=LOGPROBS)
    assert len(choice.logprobs.tokens) == len(choice.logprobs.text_offset) == len(choice.token_ids)
    for own, top in zip(raw, choice.logprobs.top_logprobs, strict=True):
        assert len(top) >= 3
        assert max(top.values()) >= own - LOGPROBS


def test_logprobs_of_a_chat(openai_client: Any, direct: Direct) -> None:
    answer = openai_client.chat.completions.create(
        model="embedded",
        messages=asking(QUESTION),
        seed=7,
        max_tokens=12,
        logprobs=True,
        top_logprobs=2,
        extra_body=WITH_IDS,
    )
    choice = answer.choices[0]
    raw = direct.engine.score(direct.chat_ids(QUESTION), choice.token_ids)
    given = choice.logprobs.content
    assert [token.logprob for token in given] == pytest.approx(raw[: len(given)], abs=LOGPROBS)
    assert len(given) in (len(raw), len(raw) - 1)  # the stop token may be left out, as it has no text
    assert all(len(token.top_logprobs) == 2 for token in given)
    assert all(one.logprob <= other.logprob for one, other in ((t.top_logprobs[1], t.top_logprobs[0]) for t in given))
    text = b"".join(bytes(token.bytes) for token in given).decode(errors="replace")
    assert text.startswith(choice.message.content)


def test_logprobs_of_a_prompt(openai_client: Any, direct: Direct) -> None:
    ids = direct.text_ids(STORY)
    answer = openai_client.completions.create(model="embedded", prompt=ids, echo=True, max_tokens=0, logprobs=1)
    given = answer.choices[0].logprobs.token_logprobs
    assert given[0] is None
    assert given[1:] == pytest.approx(direct.engine.score(ids[:1], ids[1:]), abs=LOGPROBS)
    assert answer.usage.completion_tokens == 0
