"""Messages to webhooks: what is told and when, and that no address is shown and no run touched."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

import posttrain as pt
from posttrain.config import parse_recipe
from posttrain.config.notify import Notify, notifications
from posttrain.errors import ConfigError
from posttrain.runs.folder import RunFolder, StageFolder
from posttrain.runs.records.logs import Alarm
from posttrain.training.tracking import notify as module
from posttrain.training.tracking.notify import notifying, require_notify, slack_text
from tests.chat_templates import CHATML
from tests.fake_run import Plan, write_fake_run
from tests.fixtures import byte_tokenizer, tiny_model


class Hook(HTTPServer):
    """A webhook that keeps what it is posted."""

    status = 200
    delay = 0.0

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.got: list[dict[str, Any]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/services/T0/B0/s3cret"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that did not wait


class Handler(BaseHTTPRequestHandler):
    server: Hook

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        time.sleep(self.server.delay)
        self.server.got.append(body)
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hook]:
    server = Hook()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    monkeypatch.setenv("HOOK_URL", server.address)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_run(tmp_path_factory.mktemp("runs") / "mine", Plan(steps=12, pairs=8, prompts=4))


def told_of(run: Path, said: list[str], *entries: Notify, error: BaseException | None = None) -> None:
    with notifying(entries, RunFolder(run), say=said.append, every=0.01):
        if error is not None:
            raise error


JSON, SLACK = Notify(url="$HOOK_URL"), Notify(url="$HOOK_URL", format="slack")


def test_an_end_is_told_with_every_figure_and_as_text_for_slack(hook: Hook, run_folder: Path) -> None:
    said: list[str] = []
    told_of(run_folder, said, JSON, SLACK)
    by_kind = {"text" if "text" in body else "json": body for body in hook.got}
    assert len(hook.got) == 2 and said == []
    whole = by_kind["json"]
    assert whole["event"] == "end" and whole["status"] == "done" and whole["error"] is None and whole["run"] == "mine"
    assert whole["summary"]["suites"]["dpo"]["identity"]["match"]["value"] > 0.5
    assert by_kind["text"]["text"].startswith("mine: needs attention. The run finished")


def test_a_failure_and_an_interruption_are_told_as_such(hook: Hook, run_folder: Path) -> None:
    for error, status in ((ConfigError("no rows", remedy="add some"), "failed"), (KeyboardInterrupt(), "interrupted")):
        hook.got.clear()
        with pytest.raises(type(error)):
            told_of(run_folder, [], JSON, error=error)
        (body,) = hook.got
        assert body["event"] == "failure" and body["status"] == status
    assert body["error"] == "KeyboardInterrupt"


def test_an_alarm_is_told_once_a_stage_and_old_ones_are_not(hook: Hook, tmp_path: Path) -> None:
    stage = StageFolder(tmp_path / "mine" / "dpo")
    stage.path.mkdir(parents=True)
    ring = lambda name, step: stage.append(Alarm(name, "warning", step, "it rose", {}, "lower it"))  # noqa: E731
    ring("of_the_run_before", 3)
    with notifying([Notify(url="$HOOK_URL", on=("alarm",))], RunFolder(stage.path.parent), say=print, every=0.01):
        for step in (5, 6):
            ring("gradient_spike", step)
        ring("entropy_collapse", 6)
    stage.close()
    assert [(body["event"], body["stage"], body["alarm"]["name"], body["alarm"]["step"]) for body in hook.got] == [
        ("alarm", "dpo", "gradient_spike", 5),
        ("alarm", "dpo", "entropy_collapse", 6),
    ]


def test_only_what_is_asked_for_is_told(hook: Hook, run_folder: Path) -> None:
    told_of(run_folder, [], Notify(url="$HOOK_URL", on=("failure",)))
    assert hook.got == []


def test_a_webhook_that_fails_is_named_once_without_its_address(hook: Hook, run_folder: Path) -> None:
    said: list[str] = []
    hook.status = 500
    told_of(run_folder, said, JSON)
    hook.server_close()
    told_of(run_folder, said, JSON)
    assert len(said) == 2 and "HTTP 500" in said[0] and "$HOOK_URL" in said[0]
    assert "s3cret" not in "".join(said) and "127.0.0.1" not in "".join(said)


def test_a_webhook_that_hangs_is_not_waited_for(hook: Hook, run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS", 0.1)
    hook.delay = 1.5
    said: list[str] = []
    began = time.monotonic()
    told_of(run_folder, said, JSON)
    assert time.monotonic() - began < 1.4 and len(said) == 1


def test_signs_of_slack_in_texts_wake_nobody() -> None:
    assert slack_text(["a <!channel> & b"]) == "a &lt;!channel&gt; &amp; b"


def test_an_address_is_never_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ("https://hooks.slack.com/services/T0/s3cret", {"url": "https://x.org/s3cret"}, [3]):
        with pytest.raises(ConfigError) as refused:
            notifications(wrong)
        assert "s3cret" not in str(refused.value)
    assert "$SLACK_URL" in str(refused.value) or "notify" in str(refused.value)
    monkeypatch.delenv("NO_SUCH_URL", raising=False)
    with pytest.raises(ConfigError, match="NO_SUCH_URL"):
        require_notify(notifications("$NO_SUCH_URL"))
    monkeypatch.setenv("NO_SUCH_URL", "file:///etc/passwd")
    with pytest.raises(ConfigError) as refused:
        require_notify(notifications("$NO_SUCH_URL"))
    assert "passwd" not in str(refused.value)


def test_a_recipe_names_who_is_told_and_comes_back_from_yaml(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}\n")
    stages = f"stages:\n  - {{method: sft, data: {tmp_path}/a.jsonl}}\n"
    recipe = parse_recipe(
        "schema: 1\nname: mine\nmodel: embedded\nnotify: [$A_URL, {url: $B_URL, on: alarm}]\n" + stages
    )
    assert [(one.url, one.format, one.on) for one in recipe.notify] == [
        ("$A_URL", "json", ("end", "failure", "alarm")),
        ("$B_URL", "json", ("alarm",)),
    ]
    assert parse_recipe(recipe.to_yaml()).notify == recipe.notify


def test_train_tells_of_its_end_after_the_report(hook: Hook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = byte_tokenizer(CHATML, specials=("<|im_start|>", "<|im_end|>"))
    tiny_model(vocab=len(tokenizer)).save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    rows = [{"prompt": f"{i}?", "completion": f"{i}."} for i in range(4)]
    sft = pt.SFT(learning_rate=1e-3, rows_per_step=2, steps=1, epochs=None, held_out=0, export="none")  # type: ignore[arg-type]
    pt.train(sft, tmp_path / "start", rows, out=tmp_path / "run", notify="$HOOK_URL", progress=False)
    (body,) = hook.got
    assert body["event"] == "end" and body["summary"]["stages"][0]["steps"] == 1
    assert (
        "HOOK_URL" not in (tmp_path / "run" / "report.html").read_text()
        and "s3cret" not in (tmp_path / "run" / "sft" / "config.yaml").read_text()
    )
