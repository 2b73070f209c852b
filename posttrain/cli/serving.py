"""What `posttrain serve` does between its options and its server."""

from __future__ import annotations

import importlib.util
import logging
import secrets
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from posttrain.cli.terminal import echo
from posttrain.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from posttrain.models.folders.own_code import ModelCode


def check_extra() -> None:
    """
    Raises:
        MissingExtraError: the web server's packages are not installed.
    """
    missing = [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"serving needs {' and '.join(missing)}, which {'are' if len(missing) > 1 else 'is'} not installed",
            remedy="`pip install 'posttrain[serve]'`",
        )


def adapters_of(given: Sequence[str]) -> dict[str, str]:
    """adapters_of(["sums=runs/sums/grpo/model"]) -> {"sums": "runs/sums/grpo/model"}

    Raises:
        ConfigError: one has no name or no folder, or two have one name.
    """
    adapters: dict[str, str] = {}
    for item in given:
        name, has_name, folder = item.partition("=")
        if not has_name or not name or not folder:
            raise ConfigError(
                "an adapter is given by a name and a folder",
                where="--adapter",
                found=item,
                example="--adapter sums=runs/sums/grpo/model",
                remedy="write `--adapter NAME=FOLDER`",
            )
        if name in adapters:
            raise ConfigError(
                "two adapters have one name", where="--adapter", found=name, remedy="name one of them otherwise"
            )
        adapters[name] = folder
    return adapters


def serve_model(
    model: str,
    adapters: dict[str, str],
    *,
    host: str,
    port: int,
    key: str | None,
    hosts: Sequence[str],
    max_waiting: int,
    grace: float,
    log_requests: bool,
    model_code: ModelCode,
    device: str,
    **loading: Any,
) -> None:
    """Bind, load, say where, serve until a signal."""
    from posttrain.models.devices import device_of
    from posttrain.models.folders.own_code import folder_code
    from posttrain.serve.app import create_app
    from posttrain.serve.loading import load_served
    from posttrain.serve.running import bound_socket, run
    from posttrain.serve.security import LOOPBACK, is_loopback
    from posttrain.serve.state import Settings

    # First: a port that is taken is known in a moment, and a model takes its time to load.
    bound = bound_socket(host, port)
    try:
        everywhere = host in ("0.0.0.0", "::")
        generated = not key and not is_loopback(host)
        # An open server would answer whoever finds it, and an empty key lets everybody in who sends none.
        key = secrets.token_urlsafe(24) if generated else key or None
        with folder_code(model_code):
            served = load_served(model, adapters=adapters, device=device_of(device), say=_say, **loading)
        rows = loading.get("max_rows") or (64 if device_of(device).type == "cpu" else 256)
        settings = Settings(
            key=key,
            hosts=(*LOOPBACK, *([] if everywhere else [host]), *hosts),
            any_address=everywhere,
            max_rows=rows * max(1, len(served.policies)),
            max_waiting=max_waiting,
            log_requests=log_requests,
        )
        logging.basicConfig(level=logging.INFO if log_requests else logging.WARNING, format="%(message)s")
        logging.getLogger("uvicorn").setLevel(logging.WARNING)
        shown = "127.0.0.1" if everywhere else f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{bound.getsockname()[1]}"
        app = create_app(served, settings)
        run(app, bound, grace=grace, host=host, ready=lambda: _ready(address, served, key, generated))
    finally:
        bound.close()


def _ready(address: str, served: Any, key: str | None, generated: bool) -> None:
    """The lines at the start: where, what, and a request to try."""
    _say(f"serving {', '.join(served.names)} at {address}/v1 (Ctrl-C ends it)")
    if generated and key is not None:
        _say(f"key, made for this start alone: {key}")
    header = "-H 'Authorization: Bearer KEY' " if key is not None else ""
    if served.reward is not None:
        path, body = "/v1/score", '{"prompt": "2 + 2?", "response": "4"}'
    else:
        path, body = "/v1/chat/completions", '{"messages": [{"role": "user", "content": "Who are you?"}]}'
    _say(f"try: curl {address}{path} {header}-H 'Content-Type: application/json' -d '{body}'")


def _say(line: str) -> None:
    echo(line, err=True)
    sys.stderr.flush()
