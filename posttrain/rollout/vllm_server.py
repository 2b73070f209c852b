"""A vLLM server as seen from outside: its HTTP interface, with retries, and errors that name the URL and the remedy.

Start it so (the development endpoints take weights, so keep the port private):

    VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --generation-config vllm --logprobs-mode processed_logprobs \
        --enable-sleep-mode --host 127.0.0.1

Only the standard library: vLLM pins its own torch and lives in an environment of its own.
"""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from posttrain.errors import ConfigError, EngineError, ServerLostError

COMMAND = (
    "VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --generation-config vllm --logprobs-mode processed_logprobs "
    "--enable-sleep-mode"
)
BUSY = frozenset({429, 502, 503, 504})
LONGEST_WAIT = 5.0
NEVER_SENT = (ConnectionError, http.client.RemoteDisconnected, http.client.IncompleteRead)


class Abandoned(Exception):
    """A call was given up by whoever waited for it; never seen outside the engine."""


class Call:
    """A call that another thread may give up: its connection is closed, and so the server stops working for it."""

    def __init__(self) -> None:
        self._abandoned = threading.Event()
        self._socket: socket.socket | None = None

    @property
    def is_sent(self) -> bool:
        """Whether there is a connection for it."""
        return self._socket is not None

    def abandon(self) -> None:
        """Give it up; one that has its answer is left as it is."""
        self._abandoned.set()
        if self._socket is not None:
            with suppress(OSError):  # closed already
                self._socket.shutdown(socket.SHUT_RDWR)

    def connected(self, connection: socket.socket) -> None:
        # In this order: `abandon` sets its mark first and looks for a connection then, so that one of the two sees.
        self._socket = connection
        self.check()

    def wait(self, seconds: float) -> None:
        """Before a new attempt."""
        self._abandoned.wait(seconds)
        self.check()

    def check(self) -> None:
        """Raises:
        Abandoned: it was given up.
        """
        if self._abandoned.is_set():
            raise Abandoned


class _Request(urllib.request.Request):
    def __init__(self, url: str, body: bytes | None, call: Call):
        super().__init__(url, body, {"Content-Type": "application/json"})
        self.call = call


class _Connection(http.client.HTTPConnection):
    def __init__(self, host: str, *, call: Call, **options: Any):
        super().__init__(host, **options)
        self.call = call

    def connect(self) -> None:
        super().connect()
        self.call.connected(self.sock)


class _SecureConnection(_Connection, http.client.HTTPSConnection):
    pass


