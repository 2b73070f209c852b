"""`posttrain serve` in a process of its own, and a client of its streams made of sockets alone.

    with serve("embedded") as server:
        answer = await server.stream("/v1/completions", {"prompt": "A cat", "seed": 3})

No HTTP library: its own work, on the cores that the server needs too, would be measured with the server's; and what is
read here byte by byte is no library's interpretation of a stream.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from socket import socket
from typing import Any

import psutil

from benchmarks.record import ROOT

START_SECONDS = 60.0
HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Answer:
    """What one stream gave: Answer(text="Pia.", ids=(70, 71), finish="stop", 3, first=0.02, seconds=0.1)."""

    text: str
    """All pieces, one after the other."""
    ids: tuple[int, ...]
    """As `return_token_ids` gives them."""
    finish: str
    completion_tokens: int
    """As the last chunk's usage says."""
    first: float
    """Seconds until the first piece of text."""
    seconds: float

    @property
    def content(self) -> tuple[str, tuple[int, ...], str, int]:
        """What must not depend on who else asks."""
        return self.text, self.ids, self.finish, self.completion_tokens


class Refused(Exception):
    """The server answered with another status than 200: Refused(429, '{"error": ...}')."""

    def __init__(self, status: int, body: str):
        super().__init__(status, body)
        self.status, self.body = status, body


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: Server(port=40211, model="embedded", process=...)."""

    port: int
    model: str
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def metrics(self) -> dict[str, float]:
        """The counters and gauges without labels: {"running": 16.0, "sampled_tokens_total": 5210.0, ...}."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as reply:
            lines = reply.read().decode().splitlines()
        pairs = (line.split() for line in lines if not line.startswith("#") and "{" not in line)
        return {name.removeprefix("posttrain_"): float(value) for name, value in pairs}

    def processor_seconds(self) -> float:
        """Of the server's process, all threads together; other work on the machine does not lengthen them."""
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)

    async def stream(self, route: str, body: Mapping[str, Any]) -> Answer:
        """
        Raises:
            Refused: the server answered with another status than 200.
            RuntimeError: an error came in the middle of the stream, or it ended without `[DONE]`.
        """
        text, ids, finish, tokens, first = "", list[int](), "", 0, 0.0
        started = time.perf_counter()
        async for chunk in events(self.port, route, streamed(self.model, body)):
            tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
            for choice in chunk["choices"]:
                piece = choice.get("text") or choice.get("delta", {}).get("content") or ""
                first = first or (time.perf_counter() - started if piece else 0.0)
                text += piece
                ids += choice.get("token_ids") or ()
                finish = choice.get("finish_reason") or finish
        return Answer(text, tuple(ids), finish, tokens, first, time.perf_counter() - started)


def streamed(model: str, body: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "model": model,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
        **body,
    }


async def events(port: int, route: str, body: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """The JSON of each event of one request, in order; see `Server.stream` for what is raised."""
    reader, writer = await asyncio.open_connection(HOST, port, limit=2**20)
    try:
        content = json.dumps(body).encode()
        head = f"POST {route} HTTP/1.1\r\nHost: {HOST}:{port}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(content)}\r\nConnection: close\r\n\r\n".encode() + content)
        status = int((await reader.readline()).split()[1])
        headers = await reader.readuntil(b"\r\n\r\n")
        chunked = b"transfer-encoding: chunked" in headers.lower()
        if status != 200:
            raise Refused(status, (await reader.read()).decode(errors="replace"))
        pending = b""
        while True:
            piece = await _chunk(reader) if chunked else await reader.read(2**16)
            if not piece:
                raise RuntimeError("the stream ended without `[DONE]`")
            *whole, pending = (pending + piece).split(b"\n\n")
            for event in whole:
                data = event.removeprefix(b"data: ")
                if data == b"[DONE]":
                    return
                chunk = json.loads(data)
                if "error" in chunk:
                    raise RuntimeError(f"an error within the stream: {chunk['error']}")
                yield chunk
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def _chunk(reader: asyncio.StreamReader) -> bytes:
    """The next chunk of a chunked body; empty at its end."""
    size = int(await reader.readline() or b"0", 16)
    return (await reader.readexactly(size + 2))[:-2] if size else b""


def free_port() -> int:
    with socket() as held:
        held.bind((HOST, 0))
        return int(held.getsockname()[1])


@contextmanager
def serve(
    model: str = "embedded", *options: str, command: Path | None = None, name: str | None = None
) -> Iterator[Server]:
    """A server that answers, for as long as the block lasts.

    Args:
        options: of `posttrain serve`.
        command: the `posttrain` of another environment; without one the running interpreter's.
        name: what clients call the model; without one `model`.

    Raises:
        RuntimeError: it ended, or did not answer within a minute; the message has what it wrote.
    """
    start = [sys.executable, "-m", "posttrain"] if command is None else [str(command)]
    port = free_port()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [*start, "serve", model, "--port", str(port), *(("--name", name) if name else ()), *options],
            cwd=ROOT,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            if not _answers(port, process):
                log.seek(0)
                raise RuntimeError(f"`posttrain serve {model}` does not answer:\n{log.read().decode()[-3000:]}")
            yield Server(port, name or model, process)
        finally:
            process.terminate()
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answers(port: int, process: subprocess.Popen[bytes]) -> bool:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        with suppress(OSError), urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=5) as reply:
            return bool(reply.status == 200)
        time.sleep(0.1)
    return False
