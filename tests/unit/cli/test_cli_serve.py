"""What `posttrain serve` refuses before it loads anything, and what it starts a server with."""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from posttrain.cli import serving
from posttrain.cli.app import app
from posttrain.cli.serving import adapters_of, check_extra
from posttrain.errors import ConfigError, MissingExtraError
from tests.chat_templates import CHATML
from tests.fixtures import byte_tokenizer, tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "mine" / "model"
    tokenizer = byte_tokenizer(CHATML, specials=("<|im_start|>", "<|im_end|>"))
    tiny_model(vocab=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What servers were started with; none is."""
    from posttrain.serve import running

    starts: list[dict[str, Any]] = []

    def run(app: Any, bound: socket.socket, *, ready: Callable[[], None], **options: Any) -> None:
        starts.append({"state": app.state.server, **options})
        ready()

    monkeypatch.setattr(running, "run", run)
    return starts


def serve(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["serve", *arguments])
    return result.exit_code, result.output


def test_the_packages_of_the_extra_are_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="serving needs starlette and uvicorn") as told:
        check_extra()
    assert told.value.remedy == "`pip install 'posttrain[serve]'`"


@pytest.mark.parametrize("given", [["runs/a"], ["=runs/a"], ["a="], ["a=x", "a=y"]])
def test_adapters_need_a_name_each_and_a_folder(given: list[str]) -> None:
    with pytest.raises(ConfigError) as told:
        adapters_of(given)
    assert told.value.where == "--adapter"


def test_a_name_that_nothing_has_is_refused_before_a_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "serve_model", lambda *_, **__: pytest.fail("it began to load"))
    assert serve("embeded")[0] == 2
    code, output = serve("embedded", "--adapter", "a=no-such-folder")
    assert code == 2 and "no-such-folder" in output


def test_a_server_on_loopback(model: str, started: list[dict[str, Any]]) -> None:
    code, output = serve(model, "--port", "0", "--max-waiting", "7", "--allowed-host", "box.lan", "--grace", "3")
    assert code == 0, output
    (start,) = started
    settings = start["state"].settings
    assert settings.key is None and start["grace"] == 3
    assert set(settings.hosts) == {"localhost", "127.0.0.1", "::1", "box.lan"}
    assert (settings.max_rows, settings.max_waiting) == (64, 7)
    assert start["state"].served.names == ["mine"]
    assert "serving mine at http://127.0.0.1:" in output and "try: curl http://127.0.0.1:" in output
    assert "Bearer" not in output and str(Path(model)) not in output


def test_another_address_has_a_key_whether_one_was_given_or_not(
    model: str, started: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, output = serve(model, "--port", "0", "--host", "0.0.0.0")
    assert code == 0, output
    made = started[0]["state"].settings.key
    assert started[0]["state"].settings.any_address and "try: curl http://127.0.0.1:" in output
    assert len(made) >= 32 and f"key, made for this start alone: {made}" in output
    monkeypatch.setenv("POSTTRAIN_API_KEY", "s3cret")
    code, output = serve(model, "--port", "0", "--host", "0.0.0.0")
    assert started[1]["state"].settings.key == "s3cret" and "s3cret" not in output and "Bearer KEY" in output
    # An empty one would let in whoever sends none.
    monkeypatch.setenv("POSTTRAIN_API_KEY", "")
    serve(model, "--port", "0", "--host", "0.0.0.0")
    assert len(started[2]["state"].settings.key) >= 32
    serve(model, "--port", "0", "--host", "0.0.0.0", "--api-key", "")
    assert len(started[3]["state"].settings.key) >= 32


def test_a_port_that_is_taken_is_known_before_the_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, started: list[dict[str, Any]]
) -> None:
    from posttrain.serve import loading

    monkeypatch.setattr(loading, "load_served", lambda *_, **__: pytest.fail("it began to load"))
    with socket.create_server(("127.0.0.1", 0)) as other:
        code, output = serve("embedded", "--port", str(other.getsockname()[1]))
    assert code == 2 and "is taken" in output and not started
