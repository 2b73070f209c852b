"""The app on a port, until a signal ends it: uvicorn, with an end that streams have time for."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette

from posttrain.errors import ConfigError
from posttrain.serve.state import State

AFTER_GRACE = 5
"""Seconds in which connections may close once their completions have been ended."""


class Server(uvicorn.Server):
    """uvicorn's server; asked to end, it takes nothing new, lets what runs go on for `grace` seconds, and ends it."""

    def __init__(self, app: Starlette, grace: float, host: str):
        self.grace = grace
        self.state_of_app: State = app.state.server
        super().__init__(
            uvicorn.Config(
                app,
                host=host,
                log_config=None,  # the command's own logging
                access_log=False,
                server_header=False,
                lifespan="on",
                timeout_graceful_shutdown=int(grace) + AFTER_GRACE,
            )
        )

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGHUP too, of a terminal that is closed, which ends the command as the other two do; `nohup` keeps it away.
        Each is raised again when all is ended, and gives the command its exit code."""
        with super().capture_signals():
            hangup: Any = getattr(signal, "SIGHUP", None)  # Windows has none
            own = hangup is not None and threading.current_thread() is threading.main_thread()
            if not own or signal.getsignal(hangup) is signal.SIG_IGN:
                yield
                return
            before = signal.signal(hangup, self.handle_exit)
            try:
                yield
            finally:
                signal.signal(hangup, before)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        thread = self.state_of_app.thread
        thread.refuse_new()
        # Ended as completions, not as broken connections: a client learns that its answer is not whole.
        ending = asyncio.get_running_loop().call_later(self.grace, thread.abort)
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket that listens nowhere yet; port 0 is any free one.

    Raises:
        ConfigError: the port is taken, or the address is none of this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise _no_address(host, str(error)) from None
    bound = socket.socket(family, kind, protocol)
    try:
        if os.name != "nt":  # there it would let two servers share a port
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        if error.errno is not None and error.strerror is not None and "address" not in error.strerror.lower():
            raise _no_address(host, error.strerror) from None
        if "assign" in (error.strerror or "").lower():
            raise _no_address(host, error.strerror or str(error)) from None
        raise ConfigError(
            f"the port {port} is taken",
            where="--port",
            found=f"{host}:{port}: {error.strerror}",
            remedy=f"end the program that has it, or write `--port {port + 1}`",
        ) from None
    return bound


def _no_address(host: str, found: str) -> ConfigError:
    return ConfigError(
        "the server cannot be bound to this address",
        where="--host",
        found=f"{host}: {found}",
        expected="an address of this machine: 127.0.0.1, or 0.0.0.0 for all of them",
        remedy="correct `--host`",
    )


def run(app: Starlette, bound: socket.socket, *, grace: float, host: str, ready: Callable[[], None]) -> None:
    """Serves until a signal; the signal is then raised again, for the command to end by.

    Args:
        ready: called when requests are answered.
    """
    server = Server(app, grace, host)
    startup = server.startup

    async def started(sockets: list[socket.socket] | None = None) -> None:
        await startup(sockets)
        if server.started:
            ready()

    server.startup = started  # type: ignore[method-assign]
    try:
        server.run(sockets=[bound])
    finally:
        bound.close()