class _Handler(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """`urllib` on connections that a call knows of."""

    def http_open(self, req: Any) -> Any:
        return self.do_open(partial(_Connection, call=req.call), req)

    def https_open(self, req: Any) -> Any:
        return self.do_open(partial(_SecureConnection, call=req.call), req)


class _Redirected(urllib.request.HTTPRedirectHandler):
    """A redirect goes on as the same call; `urllib` alone would make a plain request, which no call can abandon."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        again = super().redirect_request(req, fp, code, msg, headers, newurl)
        return None if again is None else _Request(again.full_url, None, req.call)


class VLLMServer:
    """One server, one URL.

    Args:
        url: http://host:port, without /v1.
        patience: seconds over which a server that cannot be reached is tried again; a restart needs a minute or more.
        timeout: seconds for one answer; a whole prompt's completions are one answer.
    """

    def __init__(self, url: str, *, patience: float = 60.0, timeout: float = 1200.0):
        self.url = url.rstrip("/").removesuffix("/v1")
        self.lost = 0
        """Times that the connection broke or was refused; whoever synced weights asks whether it is the same server."""
        self._patience = patience
        self._timeout = timeout
        self._lock = threading.Lock()
        # A proxy for the outside world must not stand between a trainer and its engine.
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({}), _Handler(), _Redirected()).open

    def post(
        self, path: str, body: Mapping[str, Any] | None = None, *, retry: bool = True, call: Call | None = None
    ) -> Any:
        """The answer's JSON, or None where it is empty.

        Raises:
            Abandoned: `call` was given up.
            ConfigError: the server refuses the request (HTTP 4xx), in its own words.
            ServerLostError: it cannot be reached, or does not answer in time.
            EngineError: it fails, or does not answer with JSON.
        """
        return self._call(path, json.dumps(body or {}).encode(), retry, call or Call())

    def get(self, path: str) -> Any:
        return self._call(path, None, True, Call())

    def has(self, path: str) -> bool:
        """Whether the server knows a GET endpoint."""
        try:
            self.get(path)
        except ConfigError:
            return False
        return True

    def is_healthy(self, seconds: float) -> bool:
        """Whether it says within that time that it works; vLLM's own /health, which asks the engine behind it."""
        try:
            with self._open(_Request(f"{self.url}/health", None, Call()), timeout=seconds) as reply:
                reply.read()
        except (OSError, http.client.HTTPException):  # refused, silent, or an HTTP status that is no 200
            return False
        return True

    def _call(self, path: str, body: bytes | None, retry: bool, call: Call) -> Any:
        deadline = time.monotonic() + (self._patience if retry else 0.0)
        wait = 0.1
        while True:
            call.check()
            try:
                return self._sent(path, body, call)
            except urllib.error.HTTPError as error:
                trouble = f"HTTP {error.code}: {_words(error)}"
                # Busy is a matter of time. Everything else would be answered the same again.
                if error.code not in BUSY:
                    raise self._refusal(path, error.code, trouble) from None
            # Not tried again: it may still be running, and a second one doubles the load that made it slow.
            except TimeoutError:
                raise self._silence(path, f"no answer within {self._timeout:.0f} s") from None
            except NEVER_SENT as error:
                call.check()  # before it counts as a connection that the server broke
                trouble = self._break(error)
            except urllib.error.URLError as error:
                call.check()
                if isinstance(error.reason, TimeoutError):
                    raise self._silence(path, f"no answer within {self._timeout:.0f} s") from None
                trouble = self._break(error.reason)
            if time.monotonic() + wait > deadline:
                raise self._silence(path, trouble)
            call.wait(wait)
            wait = min(2 * wait, LONGEST_WAIT)

    def _sent(self, path: str, body: bytes | None, call: Call) -> Any:
        with self._open(_Request(self.url + path, body, call), timeout=self._timeout) as reply:
            content = reply.read()
        if not content:
            return None
        try:
            return json.loads(content)
        except ValueError:
            raise EngineError(
                "the engine's answer is no JSON",
                where=self.url + path,
                found=content[:200],
                remedy=f"see that a vLLM server listens there: {COMMAND}",
            ) from None

    def _break(self, error: object) -> str:
        with self._lock:
            self.lost += 1
        return f"{type(error).__name__}: {error}"

    def _refusal(self, path: str, code: int, trouble: str) -> ConfigError | EngineError:
        where = self.url + path
        if code == 404 and "does not exist" in trouble:  # vLLM's words for a model that it does not serve
            return ConfigError(
                "the server serves another model",
                where=where,
                found=trouble,
                remedy="correct `served_name`, or leave it out for the first that it lists",
            )
        if code in (404, 405):
            return ConfigError(
                "the engine does not have this endpoint",
                where=where,
                found=trouble,
                remedy=f"start it with its development endpoints: {COMMAND}",
            )
        if code < 500:
            return ConfigError(
                "the engine refuses the request", where=where, found=trouble, remedy="change what it objects to"
            )
        return EngineError(
            "the engine failed",
            where=where,
            found=trouble,
            remedy="its log says why; restart it and resume the run",
        )

    def _silence(self, path: str, trouble: str) -> ServerLostError:
        return ServerLostError(
            "the engine cannot be reached",
            where=self.url + path,
            found=trouble,
            remedy=f"start it and resume the run: {COMMAND}",
        )


def _words(error: urllib.error.HTTPError) -> str:
    """What the server says, out of its JSON where it is one: {"error": {"message": ...}} or {"detail": ...}."""
    content = error.read(4000).decode(errors="replace")
    try:
        answer = json.loads(content)
    except ValueError:
        return content[:300]
    if isinstance(answer, dict):
        inner = answer.get("error", answer.get("detail", answer))
        answer = inner.get("message", inner) if isinstance(inner, dict) else inner
    return str(answer)[:300]
