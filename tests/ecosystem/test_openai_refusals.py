"""The `openai` client raises its own errors for what we refuse: 400, 401, 404 and 429."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from benchmarks.serving import Server
from tests.ecosystem.conftest import KEY, asking, client_of

pytestmark = pytest.mark.ecosystem

STORY = "A story about a lion:"
QUESTION = "What is 3 plus 4?"


def test_a_prompt_too_long_says_both_lengths(openai_client: Any) -> None:
    import openai

    with pytest.raises(openai.BadRequestError) as caught:
        openai_client.completions.create(model="embedded", prompt=[5] * 600, max_tokens=8)
    assert caught.value.status_code == 400
    assert caught.value.code == "context_length_exceeded"
    assert "600" in caught.value.message
    assert "512" in caught.value.message


@pytest.mark.parametrize(
    ("field", "settings"),
    [
        ("temperature", {"temperature": -1}),
        ("max_tokens", {"max_tokens": 0.5}),
        ("n", {"n": 100_000}),
        ("top_logprobs", {"logprobs": True, "top_logprobs": 10_000}),
        ("temprature", {"extra_body": {"temprature": 1}}),
        ("response_format", {"response_format": {"type": "json_object"}}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_field_is_named(openai_client: Any, field: str, settings: dict[str, Any]) -> None:
    import openai

    with pytest.raises(openai.BadRequestError) as caught:
        openai_client.chat.completions.create(model="embedded", messages=asking(QUESTION), **settings)
    assert caught.value.param == field
    assert f"`{field}`" in caught.value.message
    assert caught.value.type == "invalid_request_error"


def test_a_picture_is_refused_by_name(openai_client: Any) -> None:
    import openai

    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    with pytest.raises(openai.BadRequestError, match="image_url"):
        openai_client.chat.completions.create(model="embedded", messages=[{"role": "user", "content": [picture]}])


def test_an_unknown_model_is_not_found(openai_client: Any) -> None:
    import openai

    with pytest.raises(openai.NotFoundError, match="embeded") as caught:
        openai_client.completions.create(model="embeded", prompt=STORY, max_tokens=1)
    assert caught.value.code == "model_not_found"


# ---------------------------------------------------------------- a server with a key and a short queue


def test_a_wrong_key_is_refused(guarded: Server) -> None:
    import openai

    with client_of(guarded, "another") as client, pytest.raises(openai.AuthenticationError) as caught:
        client.models.list()
    assert caught.value.status_code == 401
    assert KEY not in str(caught.value.body)
    with client_of(guarded, KEY) as client:
        assert client.models.list().data[0].id == "embedded"


def _ask_long(client: Any, number: int) -> Any:
    import openai

    try:
        return client.completions.create(
            model="embedded", prompt=STORY, seed=number, temperature=2, max_tokens=150, n=16
        )
    except openai.RateLimitError as error:
        return error


def test_a_full_queue_says_when_to_come_back(guarded: Server) -> None:
    import openai

    with client_of(guarded, KEY) as client, ThreadPoolExecutor(12) as pool:
        results = list(pool.map(lambda number: _ask_long(client, number), range(12)))
    refused = [result for result in results if isinstance(result, openai.RateLimitError)]
    assert refused
    assert len(refused) < len(results)
    assert all(float(error.response.headers["retry-after"]) > 0 for error in refused)


def test_the_client_comes_back_and_is_served(guarded: Server) -> None:
    with client_of(guarded, KEY, retries=20) as client, ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda number: _ask_long(client, number), range(8)))
    assert all(len(result.choices) == 16 for result in results)
