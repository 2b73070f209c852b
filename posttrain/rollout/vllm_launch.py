"""vLLM servers that the run starts, watches, starts again, and ends with itself.

    servers = LaunchedServers(LaunchSettings(servers=2, python="/opt/vllm/bin/python"), model, logs, needs)
    urls = servers.start()                       # when all of them answer
    pool = ServerPool([ServedEngine(url) for url in urls], revive=servers.revive)
    servers.watch(pool)
    ...
    servers.close()

Each has a free port on this machine, a log `server-0.log`, and a guard (`server_guard.py`) that ends it when this
process is gone, however it went.
"""

from __future__ import annotations

import os
import queue
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path

from posttrain.config.engines import LaunchSettings
from posttrain.errors import EngineError, ServerLostError
from posttrain.rollout import server_guard
from posttrain.rollout.vllm_install import Installed, Needs, installed, server_arguments, server_environment
from posttrain.rollout.vllm_pool import ServerPool
from posttrain.rollout.vllm_server import VLLMServer

SERVED_NAME = "policy"
ENTRY = "vllm.entrypoints.openai.api_server"
POLL_SECONDS = 0.5
HEALTH_SECONDS = 10.0
HUNG_SECONDS = 120.0
"""For which a server that runs may answer nothing before it counts as dead."""
WINDOW_SECONDS = 1800.0
"""Deaths longer ago than this are no sign that a server dies again and again."""
TAIL_LINES = 20


class LaunchedServers:
    """Some servers of one model on this machine.

    Args:
        model: the folder that they are started with.
        logs: where `server-N.log` is written.
        found: the vLLM that runs them; None: it is looked for.

    Raises:
        ConfigError, MissingExtraError: see `installed`.
    """

    def __init__(self, settings: LaunchSettings, model: Path, logs: Path, needs: Needs, found: Installed | None = None):
        found = found or installed(settings.python)
        self._settings = settings
        devices = settings.devices or [None] * settings.servers
        arguments = ["--model", str(model), "--served-model-name", SERVED_NAME]
        arguments += server_arguments(found, needs, settings.arguments)
        self._servers = [
            _Process(
                number,
                [found.python, "-m", ENTRY, *arguments],
                server_environment(found, needs, settings.environment, settings.servers, own),
                logs.absolute() / f"server-{number}.log",
            )
            for number, own in enumerate(devices)
        ]
        self._deaths: list[list[float]] = [[] for _ in self._servers]
        self._closing = threading.Event()
        # Also where nobody closes it: at the end of the program, or when an error has left it behind.
        self._finalizer = weakref.finalize(self, _close, self._servers, self._closing)

    def start(self) -> list[str]:
        """Start all of them at once; their URLs when each answers.

        Raises:
            EngineError: one ended or did not answer in time; its log's last lines are in the error.
        """
        outcomes: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

        def start(server: _Process) -> None:
            try:
                server.start(self._settings.start_seconds)
            except BaseException as error:
                outcomes.put(error)
            else:
                outcomes.put(None)

        for server in self._servers:
            # Threads that do not keep the program: whoever ends it does not wait for a server to come.
            threading.Thread(target=start, args=(server,), name="posttrain-start", daemon=True).start()
        try:
            for _ in self._servers:
                if (error := outcomes.get()) is not None:
                    raise error
        except BaseException:
            self.close()  # now: the others would be waited for to the end of their time
            raise
        return list(self.urls)

    def revive(self, index: int, why: str) -> str:
        """See `posttrain.rollout.vllm_pool.Revival`: end what is left of the server and start it anew.

        Raises:
            EngineError: it died more often than `restarts` allows.
        """
        server = self._servers[index]
        while True:
            deaths = self._deaths[index]
            now = time.monotonic()
            deaths[:] = [*(at for at in deaths if now - at < WINDOW_SECONDS), now]
            if len(deaths) > self._settings.restarts:
                server.stop()
                raise EngineError(
                    f"it died {len(deaths)} times within {WINDOW_SECONDS / 60:.0f} minutes",
                    where=server.log,
                    found=f"{why}\n{server.tail()}",
                    remedy="its log says why; `engine.launch.restarts` says how often a server may be started again",
                )
            try:
                return server.start(self._settings.start_seconds)
            except ServerLostError as error:  # it ended while it started: one more death
                why = error.problem

    def watch(self, pool: ServerPool) -> None:
        """Tell the pool of a server that ended or hangs, in a thread that ends with either of them."""
        threading.Thread(
            target=_watch, args=(self._servers, weakref.ref(pool), self._closing), name="posttrain-watch", daemon=True
        ).start()

    def close(self) -> None:
        """End them all, and wait until they are gone."""
        self._finalizer()

    @property
    def urls(self) -> Sequence[str]:
        """Of each server, as it was started last."""
        return [server.url for server in self._servers]

    @property
    def logs(self) -> Sequence[Path]:
        """Of each server, in order."""
        return [server.log for server in self._servers]

    @property
    def pids(self) -> Sequence[int | None]:
        """The process of each server, which leads its group; None of one that is not running."""
        return [server.pid for server in self._servers]


