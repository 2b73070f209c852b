"""Many streaming clients of `posttrain serve` at once: how long they wait, what is sampled, and whether it is mixed up.

    python -m benchmarks.serve_load [--model embedded] [--clients 1 4 16 64] [--requests 64]

The same requests, of different prompts, seeds, temperatures, lengths and stop strings, are asked by one client after
the other and by many at once. Each stream must be what the request gives alone, id by id. Then a process that holds 16
streams is killed (SIGKILL), while others read on: its rows must leave the batch, and the others' ids must not change.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.record import ROOT
from benchmarks.serving import Answer, Server, events, serve, streamed

HELD = 16
"""Streams of the process that is killed."""
AIM = 3.0
"""Tokens a second of 64 clients over those of one."""
LEAVING = 5.0
"""Seconds after which a killed client's rows must be gone."""
SUBJECTS = ("a lion", "the rain", "a garden", "two ships", "the number 7", "an old book", "Ada", "the sea")
STOPS: tuple[list[str], ...] = ([" the"], ["\n", "."], ["a"], ["xyz", "e "])


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: Ask("/v1/chat/completions", {"messages": [...], "seed": 3, ...})."""

    route: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Load:
    """What so many clients got: Load(clients=64, seconds=3.1, processor_seconds=2.0, answers=...)."""

    clients: int
    seconds: float
    processor_seconds: float
    """Of the server."""
    answers: tuple[Answer, ...]
    """In the order of the requests."""

    @property
    def tokens(self) -> int:
        return sum(answer.completion_tokens for answer in self.answers)

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds

    def waited(self, share: float) -> float:
        """Milliseconds until the first piece of text, of the client at this share of the sorted clients."""
        firsts = sorted(answer.first for answer in self.answers if answer.first)
        return 1000 * firsts[min(len(firsts) - 1, int(share * len(firsts)))]

    def row(self, alone: Load) -> str:
        return (
            f"| {self.clients} | {self.tokens:,} | {self.rate:,.0f} | {self.waited(0.5):,.0f} | "
            f"{self.waited(0.95):,.0f} | {self.rate / alone.rate:.2f} | "
            f"{1000 * self.processor_seconds / self.tokens:.2f} |"
        )


HEADER = (
    "| clients | tokens | tokens/s | first text, median ms | p95 ms | of one client's rate | CPU ms a token |\n"
    "|---|---|---|---|---|---|---|"
)


def asks(count: int, longest: int = 160) -> list[Ask]:
    """Requests that differ in everything: half of them chats, a quarter with stop strings, from 8 tokens to `longest`.

    Warm ones are among them: their text is rubbish, which is the point. It has half characters, and pieces of stop
    strings that are never completed.
    """
    made: list[Ask] = []
    for number in range(count):
        subject = f"{SUBJECTS[number % len(SUBJECTS)]}, {number}"
        body: dict[str, Any] = {
            "seed": 1000 + number,
            "temperature": (0.0, 0.7, 1.0, 2.0)[number // 2 % 4],
            "max_tokens": 8 + (number * 37) % (longest - 7),
        }
        if number % 4 == 3:
            body["stop"] = STOPS[number // 4 % len(STOPS)]
        if number % 2:
            made.append(Ask("/v1/completions", {**body, "prompt": f"A story about {subject}:"}))
        else:
            said = f"Tell me about {subject}."
            made.append(Ask("/v1/chat/completions", {**body, "messages": [{"role": "user", "content": said}]}))
    return made


async def ask_all(server: Server, requests: Sequence[Ask], clients: int) -> Load:
    """So many clients, each of which asks again when it has its answer, until all requests are answered."""
    answers: dict[int, Answer] = {}
    numbers = iter(range(len(requests)))

    async def client() -> None:
        for number in numbers:  # shared: each request is asked once
            answers[number] = await server.stream(requests[number].route, requests[number].body)

    before, started = server.processor_seconds(), time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())
    seconds, taken = time.perf_counter() - started, server.processor_seconds() - before
    return Load(clients, seconds, taken, tuple(answers[number] for number in range(len(requests))))


def mixed_up(alone: Load, together: Load) -> list[int]:
    """Numbers of the requests whose stream is not what it is alone."""
    pairs = zip(alone.answers, together.answers, strict=True)
    return [number for number, (one, other) in enumerate(pairs) if one.content != other.content]


# ---------------------------------------------------------------- clients that are killed


def long_ask(number: int) -> Ask:
    """A stream that goes on for as long as the model has positions.

    At this temperature any token is as likely as any other, and so the few that end an answer seldom come.
    """
    body = {"prompt": f"{number}: on and on", "temperature": 100.0, "max_tokens": 400, "seed": number}
    return Ask("/v1/completions", body)


async def hold(port: int, model: str, count: int) -> None:
    """Read so many endless streams; says so on stdout once each has a token. What is started here is killed."""
    begun: set[int] = set()

    async def one(number: int) -> None:
        asked = long_ask(number)
        async for chunk in events(port, asked.route, streamed(model, asked.body)):
            if number not in begun and any(choice.get("token_ids") for choice in chunk["choices"]):
                begun.add(number)
                if len(begun) == count:
                    print("holding", flush=True)

    await asyncio.gather(*(one(number) for number in range(count)))


@dataclass(frozen=True, slots=True)
class Killed:
    """What was seen around the kill: Killed(before=16, after=0, seconds=0.03, sampled=210, others_changed=0)."""

    before: int
    """Rows of the batch just before, those of the others too."""
    after: int
    """Rows beyond those of the others when all was quiet, or after `LEAVING` seconds."""
    seconds: float
    """Until the killed process's rows were gone."""
    sampled: int
    """Tokens that its streams had got."""
    others_changed: int
    """Streams of other clients that were not what they are alone."""


