"""Who is answered: the Host, a browser's Origin, the key, and the limits of a body."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from posttrain.serve.body import parse_object
from posttrain.serve.refusals import RequestRefused
from posttrain.serve.security import host_name, is_loopback
from posttrain.serve.state import Settings
from tests.unit.serve.kit import client_of, scripted_policy

KEY = "s3cret"
BODY = {"prompt": "Hi"}


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with client_of(scripted_policy("ok"), Settings(largest_body=2000)) as client:
        yield client


@pytest.fixture(scope="module")
def locked() -> Iterator[TestClient]:
    with client_of(scripted_policy("ok"), Settings(key=KEY)) as client:
        yield client


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "LOCALHOST.", "127.0.0.1:1", "[::1]:8000", "[::1]"])
def test_names_of_this_machine(client: TestClient, host: str) -> None:
    assert client.get("/v1/models", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("path", ["/v1/models", "/health", "/nowhere", "/metrics"])
@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "localhost@evil", "[::1", "", "127.0.0.2"])
def test_other_names_are_refused_before_any_route(client: TestClient, host: str, path: str) -> None:
    answer = client.get(path, headers={"host": host})
    assert answer.status_code == 421 and answer.json()["error"]["code"] == "host_not_allowed"


def test_other_names_can_be_allowed() -> None:
    with client_of(scripted_policy("ok"), Settings(hosts=("box.lan",))) as client:
        assert client.get("/health", headers={"host": "box.lan:80"}).status_code == 200
        assert client.get("/health", headers={"host": "localhost"}).status_code == 421
    with client_of(scripted_policy("ok"), Settings(hosts=("*",))) as client:
        assert client.get("/health", headers={"host": "any"}).status_code == 200


def test_a_server_on_all_addresses_is_asked_by_any_address_and_no_other_name() -> None:
    with client_of(scripted_policy("ok"), Settings(any_address=True)) as client:
        for host in ("192.168.1.7:8000", "[fe80::1]:8000", "localhost"):
            assert client.get("/health", headers={"host": host}).status_code == 200
        for host in ("evil.example", "192.168.1.7.evil.example", ""):
            assert client.get("/health", headers={"host": host}).status_code == 421


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:8000", 200),
        ("http://evil.example", 403),
        ("http://localhost:9999", 403),
        ("null", 403),
        ("", 403),
        ("http://[", 403),
        ("http://[::1", 403),
    ],
)
def test_pages_of_other_sites_are_refused(client: TestClient, origin: str, status: int) -> None:
    answer = client.post("/v1/completions", json=BODY, headers={"origin": origin, "content-type": "text/plain"})
    assert answer.status_code == status
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_preflight_gets_no_leave(client: TestClient) -> None:
    headers = {"origin": "http://evil.example", "access-control-request-method": "POST"}
    assert client.options("/v1/completions", headers=headers).status_code == 403


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (f"Bearer {KEY}", 200),
        (f"bearer  {KEY} ", 200),
        ("Bearer wrong", 401),
        (f"Basic {KEY}", 401),
        (KEY, 401),
        ("Bearer ", 401),
        ("Bearer sécret", 401),
        (None, 401),
    ],
)
@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/tokenizer_info", "/nowhere"])
def test_the_key(locked: TestClient, header: str | None, status: int, path: str) -> None:
    headers: Any = {} if header is None else {"authorization": header.encode()}
    answer = locked.get(path, headers=headers)
    assert answer.status_code == (404 if status == 200 and path == "/nowhere" else status)
    if status == 401:
        assert answer.json()["error"]["type"] == "authentication_error" and KEY not in answer.text
    assert locked.get("/health").status_code == 200


def test_without_a_key_whatever_a_client_sends_is_ignored(client: TestClient) -> None:
    for header in ("Bearer ", "Bearer anything", "x"):
        assert client.get("/v1/models", headers={"authorization": header}).status_code == 200


# ---------------------------------------------------------------- bodies


def test_a_body_that_is_too_large(client: TestClient) -> None:
    answer = client.post("/v1/completions", json={"prompt": "a" * 3000})
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "body_too_large"

    def pieces() -> Iterator[bytes]:
        yield b'{"prompt": "'
        for _ in range(100):
            yield b"a" * 100

    assert client.post("/v1/completions", content=pieces()).status_code == 413, "whatever length it declares"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b"[1]", "[1]"),
        (b'"Hi"', "an object such as"),
        (b"\xff\xfe", "0xff at position 0"),
        (b'{"n": NaN}', "NaN"),
        (b'{"n": -Infinity}', "Infinity"),
        (b'{"n": 1, "n": 2}', '"n"'),
        (b'{"prompt": "\\ud83d"}', "surrogate"),
        (b'{"a": ' + b"[" * 100_000, "within each other"),
        (b'{"a": ' + b"[" * 70 + b"]" * 70 + b"}", "71 objects and lists"),
        (b'{"n": ' + b"9" * 5000 + b"}", "digits"),
    ],
)
def test_what_is_no_object(body: bytes, words: str) -> None:
    with pytest.raises(RequestRefused, match="no JSON object") as told:
        parse_object(body)
    assert words in str(told.value)


def test_brackets_in_texts_nest_nothing() -> None:
    text = "[" * 200 + '\\" {' * 50
    assert parse_object(b'{"a": "' + text.encode() + b'"}') == {"a": "[" * 200 + '" {' * 50}


@pytest.mark.parametrize(
    ("host", "name"),
    [("a:1", "a"), ("[::1]:8", "::1"), ("a:b", ""), ("[::1]x", ""), ("a.", "a"), (" A ", "a"), ("[::1", "")],
)
def test_names_of_hosts(host: str, name: str) -> None:
    assert host_name(host) == name


def test_addresses_of_this_machine_alone() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.2", "example.org")))
