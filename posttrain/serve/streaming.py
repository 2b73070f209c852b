"""Answers that come in pieces (server-sent events), and clients that leave before the end."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from posttrain.errors import PosttrainError
from posttrain.serve.refusals import body_of, error_body

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

DONE = b"data: [DONE]\n\n"


class ClientGone(Exception):
    """The client has closed the connection: there is nobody to answer."""


def event(data: Any) -> bytes:
    """event({"a": 1}) -> b'data: {"a": 1}\\n\\n'"""
    # Without line ends of any kind in it: U+2028 ends a line to some readers of the format.
    return b"data: " + json.dumps(data, ensure_ascii=True, separators=(",", ":")).encode() + b"\n\n"


async def guarded_events(
    chunks: AsyncGenerator[dict[str, Any], None], hidden: Sequence[str]
) -> AsyncGenerator[bytes, None]:
    """Events of the chunks and [DONE]; an error in their midst is an event of its own, since the status is sent.

    Args:
        hidden: texts that no answer may show.
    """
    async with aclosing(chunks):
        try:
            async for chunk in chunks:
                yield event(chunk)
        except PosttrainError as error:
            yield event(body_of(error, hidden)[1])
            return
        except Exception:  # the boundary: the client is told that it was no fault of its own, the log says which
            logger.exception("an unexpected fault while streaming")
            yield event(error_body("an unexpected fault of the server, which its log explains", status=500))
            return
        yield DONE


class EventStream(Response):
    """A response of events. Where the client leaves, the generator is closed, and frees what it holds.

    Args:
        events: bytes as `event` makes them; what it raises ends the connection, so it turns errors into events.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None]):
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def write() -> None:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async with aclosing(self._events) as events:
                async for data in events:
                    await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        try:
            await _unless_gone(write(), receive)
        except (ClientGone, OSError):
            return
        finally:
            # Where it was never begun, since the client left first, nothing else would free its rows.
            await self._events.aclose()


async def while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of some work, which is cancelled where the client leaves before it is done.

    Raises:
        ClientGone: it did.
    """
    return await _unless_gone(work, request.receive)


async def _unless_gone(work: Coroutine[Any, Any, Result], receive: Receive) -> Result:
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for pending in (task, watcher):
            pending.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
