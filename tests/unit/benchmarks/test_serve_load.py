"""The load's own arithmetic and its reading of streams, against a server of a few lines. Nothing is timed here."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.serve_load import Load, asks, mixed_up
from benchmarks.serving import Answer, Refused, events

ANSWER = Answer("Pia.", (70, 71), "stop", 3, 0.02, 0.1)


def read(reply: bytes, split: int) -> list[dict[str, Any]]:
    """The events that a server gives whose reply comes in pieces of so many bytes."""

    async def main() -> list[dict[str, Any]]:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            for start in range(0, len(reply), split):
                writer.write(reply[start : start + split])
                await writer.drain()
                await asyncio.sleep(0)
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            return [event async for event in events(port, "/v1/completions", {})]

    return asyncio.run(main())


def chunked(*pieces: str) -> bytes:
    body = b"".join(f"{len(piece.encode()):x}\r\n".encode() + piece.encode() + b"\r\n" for piece in pieces)
    return b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + body + b"0\r\n\r\n"


@pytest.mark.parametrize("split", [1, 7, 4096])
def test_events_are_read_however_they_are_cut(split: int) -> None:
    wanted = [{"choices": [{"text": "grüße"}]}, {"choices": [{"text": "\n\n"}]}]
    whole = "".join(f"data: {json.dumps(event)}\n\n" for event in wanted) + "data: [DONE]\n\n"
    assert read(chunked(whole[:9], whole[9:30], whole[30:]), split) == wanted


def test_a_stream_without_its_end_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="without `\\[DONE\\]`"):
        read(chunked('data: {"choices": []}\n\n'), 4096)
    with pytest.raises(RuntimeError, match="within the stream"):
        read(chunked('data: {"error": {"message": "no"}}\n\n', "data: [DONE]\n\n"), 4096)


def test_a_refusal_keeps_its_status_and_body() -> None:
    with pytest.raises(Refused) as caught:
        read(b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 2\r\n\r\n{}", 4096)
    assert (caught.value.status, caught.value.body) == (429, "{}")


def test_requests_differ_and_repeat() -> None:
    made = asks(64)
    assert made == asks(64)
    assert len({json.dumps([ask.route, ask.body]) for ask in made}) == len({ask.body["seed"] for ask in made}) == 64
    assert {ask.route for ask in made} == {"/v1/completions", "/v1/chat/completions"}
    assert sum("stop" in ask.body for ask in made) == 16
    assert {ask.body["temperature"] for ask in made} == {0.0, 0.7, 1.0, 2.0}
    assert 8 <= min(ask.body["max_tokens"] for ask in made) <= max(ask.body["max_tokens"] for ask in made) <= 160


def test_another_id_is_seen_and_another_time_is_not() -> None:
    alone = Load(1, 2.0, 0.6, (ANSWER, ANSWER, ANSWER))
    slower, other = replace(ANSWER, first=0.5, seconds=9.0), replace(ANSWER, ids=(70, 72))
    assert mixed_up(alone, Load(3, 1.0, 0.3, (slower, other, ANSWER))) == [1]
    assert Load(3, 0.5, 0.3, (slower, other, ANSWER)).row(alone) == "| 3 | 9 | 18 | 20 | 500 | 4.00 | 33.33 |"
