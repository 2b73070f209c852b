"""Answers of a model behind an OpenAI-compatible endpoint: cached on disk, retried, rate-limited.

    judge = Endpoint("http://localhost:8000/v1", "qwen", cache=Path("cache"))
    judge.ask([{"role": "user", "content": "2 + 2?"}], temperature=0)

    teacher = Endpoint("http://localhost:8000/v1", "qwen", who="teacher")
    teacher.exchange({"model": "qwen", "messages": [...]}, read)        # what `read` makes of the reply, or a Failure

Only the standard library. The key is read from the environment when it is used, and stands in no recipe and no file.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import random
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from posttrain.config.addresses import credential_in
from posttrain.errors import ConfigError, RewardError

if TYPE_CHECKING:  # the record needs nothing of this module, and this module nothing of pydantic
    from posttrain.config.judge_endpoint import JudgeEndpoint

RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
LONGEST_WAIT = 60.0
MOST_SHOWN = 200
"""Bytes of a reply that is no JSON."""

Read = TypeVar("Read")


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a question got no answer: Failure("HTTP 503: overloaded", status=503, attempts=6)."""

    trouble: str
    """In the server's words, without the key."""
    status: int | None
    """Of HTTP; None where no reply came, or one that cannot be read."""
    attempts: int
    nobody: bool = False
    """Whether nobody listens there: the port refuses, or no such host is known. A silent server may only be slow."""

    @property
    def refused(self) -> bool:
        """Whether asking again would fail alike: a wrong key, no such model, a request that it does not take."""
        return self.status is not None and self.status not in RETRIED


