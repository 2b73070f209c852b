"""The native engine's requests: rows that join and leave a running batch at any step."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from posttrain.rollout.decode import Decoder
from posttrain.rollout.engine import Completion, FinishReason, Request
from posttrain.rollout.requests import hand_over
from posttrain.rollout.rows import Row, sample_tokens


class RowEngine(Protocol):
    """What is asked of the engine: `posttrain.rollout.native.NativeEngine`."""

    policy_version: int

    def row_of(self, request: Request) -> Row:
        """A request as a row that nothing has been sampled for."""
        ...

    def sampling(self) -> AbstractContextManager[None]:
        """Within it, the model computes as it samples."""
        ...


class NativeStepSampler:
    """See `posttrain.rollout.requests.StepSampler`.

    Args:
        make_decoder: an empty one; its memory is held while requests are in flight, beside that of a `generate`.
    """

    def __init__(self, engine: RowEngine, make_decoder: Callable[[], Decoder]):
        self._engine, self._make_decoder = engine, make_decoder
        self._decoder: Decoder | None = None
        self._version = 0
        """Of the weights that the decoder's keys and values were computed with."""
        self._waiting: deque[Row] = deque()
        self._rows: dict[Request, Row] = {}
        self._requests: dict[Row, Request] = {}

    def add(self, request: Request) -> None:
        self._rows[request] = row = self._engine.row_of(request)
        self._requests[row] = request
        self._waiting.append(row)

    def step(self) -> list[tuple[Request, Completion | Exception]]:
        engine, waiting = self._engine, self._waiting
        decoder = self._current_decoder()
        with engine.sampling():
            # A batch lays its cache out for all its rows; here more may have come since.
            decoder.enlarge(waiting)
            decoder.admit(waiting)
            logits_RV = decoder.next_logits(waiting)
            broken = dict(sample_tokens(decoder.rows, logits_RV, engine.policy_version))
        ended: list[tuple[Row, Completion | Exception]] = []
        # Outside of `sampling`: `on_token` is somebody else's code, which may train or record gradients.
        for row in decoder.rows:
            if (failed := broken.get(row) or hand_over(self._requests[row], row.latest)) is not None:
                ended.append((row, failed))
            elif (reason := row.finish) is not None:
                ended.append((row, row.completed(reason, engine.policy_version)))
        decoder.retire([row for row, _ in ended])
        return [(self._forget(row), outcome) for row, outcome in ended]

    def remove(self, request: Request) -> Completion:
        row = self._rows[request]
        # It may wait: for its first step, or for the cells that it had to give back.
        if row in self._waiting:
            self._waiting.remove(row)
        elif self._decoder is not None:
            self._decoder.retire([row])
        self._forget(row)
        return row.completed(FinishReason.ABORTED, self._engine.policy_version)

    def _forget(self, row: Row) -> Request:
        """Its request; the row is in no batch by now."""
        request = self._requests.pop(row)
        del self._rows[request]
        if not self._rows:
            self._decoder = None  # an idle engine keeps no memory from the trainer
        return request

    def _current_decoder(self) -> Decoder:
        """The running batch; begun anew where the weights have changed.

        Keys and values of older weights would let the new ones answer a prompt that they read otherwise; what was
        sampled until then is computed again, and stays.
        """
        version = self._engine.policy_version
        if self._decoder is None or version != self._version:
            # At the head of the queue and in their order: they came before whoever waits.
            self._waiting.extendleft(reversed(self._decoder.rows if self._decoder is not None else []))
            self._decoder, self._version = self._make_decoder(), version
        return self._decoder
