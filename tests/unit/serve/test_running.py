"""A real server on a real port: clients that leave, a port that is taken, and the end."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from posttrain.errors import ConfigError
from posttrain.serve.app import create_app
from posttrain.serve.running import Server, bound_socket
from posttrain.serve.served import ServedPolicy
from tests.unit.serve.kit import scripted_policy, served, tiny_policy


@contextmanager
def running(policy: ServedPolicy, grace: float = 0.1) -> Iterator[tuple[int, Server]]:
    """A server in a thread of its own, ended as a signal would end it."""
    bound = bound_socket("127.0.0.1", 0)
    server = Server(create_app(served(policy)), grace, "127.0.0.1")
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        until(lambda: server.started)
        yield bound.getsockname()[1], server
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        bound.close()
        assert not thread.is_alive()


def until(condition: Any) -> None:
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError("it never came to that")


def opened(port: int, body: dict[str, Any], path: str = "/v1/completions") -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    return connection


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_is_gone_leaves_no_row(stream: bool) -> None:
    policy = scripted_policy("a long answer")
    engine: Any = policy.engine
    engine.held = True
    with running(policy) as (port, _):
        connection = opened(port, {"prompt": "Hi", "n": 3, "stream": stream})
        until(lambda: engine.in_flight == 3)
        assert connection.sock is not None
        connection.sock.close()  # as the kernel does for a client that was killed
        connection.close()
        until(lambda: engine.in_flight == 0)


def test_streams_of_several_clients_are_each_their_own() -> None:
    policy = tiny_policy()
    with running(policy) as (port, _):
        bodies = [
            {"prompt": "Hi", "seed": seed, "max_tokens": 15, "stream": True, "return_token_ids": True}
            for seed in range(6)
        ]
        connections = [opened(port, body) for body in bodies]
        texts = [connection.getresponse().read().decode() for connection in connections]
        again = [opened(port, {**body, "stream": False}) for body in bodies]
        alone = [connection.getresponse().read().decode() for connection in again]
        for connection in connections + again:
            connection.close()
    for text, whole in zip(texts, alone, strict=True):
        chunks = [json.loads(line[6:]) for line in text.split("\n\n") if line.startswith("data: {")]
        ids = [number for chunk in chunks for c in chunk["choices"] for number in c.get("token_ids", [])]
        assert ids == json.loads(whole)["choices"][0]["token_ids"]
        assert text.endswith("data: [DONE]\n\n")


def test_a_connection_serves_request_after_request_errors_among_them() -> None:
    with running(scripted_policy("ok")) as (port, _):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        for body, status in (({"prompt": "Hi"}, 200), ({"promt": "Hi"}, 400), ({"prompt": "Hi"}, 200)):
            connection.request("POST", "/v1/completions", json.dumps(body))
            answer = connection.getresponse()
            answer.read()
            assert answer.status == status
        connection.close()


def test_at_the_end_running_streams_have_time_and_are_then_told() -> None:
    policy = scripted_policy("a long answer")
    engine: Any = policy.engine
    with running(policy, grace=0.2) as (port, server):
        engine.held = True
        connection = opened(port, {"prompt": "Hi", "stream": True})
        until(lambda: engine.in_flight == 1)
        begin = time.monotonic()
        server.should_exit = True
        text = connection.getresponse().read().decode()
        assert time.monotonic() - begin >= 0.15
        assert json.loads(text.split("data: ")[-1])["error"]["code"] == "server_ending"
        connection.close()
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", port))  # the port is free


def test_an_answer_that_is_done_in_time_is_whole() -> None:
    policy = scripted_policy("done")
    engine: Any = policy.engine
    with running(policy, grace=5) as (port, server):
        engine.held = True
        connection = opened(port, {"prompt": "Hi"})
        until(lambda: engine.in_flight == 1)
        server.should_exit = True
        time.sleep(0.05)
        engine.held = False
        assert json.loads(connection.getresponse().read())["choices"][0]["text"] == "done"
        connection.close()


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"the port {port} is taken") as told:
            bound_socket("127.0.0.1", port)
    assert f"--port {port + 1}" in told.value.remedy


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host"])
def test_an_address_of_another_machine(host: str) -> None:
    with pytest.raises(ConfigError, match="cannot be bound to this address"):
        bound_socket(host, 0)