async def kill_clients(server: Server, others: Sequence[Ask], alone: Load, count: int = HELD) -> Killed:
    """Kill a process that holds `count` streams while others read theirs, and see what is left of it."""
    holder = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.serve_load", "--hold", str(count), "--port", str(server.port)),
        *("--model", server.model),
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    finished_before = server.metrics()["sampled_tokens_total"]
    line = await holder.stdout.readline()
    if line != b"holding\n":
        raise RuntimeError("the process that holds the streams ended early")
    reading = [asyncio.create_task(server.stream(ask.route, ask.body)) for ask in others]
    before = await asyncio.to_thread(server.metrics)
    # Killed in the midst of others, or nothing is learned of these.
    while before["running"] <= count and not all(task.done() for task in reading):
        before = await asyncio.to_thread(server.metrics)
    os.kill(holder.pid, signal.SIGKILL)
    killed = time.perf_counter()
    await holder.wait()
    while True:
        unread = sum(not task.done() for task in reading)
        rows = (await asyncio.to_thread(server.metrics))["running"]
        seconds = time.perf_counter() - killed
        if rows <= unread or seconds > LEAVING:
            break
        await asyncio.sleep(0.01)
    answers = await asyncio.gather(*reading)
    quiet = await asyncio.to_thread(server.metrics)
    own = sum(answer.completion_tokens for answer in answers)
    changed = sum(one.content != other.content for one, other in zip(alone.answers, answers, strict=True))
    left = int(quiet["running"] + quiet["waiting"])
    sampled = int(quiet["sampled_tokens_total"] - finished_before) - own
    return Killed(int(before["running"]), left, seconds, sampled, changed)


# ---------------------------------------------------------------- the command


async def measure(server: Server, clients: Sequence[int], count: int) -> int:
    """Prints the table; the number of things that are not as they must be."""
    requests = asks(count)
    await ask_all(server, requests[:4], 2)  # what is set up once
    alone = await ask_all(server, requests, 1)
    print(f"{count} requests to `{server.model}`, {platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    print(HEADER)
    print(alone.row(alone), flush=True)
    wrong = 0
    for number in clients:
        load = await ask_all(server, requests, number)
        print(load.row(alone), flush=True)
        mixed = mixed_up(alone, load)
        wrong += len(mixed)
        if mixed:
            print(f"NOT what they are alone: requests {mixed}")
    print(f"aim at {max(clients)} clients: at least {AIM} times the rate of one")
    others = requests[:8]
    killed = await kill_clients(server, others, await ask_all(server, others, 1))
    print(
        f"{HELD} streams killed among {killed.before} rows, after {killed.sampled:,} tokens: gone after "
        f"{1000 * killed.seconds:.0f} ms, {killed.after} rows left, "
        f"{killed.others_changed} of {len(others)} others changed"
    )
    return wrong + killed.after + killed.others_changed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--clients", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument(
        "--hold", type=int, metavar="N", help="read N endless streams of a running server, to be killed"
    )
    parser.add_argument("--port", type=int, help="of that server")
    options = parser.parse_args()
    if options.hold is not None:
        asyncio.run(hold(options.port, options.model, options.hold))
        return 0
    with serve(options.model) as server:
        return 1 if asyncio.run(measure(server, options.clients, options.requests)) else 0


if __name__ == "__main__":
    sys.exit(main())
