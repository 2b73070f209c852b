"""The weights that a vLLM server holds: pushed through a folder, labelled in its memory, and looked at again.

    weights = ServerWeights(server)
    weights.load(folder, version=7, in_flight="keep")   # requests in flight go on under the new weights
    weights.require_same(mark)                          # ServerLostError: it was restarted since `weights.mark()`

A server that was restarted, or that somebody else gave weights, answers as readily as before. The label that every push
leaves in its memory says which weights it has; a server that keeps none is not trusted once a connection broke.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

from posttrain.errors import ConfigError, EngineError, ServerLostError
from posttrain.rollout.vllm_server import VLLMServer

InFlight = Literal["wait", "keep", "recompute"]
"""What becomes of requests in flight when weights change: they end first; they go on with the keys and values that they
have; or they go on after theirs are computed anew under the new weights."""
PAUSES = {"wait": "mode=wait", "keep": "mode=keep&clear_cache=false", "recompute": "mode=keep"}
"""Queries of /pause. Without `clear_cache=false`, vLLM 0.32 drops the keys and values of what it keeps and computes
them again, although it says that it does not."""
FRESH = "default"
"""The label of a vLLM server that nobody has given weights."""


class Mark(NamedTuple):
    """Mark(lost=2, servers=0): connections that had broken, and servers that had been another one."""

    lost: int
    servers: int


class ServerWeights:
    """What one server holds, and whether it may be sampled from.

    Args:
        version: of the weights that it was started with.
    """

    def __init__(self, server: VLLMServer, version: int = 0):
        self.version = version
        self.lock = threading.RLock()
        """Held while weights are pushed and while their label is read: between the two steps of a push, the server's
        label and ours differ without anything being wrong."""
        self._server = server
        self._unusable: str | None = None
        """Why nothing may be sampled: a failed update, or sleep."""
        # Versions begin at 0 in every run: the label says whose they are.
        self._run = secrets.token_hex(4)
        self._label: str | None = None
        """What the server's memory says of the weights that were pushed last."""
        self._labels: bool | None = None
        """Whether the server keeps such a label; None before it was asked."""
        self._servers = 0
        """How often the server was another one."""
        self._asleep = 0
        self._looked = SharedLook()

    @property
    def salt(self) -> str:
        """Names the weights to vLLM's prefix cache: keys and values of one version are never another's."""
        return f"{self._run}-{self.version}"

    @property
    def are_known(self) -> bool:
        """Whether a server that comes back after a broken connection can be told from a new one."""
        return self._label is None or bool(self._labels)

    def load(self, folder: Path, version: int, in_flight: InFlight = "wait") -> None:
        """Have the server read the weights in `folder`; an engine that sleeps is awake afterwards.

        Raises:
            EngineError: the server did not take them; nothing is sampled until a later call succeeds.
        """
        with self.lock:
            # Set first and cleared last: whatever fails between, the engine samples nothing of half a model.
            self._unusable = f"it did not take the weights of policy version {version}"
            try:
                self._load(folder, version, in_flight)
            except EngineError:
                # Paused as it is, the server would hold what is in flight for ever.
                with suppress(EngineError, ConfigError):
                    self._server.post("/pause?mode=abort", retry=False)
                    self._server.post("/resume", retry=False)
                raise
            self._asleep, self._unusable = 0, None

    def _load(self, folder: Path, version: int, in_flight: InFlight) -> None:
        post = self._server.post
        if self._asleep:
            post("/wake_up?tags=weights")
        else:
            post(f"/pause?{PAUSES[in_flight]}")
        post("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}})
        if self._asleep:
            post("/wake_up?tags=kv_cache")
        self._forget_prefixes(in_flight)
        self._write_label(f"{self._run}-{version}")
        # Before anything is sampled again: a completion that ends at once must not be called one of the old weights.
        self.version = version
        post("/resume")

    def _forget_prefixes(self, in_flight: InFlight) -> None:
        """Prompts that were seen before would be answered from keys and values of the old weights."""
        recompute = "?reset_running_requests=true" if in_flight == "recompute" else ""
        answer = self._server.post(f"/reset_prefix_cache{recompute}")
        # vLLM keeps the whole cache where a request holds a part of it, and says so. Under "keep" it has to, and the
        # salt of the new version finds none of it.
        if in_flight != "keep" and isinstance(answer, dict) and answer.get("success") is False:
            raise EngineError(
                "the engine kept what it had cached under the old weights",
                where=f"{self._server.url}/reset_prefix_cache",
                found=answer,
                expected="success: true",
                remedy="something else asks this server: give the run one of its own",
            )

    def sleep(self, level: int) -> None:
        self._unusable = f"it sleeps (level {level})"
        self._server.post(f"/sleep?level={level}")
        self._asleep = level

    def wake(self) -> None:
        """Raises:
        ConfigError: it sleeps at level 2: its weights are gone, and only new ones wake it.
        """
        if self._asleep == 2:
            raise ConfigError(
                "the engine dropped its weights when it went to sleep",
                where=self._server.url,
                remedy="call update_weights(model, version), which wakes it",
            )
        self._server.post("/wake_up")
        self._asleep, self._unusable = 0, None

    def forget(self, *, needs_weights: bool) -> None:
        """The server is a new one: nothing that was pushed to the old one counts.

        Args:
            needs_weights: whether it may be sampled from only after a `load`.
        """
        with self.lock:
            self._servers += 1
            self._label = self._labels = None
            self._unusable = "it was restarted and has no weights of this run yet" if needs_weights else None
            self._asleep = 0

    def require_usable(self) -> None:
        """Raises:
        EngineError: it sleeps, or did not take the weights that were pushed last.
        """
        with self.lock:
            if self._unusable is not None:
                raise EngineError(
                    f"the engine cannot be sampled from: {self._unusable}",
                    where=self._server.url,
                    remedy="call wake() or update_weights(model, version) first",
                )

    def mark(self) -> Mark:
        """Where the server stands before something is asked of it; for `require_same`."""
        return Mark(self._server.lost, self._servers)

    def require_same(self, mark: Mark) -> None:
        """Stop if what was asked since `mark` may come from other weights than those that were pushed.

        Whoever asks while another's look at the label has not begun shares it.

        Raises:
            ServerLostError: the server was restarted.
            EngineError: somebody else gave it weights.
        """
        self._looked(self._look)
        with self.lock:
            # It may have answered before anybody noticed that it was a new one, and have been given its weights since.
            if mark.servers != self._servers:
                raise self._changed(FRESH)
            if self._label is not None and not self._labels and self._server.lost != mark.lost:
                self._unusable = "it may hold other weights than those that were pushed"
                raise self._changed(None)

    def _look(self) -> None:
        with self.lock:
            if self._label is None or not self._labels:
                return
            info = self._server.get("/weight_info")
            label = info.get("weight_version") if isinstance(info, dict) else info
            if label != self._label:
                self._unusable = "it may hold other weights than those that were pushed"
                raise self._changed(label)

    def _changed(self, label: object) -> EngineError:
        found = "the connection broke, and it keeps no label of its weights"
        kind = EngineError if label not in (None, FRESH) else ServerLostError
        return kind(
            "the engine may hold other weights than those that were pushed: it was restarted, or got others",
            where=self._server.url,
            found=found if label is None else f"its weights are labelled {label!r}",
            expected=None if label is None else repr(self._label),
            remedy="resume the run: it pushes its weights again before it samples",
        )

    def _write_label(self, label: str) -> None:
        if self._labels is None:
            self._labels = self._server.has("/weight_info")
        if self._labels:
            self._server.post("/update_weight_version", {"new_version": label})
        self._label = label


class SharedLook:
    """One look for all who wait for one: each gets the outcome of a look that began after it asked.

    Hundreds of requests end in the same step of the server, and each wants its weights looked at.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._begun = 0
        self._done = 0

    def __call__(self, look: Callable[[], None]) -> None:
        begun = self._begun
        with self._lock:
            if self._done > begun:
                return
            self._begun += 1
            look()
            # Not after an error: whoever waits looks again, and raises its own.
            self._done = self._begun