class _Process:
    """One server under its guard; started as often as need be, each time on another port."""

    def __init__(self, number: int, command: list[str], environment: dict[str, str], log: Path):
        self.number, self.log = number, log
        self.url = ""
        self.started = 0
        self._command, self._environment = command, environment
        self._guard: subprocess.Popen[str] | None = None
        self._group: int | None = None
        self._lock = threading.Lock()
        self._ended = False

    @property
    def pid(self) -> int | None:
        return self._group if self.exit_code() is None else None

    def start(self, seconds: float) -> str:
        """Its URL when it answers.

        Raises:
            ServerLostError: it ended.
            EngineError: it does not answer in time.
        """
        self.stop(for_good=False)
        port = _free_port()
        with self._lock:
            if self._ended:
                raise EngineError("the servers are being ended", where=self.log, remedy="start the run again")
            self.log.parent.mkdir(parents=True, exist_ok=True)
            self.started += 1
            command = [*self._command, "--host", "127.0.0.1", "--port", str(port)]
            guard = [sys.executable, "-I", server_guard.__file__, str(os.getpid()), str(self.log), *command]
            with self.log.open("a") as log:
                log.write(f"--- server {self.number}, start {self.started}, port {port}\n")
                log.flush()
                self._guard = subprocess.Popen(
                    guard,
                    env=self._environment,
                    cwd=self.log.parent,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    start_new_session=True,  # Ctrl-C is the trainer's, which ends its servers itself
                )
            assert self._guard.stdout is not None
            line = self._guard.stdout.readline()
            self._group = int(line) if line.strip() else None
        self.url = f"http://127.0.0.1:{port}"
        self._wait(seconds)
        return self.url

    def _wait(self, seconds: float) -> None:
        server, deadline = VLLMServer(self.url), time.monotonic() + seconds
        while not server.is_healthy(HEALTH_SECONDS):
            if (code := self.exit_code()) is not None:
                raise ServerLostError(
                    f"the server ended with exit code {code} before it answered",
                    where=self.log,
                    found="\n" + self.tail(),
                    remedy="its log says why; `engine.launch.arguments` and `.environment` are passed on to it",
                )
            if time.monotonic() > deadline:
                self.stop(for_good=False)
                raise EngineError(
                    f"the server did not answer within {seconds:.0f} s after its start",
                    where=self.log,
                    found="\n" + self.tail(),
                    remedy="see its log, or raise `engine.launch.start_seconds`",
                )
            time.sleep(POLL_SECONDS)

    def exit_code(self) -> int | None:
        """None while it runs; what it never had, of one that was not started."""
        return -1 if self._guard is None else self._guard.poll()

    def tail(self) -> str:
        """The last lines of its log."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()
        except OSError:
            return "(no log)"
        return "\n".join(f"    {line[:300]}" for line in lines[-TAIL_LINES:])

    def tell(self) -> None:
        """Tell it to end, and do not wait."""
        self._ended = True
        if (guard := self._guard) is not None:
            guard.terminate()

    def stop(self, *, for_good: bool = True) -> None:
        """End it and all that it started, and wait until they are gone."""
        with self._lock:
            self._ended = self._ended or for_good
            guard, group = self._guard, self._group
            self._guard = self._group = None
        if guard is None:
            return
        guard.terminate()
        try:
            guard.wait(server_guard.TERM_SECONDS + 5)
        except subprocess.TimeoutExpired:
            guard.kill()
            guard.wait()
        if group is not None:  # a guard that was killed has left it
            server_guard.end_group(group)
        if guard.stdout is not None:
            guard.stdout.close()


def _close(servers: Sequence[_Process], closing: threading.Event) -> None:
    closing.set()
    # All are told before one is waited for. No threads: at the end of the program none can be started any more.
    for server in servers:
        server.tell()
    for server in servers:
        server.stop()


def _watch(servers: Sequence[_Process], pool: weakref.ref[ServerPool], closing: threading.Event) -> None:
    silent_since: dict[int, float] = {}
    while not closing.wait(POLL_SECONDS):
        watched = pool()
        if watched is None:
            return
        for index, server in enumerate(servers):
            if not watched.is_ready(index):
                silent_since.pop(index, None)
                continue
            if (code := server.exit_code()) is not None:
                watched.lose(index, f"it ended with exit code {code}; {server.log}")
            elif VLLMServer(server.url).is_healthy(HEALTH_SECONDS):
                silent_since.pop(index, None)
            elif time.monotonic() - silent_since.setdefault(index, time.monotonic()) > HUNG_SECONDS:
                # Before it is lost: its requests wait for an answer until their connections break.
                server.stop(for_good=False)
                watched.lose(index, f"it answered nothing for {HUNG_SECONDS:.0f} s; {server.log}")
        del watched


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
