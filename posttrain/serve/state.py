"""What the routes share: the models, the thread of their engines, and the server's settings."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from posttrain.serve.engine_thread import EngineThread
from posttrain.serve.refusals import TOO_LONG, RequestRefused
from posttrain.serve.sampling_fields import SampleFields
from posttrain.serve.served import Served, ServedPolicy

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a server treats its clients: Settings(key="secret", hosts=("localhost",), max_waiting=256)."""

    key: str | None = None
    """What clients say as `Authorization: Bearer KEY`; None lets everybody in who may reach the address."""
    hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "::1")
    """Names that a request's Host may have; "*" is any."""
    any_address: bool = False
    """Whether a Host may be any address in digits, as of a server that listens on all of its machine's: nobody can
    point an address elsewhere, as names can be."""
    max_rows: int = 64
    max_waiting: int = 256
    largest_body: int = 4 * 2**20
    """Bytes."""
    log_requests: bool = False


@dataclass
class State:
    """What a route needs of its server."""

    served: Served
    thread: EngineThread
    settings: Settings


async def in_thread(policy: ServedPolicy, function: Callable[[], Result]) -> Result:
    """The result of work with the policy's tokenizer and template, beside the server's loop: a long prompt takes a
    while. One at a time for each policy, since both keep what they have made, and a tokenizer may not be shared."""

    def locked() -> Result:
        with policy.lock:
            return function()

    return await asyncio.to_thread(locked)


def require_room(policy: ServedPolicy, prompt: list[int], param: str, *, new_tokens: int = 1) -> int:
    """How many tokens may follow a prompt.

    Raises:
        RequestRefused: it is empty, has ids that the model does not have, or leaves no room.
    """
    if not prompt:
        raise RequestRefused(
            "the prompt has no tokens",
            param=param,
            expected="at least one token, which the first one can follow",
            remedy="write a text, or begin with the token that begins texts",
        )
    room = policy.longest - len(prompt)
    if room < new_tokens:
        raise RequestRefused(
            "the prompt is longer than the model can read",
            param=param,
            code=TOO_LONG,
            found=f"{len(prompt):,} tokens",
            expected=f"at most {policy.longest - new_tokens:,} of the {policy.longest:,} for prompt and answer",
            remedy="shorten the prompt",
        )
    return room


def head(kind: str, prefix: str, policy: ServedPolicy, fields: SampleFields) -> dict[str, Any]:
    """What every answer and every chunk of a stream begins with."""
    return {
        "id": f"{prefix}-{secrets.token_hex(12)}",
        "object": kind,
        "created": int(time.time()),
        "model": policy.name,
        "system_fingerprint": f"posttrain-{policy.fingerprint[:12]}" if policy.fingerprint else None,
        # Beyond OpenAI's fields: with it, a request that named no seed can be asked again and gives the same.
        "seed": fields.seed,
    }


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