@dataclass
class Endpoint:
    """Where to ask, and how often.

    Raises (from `ask`):
        RewardError: no answer after all retries, or one without a text.
        ConfigError: the endpoint refuses: no such model, no such key. Also from the constructor: a credential in `url`.
    """

    url: str
    """Up to and with the version: http://localhost:8000/v1"""
    model: str
    key_env: str | None = None
    """Name of the environment variable that holds the key."""
    cache: Path | None = None
    """Folder of answers by the content of their question; None asks every time."""
    retries: int = 5
    first_wait: float = 1.0
    """Seconds before the first retry; each later one waits twice as long, and up to half as long again by chance."""
    timeout: float = 120.0
    per_minute: float | None = None
    """Requests a minute at most."""
    who: str = "judge"
    """What errors call it."""
    requests: int = field(default=0, init=False)
    """How many were sent; cached answers do not count."""
    stopped: threading.Event = field(default_factory=threading.Event, init=False, repr=False)
    """Set by whoever wants no further answer: waits end at once, and nothing is asked again."""

    def __post_init__(self) -> None:
        shown = credential_in(self.url)
        if shown is not None:
            # Errors and cached questions show the address.
            raise ConfigError(
                f"the {self.who}'s address holds a credential",
                found=shown,
                remedy="take it out, export it as an environment variable, and name that in `key_env`",
            )
        self._lock = threading.Lock()
        self._next = 0.0
        self._chance = random.Random(0)

    @classmethod
    def of(cls, settings: JudgeEndpoint, cache: Path | None) -> Endpoint:
        """The endpoint of a recipe's judge, with its folder of answers."""
        return cls(
            settings.url,
            settings.model,
            key_env=settings.key_env,
            cache=cache,
            retries=settings.retries,
            timeout=settings.timeout,
            per_minute=settings.per_minute,
        )

    def ask(self, messages: Sequence[Mapping[str, str]], **options: Any) -> str:
        """The text of the model's answer."""
        body = {"model": self.model, "messages": [dict(message) for message in messages], **options}
        path = self._path(body)
        if path is not None and path.is_file():
            return str(json.loads(path.read_text(encoding="utf-8"))["answer"])
        answer = self._asked(body)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Written aside and renamed: another process that reads the cache must never see half an answer.
            part = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")
            part.write_text(json.dumps({"request": body, "answer": answer}), encoding="utf-8")
            part.replace(path)
        return answer

    def _path(self, body: Mapping[str, Any]) -> Path | None:
        if self.cache is None:
            return None
        key = hashlib.sha256(json.dumps([self.url, body], sort_keys=True).encode()).hexdigest()
        return self.cache / key[:2] / f"{key}.json"

    def _asked(self, body: Mapping[str, Any]) -> str:
        answer = self.exchange(body, _text_of)
        if isinstance(answer, str):
            return answer
        if answer.refused:
            raise self.refusal(answer)
        raise RewardError(
            f"the {self.who} `{self.model}` did not answer",
            where=self.url,
            found=f"{answer.trouble} (asked {answer.attempts} times)",
            remedy="see that the endpoint runs; what was answered is cached, so that a new run goes on from there",
        )

    def exchange(self, body: Mapping[str, Any], read: Callable[[Any], Read]) -> Read | Failure:
        """What `read` makes of the reply to a request of chat completions, after as many retries as there are.

        Args:
            read: of the parsed JSON; a ValueError, KeyError, TypeError or IndexError of it is asked again.

        Raises:
            ConfigError: the variable of the key is not set.
        """
        key = self._key(self.key_env) if self.key_env else None
        url = self.url.rstrip("/") + "/chat/completions"
        failure = Failure("it was stopped before it was asked", None, 0)
        for attempt in range(self.retries + 1):
            self._wait_for_turn()
            if self.stopped.is_set():
                break
            try:
                request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
                if key is not None:
                    # Not among its headers: those go to whatever host a redirect names, the key with them.
                    request.add_unredirected_header("Authorization", f"Bearer {key}")
                return self._sent(request, read)
            except urllib.error.HTTPError as error:
                with error:
                    trouble = self._hidden(f"HTTP {error.code}: {error.read(500).decode(errors='replace')}")
                failure, pause = Failure(trouble, error.code, attempt + 1), _seconds(error.headers.get("Retry-After"))
                # A wrong key or model fails the same way each time; retrying would only hide it for minutes.
                if failure.refused:
                    return failure
            except (OSError, ValueError, KeyError, TypeError, IndexError, http.client.HTTPException) as error:
                trouble, pause = self._hidden(f"{type(error).__name__}: {error}"), None
                failure = Failure(trouble, None, attempt + 1, nobody=_is_nobody(error))
            if attempt < self.retries:
                # Some chance in the wait, or all threads that failed together would come back together.
                backoff = self.first_wait * 2**attempt * (1 + self._chance.random() / 2)
                self.stopped.wait(min(LONGEST_WAIT, pause if pause is not None else backoff))
        return failure

    def _sent(self, request: urllib.request.Request, read: Callable[[Any], Read]) -> Read:
        with self._lock:
            self.requests += 1
        with urllib.request.urlopen(request, timeout=self.timeout) as reply:
            text = reply.read()
        try:
            parsed = json.loads(text)
        except ValueError as error:
            # A page of a proxy, or a stream of events: "Expecting value: line 1" would say neither.
            shown = text[:MOST_SHOWN].decode(errors="replace")
            raise ValueError(f"the reply is no JSON ({error}): {shown!r}") from None
        return read(parsed)

    def _hidden(self, text: str) -> str:
        """Without the key: servers quote the one that they refuse, and errors stand in logs and run folders."""
        key = os.environ.get(self.key_env, "").strip() if self.key_env else ""
        return text.replace(key, "***") if key else text

    def _key(self, name: str) -> str:
        # A line end, as `$(cat key.txt)` does not leave but a file of variables may, makes a header invalid.
        key = os.environ.get(name, "").strip()
        if not key:
            raise ConfigError(
                f"the environment variable {name} is not set", where=self.url, remedy=f"export {name}=... with the key"
            )
        return key

    def refusal(self, failure: Failure) -> ConfigError:
        """The error for a request that the endpoint does not take."""
        of_key = failure.status in (401, 403)
        return ConfigError(
            f"the {self.who}'s endpoint refuses the request",
            where=f"{self.url}, model {self.model!r}",
            found=failure.trouble,
            remedy="set `key_env` to the variable that holds the key" if of_key else "check url and model",
        )

    def _wait_for_turn(self) -> None:
        if self.per_minute is None:
            return
        with self._lock:
            now = time.monotonic()
            # Slots are handed out under the lock and waited for outside, so that waiting threads do not queue on it.
            turn = max(now, self._next)
            self._next = turn + 60.0 / self.per_minute
        self.stopped.wait(max(0.0, turn - now))


def why_unreachable(url: str) -> str | None:
    """Why nobody can answer at `url`: the port refuses, or no such host is known. None where somebody may.

    A connection is opened and closed; nothing is sent. A host that is silent may be slow, so it is no reason, and
    neither is one that a proxy stands before: what the proxy reaches is not seen from here.
    """
    parts = urllib.parse.urlsplit(url)
    host = parts.hostname
    if host is None or (parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host)):
        return None
    try:
        socket.create_connection((host, parts.port or (443 if parts.scheme == "https" else 80)), timeout=3.0).close()
    except (ConnectionRefusedError, socket.gaierror) as error:
        return error.strerror or str(error)
    except (OSError, ValueError):
        return None
    return None


def _is_nobody(error: BaseException) -> bool:
    # urllib wraps what the socket says.
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    return isinstance(cause, ConnectionRefusedError | socket.gaierror)


def _text_of(reply: Any) -> str:
    content = reply["choices"][0]["message"]["content"]
    if not isinstance(content, str):
        raise ValueError("the answer holds no text")
    return content


def _seconds(text: str | None) -> float | None:
    try:
        return None if text is None else max(0.0, float(text))
    except ValueError:  # a date, which nobody sends
        return None
