"""What asking a teacher costs, and when to stop: tokens, money, and a rate that holds over many threads.

meter = Meter(price=(0.15, 0.60), most_cost=2.0)
meter.count(reply)                      # after each answer
meter.limit_reached                     # "most_cost: 2.00 of 2 spent", or None
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from posttrain.synthesis.teacher import Reply

PER_MILLION = 1e6


@dataclass(slots=True)
class Meter:
    """What was spent so far: Meter(price=(0.15, 0.60), most_tokens=2_000_000).

    Replies that a journal had are counted too (`asked` tells them apart): a budget is the stage's, not the process's.
    """

    price: tuple[float, float] | None = None
    """For a million prompt tokens, and for a million of answers; None: nobody says."""
    most_tokens: int | None = None
    most_cost: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    answers: int = 0
    """Replies with an answer."""
    failures: int = 0
    """Questions that were given up."""
    uncounted: int = 0
    """Answers that came without a count of their tokens."""

    def count(self, reply: Reply) -> None:
        self.prompt_tokens += reply.prompt_tokens
        self.completion_tokens += reply.completion_tokens
        if reply.error is not None:
            self.failures += 1
            return
        self.answers += 1
        self.uncounted += not (reply.prompt_tokens or reply.completion_tokens)

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    @property
    def cost(self) -> float | None:
        """In the currency of the price; None where there is none."""
        if self.price is None:
            return None
        return (self.prompt_tokens * self.price[0] + self.completion_tokens * self.price[1]) / PER_MILLION

    @property
    def limit_reached(self) -> str | None:
        """Which limit is spent, in words; None while there is room."""
        if self.most_tokens is not None and self.tokens >= self.most_tokens:
            return f"`most_tokens: {self.most_tokens}` is spent ({self.tokens:,} tokens)"
        if self.most_cost is not None and self.cost is not None and self.cost >= self.most_cost:
            return f"`most_cost: {self.most_cost:g}` is spent ({self.cost:.4g})"
        return None

    @property
    def is_limited(self) -> bool:
        return self.most_tokens is not None or self.most_cost is not None

    def note(self) -> str:
        """For a progress line: "cost 0.12"; empty without a price."""
        cost = self.cost
        return "" if cost is None else f"cost {cost:.4g}"

    def __str__(self) -> str:
        parts = [
            f"{self.answers:,} answers",
            f"{self.prompt_tokens:,} prompt and {self.completion_tokens:,} answer tokens",
        ]
        parts += [] if self.cost is None else [f"cost {self.cost:.4g}"]
        parts += [f"{self.failures:,} questions given up"] if self.failures else []
        parts += [f"{self.uncounted:,} answers without a count of their tokens"] if self.uncounted else []
        return ", ".join(parts)


@dataclass
class TokenPace:
    """At most so many tokens a minute over all threads: pace.reserve(300) gives the seconds to wait before asking.

    What an answer will take is not known before it is there, so a guess is reserved and corrected afterwards; without
    the correction a wrong guess would hold the whole run below the limit, or above it.
    """

    per_minute: float
    now: Callable[[], float] = time.monotonic
    _next: float = field(default=0.0, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def reserve(self, tokens: float) -> float:
        """Seconds until a request of so many tokens may go out."""
        with self._lock:
            now = self.now()
            turn = max(now, self._next)
            self._next = turn + tokens * 60 / self.per_minute
        return turn - now

    def correct(self, reserved: float, used: float) -> None:
        """Once it is known what the request took."""
        with self._lock:
            self._next += (used - reserved) * 60 / self.per_minute
