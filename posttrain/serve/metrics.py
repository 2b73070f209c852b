"""What the server counts, as Prometheus reads it (text format 0.0.4): `GET /metrics`.

Everything is counted on the server's own loop, so that no counter needs a lock.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import dataclass, field

SPAN = 10.0
"""Seconds over which tokens/s are measured."""
LEAST_BUSY = 0.5
"""Seconds of work from which a rate is told."""


@dataclass
class Meter:
    """Meter().count_tokens(3) ... meter.rate() -> 412.0 tokens/s over the last ten seconds."""

    waiting: int = 0
    """Completions that have no token yet."""
    running: int = 0
    prompt_tokens: int = 0
    sampled_tokens: int = 0
    scored_tokens: int = 0
    """Of prompts whose log-probs were asked for, and of responses that a reward model rated."""
    requests: Counter[tuple[str, int]] = field(default_factory=Counter)
    """By route and status."""
    finishes: Counter[str] = field(default_factory=Counter)
    """Completions by why they ended; "cancelled" where the client was gone."""
    busy_since: float = 0.0
    """When the first of the completions that are in flight came to an idle server, by the clock of `time.monotonic`."""
    _recent: deque[tuple[float, int]] = field(default_factory=deque)
    _in_span: int = 0

    def count_tokens(self, count: int) -> None:
        """Tokens that were sampled just now."""
        self.sampled_tokens += count
        self._recent.append((time.monotonic(), count))
        self._in_span += count
        self._forget()

    def rate(self) -> float:
        """Tokens/s of all completions together, over the last ten seconds, or since the first token if that is less."""
        self._forget()
        if not self._recent:
            return 0.0
        return self._in_span / max(1.0, min(SPAN, time.monotonic() - self._recent[0][0]))

    def busy_rate(self) -> float:
        """Tokens/s since the server was last idle, or over the last ten seconds; 0 where that is too short to tell.

        Idle seconds say nothing of how fast a queue gets shorter: a rate that counts them, a moment after a small
        request, sends clients away for a minute.
        """
        now = time.monotonic()
        span = min(SPAN, now - self.busy_since)
        if span < LEAST_BUSY:
            return 0.0
        return sum(count for at, count in self._recent if at >= now - span) / span

    def _forget(self) -> None:
        oldest = time.monotonic() - SPAN
        while self._recent and self._recent[0][0] < oldest:
            self._in_span -= self._recent.popleft()[1]

    def text(self) -> str:
        """All of it, for `/metrics`."""
        gauges = {
            "running": (self.running, "Completions that are being sampled."),
            "waiting": (self.waiting, "Completions that wait for their first token."),
            "tokens_per_second": (round(self.rate(), 3), "Tokens sampled a second, over the last ten seconds."),
        }
        counters = {
            "prompt_tokens_total": (self.prompt_tokens, "Tokens of prompts that completions were asked for."),
            "sampled_tokens_total": (self.sampled_tokens, "Tokens that were sampled."),
            "scored_tokens_total": (
                self.scored_tokens,
                "Tokens scored: responses by a reward model, prompts by echo.",
            ),
        }
        lines: list[str] = []
        for kind, table in (("gauge", gauges), ("counter", counters)):
            for name, (value, meaning) in table.items():
                lines += [*_head(name, meaning, kind), f"posttrain_{name} {value}"]
        lines += _head("requests_total", "Requests by route and status.", "counter")
        lines += [
            f'posttrain_requests_total{{route="{route}",status="{status}"}} {count}'
            for (route, status), count in sorted(self.requests.items())
        ]
        lines += _head("completions_total", "Completions by why they ended.", "counter")
        lines += [
            f'posttrain_completions_total{{finish="{finish}"}} {count}'
            for finish, count in sorted(self.finishes.items())
        ]
        return "\n".join(lines) + "\n"


def _head(name: str, meaning: str, kind: str) -> list[str]:
    return [f"# HELP posttrain_{name} {meaning}", f"# TYPE posttrain_{name} {kind}"]
