"""Who may ask: the Host that a request names, where a browser comes from, and the key. Before any route is looked up.

The Host is checked since a page of anybody's can point its own name at 127.0.0.1 (DNS rebinding), and would then read
what a server on loopback answers. An `Origin` of another site is refused, and no CORS header is ever sent.
"""

from __future__ import annotations

import hmac
import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from posttrain.serve.refusals import RequestRefused, body_of
from posttrain.serve.state import Settings

OPEN = frozenset({"/health"})
"""What a container's probe asks without a key; it says nothing but that the server runs."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Guard:
    """The checks around an app."""

    def __init__(self, app: ASGIApp, settings: Settings):
        self._app = app
        self._hosts = frozenset(host.lower() for host in settings.hosts)
        self._any_address = settings.any_address
        self._key = settings.key.encode() if settings.key is not None else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            # Life of the server; of sockets there are none, so nothing of a client comes this way.
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        try:
            self._check(Headers(scope=scope), scope["path"])
        except RequestRefused as error:
            status, body, headers = body_of(error)
            await JSONResponse(body, status_code=status, headers=headers)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check(self, headers: Headers, path: str) -> None:
        """
        Raises:
            RequestRefused: 421, 403 or 401.
        """
        hosts = headers.getlist("host")
        name = host_name(hosts[0]) if len(hosts) == 1 else ""
        if not (self._hosts & {"*", name} or (self._any_address and _is_address(name))):
            raise RequestRefused(
                "this server is not asked under that name",
                status=421,
                code="host_not_allowed",
                found=f"the Host {name[:100]!r}" if name else "no Host, or several",
                expected=f"one of {', '.join(sorted(self._hosts))}",
                remedy="use one of those names, or start the server with `--allowed-host NAME`",
            )
        origin = headers.get("origin")
        # A browser sends it along with what a page asks; from the server's own address it is the same host and port.
        if origin is not None and _netloc(origin) != hosts[0].strip().lower():
            raise RequestRefused(
                "pages of other sites may not ask this server",
                status=403,
                code="origin_not_allowed",
                found=f"the Origin {origin[:100]!r}",
                remedy="ask from a program, or from a page of the same address",
            )
        if self._key is not None and path not in OPEN and not self._is_key(headers.get("authorization", "")):
            raise RequestRefused(
                "the key is missing or wrong",
                status=401,
                code="invalid_api_key",
                expected="the header `Authorization: Bearer KEY`, with the key that the server was started with",
                remedy="send the key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def _is_key(self, header: str) -> bool:
        scheme, _, given = header.partition(" ")
        # In constant time: how long a comparison takes must not say how much of a key is right.
        return hmac.compare_digest(given.strip().encode(), self._key or b"") and scheme.lower() == "bearer"


def host_name(host: str) -> str:
    """host_name("LocalHost:8000") -> "localhost"; host_name("[::1]:8000") -> "::1"; "" for what is no host."""
    host = host.strip().lower()
    if host.startswith("["):
        name, closed, port = host[1:].partition("]")
        return name if closed and (not port or (port[0] == ":" and port[1:].isdecimal())) else ""
    name, _, port = host.partition(":")
    return name.rstrip(".") if not port or port.isdecimal() else ""


def _netloc(origin: str) -> str:
    """Host and port of an Origin; "" for what is no address, which no Host is equal to."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:  # "http://[": an error here would be a fault of the server, told in its log
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine alone."""
    return host in LOOPBACK or host.startswith("127.")
