"""Messages to people: a POST to a webhook when a run ends, fails, or an alarm rings.

    with notifying(recipe.notify, run, say=progress.say):
        ...        # the run; a thread reads the alarms of its stages

Nothing of it reaches the run: a message that cannot be sent is said in one line, and a server that does not answer is
waited for `SECONDS` at the run's end, and not at all before. The address comes from the environment alone and is never
shown, for whoever knows it can write to the channel.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from posttrain.config.notify import Notify
from posttrain.errors import ConfigError
from posttrain.report.digest import Digest, digest
from posttrain.runs.folder import RunFolder
from posttrain.runs.records.logs import Alarm
from posttrain.training.loop import how_it_ended
from posttrain.training.provenance import now
from posttrain.training.tracking.follow import Follower

SCHEMA = 1
SECONDS = 10.0
"""That a message may take."""
EVERY = 2.0
"""Seconds between two looks for alarms."""
MOST_ALARMS = 20
"""Messages of alarms a run: what rings more often is read in the report."""


def require_notify(notify: Sequence[Notify]) -> None:
    """
    Raises:
        ConfigError: an environment variable is not set, or holds no address; its content is not shown.
    """
    for place, entry in enumerate(notify):
        name = entry.url.removeprefix("$")
        address = os.environ.get(name, "")
        if urlsplit(address).scheme in ("http", "https") and urlsplit(address).hostname:
            continue
        raise ConfigError(
            f"the environment variable {name} holds no address",
            where=f"notify[{place}].url",
            found="something that is no http or https address" if address else "it is not set",
            expected="the address of a webhook",
            remedy=f"export {name}=https://... in the shell that runs this, or take the entry out",
        )


@contextmanager
def notifying(
    notify: Sequence[Notify], run: RunFolder, *, say: Callable[[str], None], every: float | None = None
) -> Iterator[None]:
    """Tell of the run that goes on inside; of none, nothing happens."""
    if not notify:
        yield
        return
    notifier = Notifier(notify, run, say, EVERY if every is None else every)
    notifier.start()
    try:
        yield
    except BaseException as error:
        notifier.end(error)
        raise
    notifier.end(None)


class Notifier:
    """The thread that sends; the run only tells it that it is over."""

    def __init__(self, notify: Sequence[Notify], run: RunFolder, say: Callable[[str], None], every: float):
        self.notify, self.run, self._say, self._every = notify, run, say, every
        self._over = threading.Event()
        self._error: BaseException | None = None
        self._followers: dict[str, Follower[Alarm]] = {}
        self._told: set[tuple[str, str]] = set()
        self._failed: set[str] = set()
        self._thread = threading.Thread(target=self._work, name="posttrain-notify", daemon=True)

    def start(self) -> None:
        # What rang before a resumed run began was told by the run before it.
        self._new_alarms()
        self._thread.start()

    def end(self, error: BaseException | None) -> None:
        self._error = error
        self._over.set()
        # An alarm that is on its way, and then the end: each as long as one message may take, to all side by side.
        self._thread.join(2 * SECONDS + 1)

    def _work(self) -> None:
        while not self._over.wait(self._every):
            self._tell_alarms()
        self._tell_alarms()
        status = how_it_ended(self._error)
        self._tell("end" if status == "done" else "failure", lambda: self._of_end(status))

    # ------------------------------------------------------------ what is told

    def _new_alarms(self) -> list[tuple[str, Alarm]]:
        """(stage, alarm) of each that rang for the first time in its stage."""
        new = []
        for path in sorted(self.run.path.glob(f"*/{Alarm.FILE}")):
            stage = path.parent.name
            follower = self._followers.setdefault(stage, Follower(path.parent, Alarm))
            for alarm in follower.new():
                if (stage, alarm.name) not in self._told:
                    self._told.add((stage, alarm.name))
                    new.append((stage, alarm))
        return new

    def _tell_alarms(self) -> None:
        for stage, alarm in self._new_alarms():
            if len(self._told) <= MOST_ALARMS:
                self._tell("alarm", lambda stage=stage, alarm=alarm: self._of_alarm(stage, alarm))  # type: ignore[misc]

    def _head(self, event: str) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "event": event,
            "run": self.run.path.resolve().name,
            "folder": str(self.run.path.resolve()),
            "host": socket.gethostname(),
            "time": now(),
        }

    def _of_alarm(self, stage: str, alarm: Alarm) -> tuple[dict[str, Any], list[str]]:
        head = self._head("alarm")
        lines = [
            f"{head['run']}: {alarm.severity} alarm {alarm.name} in {stage} at step {alarm.step}",
            alarm.message,
            alarm.remedy,
        ]
        return {**head, "stage": stage, "alarm": alarm.to_json()}, lines

    def _of_end(self, status: str) -> tuple[dict[str, Any], list[str]]:
        head = self._head("end" if status == "done" else "failure")
        error = None if self._error is None else str(self._error) or type(self._error).__name__
        found = self._digest()
        lines = [f"{head['run']}: {status}"] if found is None else [line.strip() for line in found.lines()]
        lines += [] if error is None else error.splitlines()[:1]
        return {**head, "status": status, "error": error, "summary": None if found is None else found.to_json()}, lines

    def _digest(self) -> Digest | None:
        try:
            return digest(self.run.path)
        # The boundary: that a run is over has to be told, whatever is wrong with its folder.
        except Exception:
            return None

    # ------------------------------------------------------------ sending

    def _tell(self, event: str, content: Callable[[], tuple[dict[str, Any], list[str]]]) -> None:
        asked = [entry for entry in self.notify if event in entry.on]
        if not asked:
            return
        body, lines = content()
        threads = {
            entry: threading.Thread(target=self._send, args=(entry, body, lines), name="posttrain-send", daemon=True)
            for entry in asked
        }
        for thread in threads.values():
            thread.start()
        deadline = time.monotonic() + SECONDS
        for entry, thread in threads.items():
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():  # a name look-up that hangs obeys no timeout
                self._not_told(entry, f"no answer in {SECONDS:g} s")

    def _send(self, entry: Notify, body: dict[str, Any], lines: Sequence[str]) -> None:
        content = {"text": slack_text(lines)} if entry.format == "slack" else body
        request = urllib.request.Request(
            os.environ[entry.url.removeprefix("$")],
            data=json.dumps(content).encode(),
            headers={"Content-Type": "application/json", "User-Agent": "posttrain"},
        )
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as answer:
                answer.read(1)
        # The boundary: sockets, certificates, servers fail in any way. An error's own words may hold the address.
        except Exception as error:
            why = f"HTTP {error.code}" if isinstance(error, urllib.error.HTTPError) else type(error).__name__
            self._not_told(entry, why)

    def _not_told(self, entry: Notify, why: str) -> None:
        if entry.url not in self._failed:
            self._failed.add(entry.url)
            self._say(f"WARNING: notify: {entry.url} could not be told ({why}); the run is not touched by it")


def slack_text(lines: Sequence[str]) -> str:
    """Slack's own signs escaped, so that no row's text becomes a link or a mention: `<!channel>` wakes everybody."""
    text = "\n".join(lines)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
