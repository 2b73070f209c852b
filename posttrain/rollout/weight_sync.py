"""The trainer's weights reach the engine, and a probe shows after every sync that they did.

sync = WeightSync(engine, policy, sample_probe(engine, prompt))
sync(0)                          # pushes the weights and measures how far apart equal weights score
...                              # a training step
sync(1)                          # pushes, scores the probe on both sides; WeightSyncError if they disagree

An engine that silently keeps old weights still samples fluent text, and its rewards still move; importance ratios then
correct for a policy that nobody has. A fixed sequence scored by both sides shows it at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from posttrain.data.tree_key import make_tree
from posttrain.data.trees import collate
from posttrain.errors import WeightSyncError
from posttrain.models.tree.logprobs import Policy
from posttrain.rollout.engine import Engine
from posttrain.rollout.sampled_model import evaluating
from posttrain.sampling import SamplingDistribution
from posttrain.types import RowRef

PROBE_TOKENS = 16
SMALLEST_NOISE = 1e-4
"""Nats per token. Rounding in fp32 measures at most 2e-5 (SmolLM2-135M); less than this is never called a gap."""
LARGEST_NOISE = 0.1
"""Nats per token that equal weights may score apart at the start. Servers in bf16 are known for about 0.01; a tenth
says that the two sides compute different models, or that the engine reports another kind of log-prob."""
WIDENING = 4.0
"""The band is this many times the measured noise: noise grows as a policy sharpens, a missed update grows faster."""


ScoreEach = Callable[[Sequence[int], Sequence[int]], Mapping[str, list[float]]]
"""(prompt, ids) -> the log-probs of `ids` by each holder of weights, by name."""


class SyncedEngine(Engine, Protocol):
    """An engine that takes weights and scores given ids."""

    def update_weights(self, model: nn.Module, version: int) -> None:
        """Sample from `model`'s weights from now on; what was cached under the old ones is forgotten.

        Raises:
            EngineError: the engine did not take them. It samples nothing until a later update succeeds.
        """
        ...

    def score(self, prompt: Sequence[int], ids: Sequence[int]) -> list[float]:
        """Log-probs of `ids` after `prompt` in nats, at temperature 1 over the whole vocabulary."""
        ...


@dataclass(frozen=True, slots=True)
class Probe:
    """The fixed sequence that both sides score: Probe(prompt=(1, 70, 71), ids=(52, 53, 2))."""

    prompt: tuple[int, ...]
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SyncReport:
    """SyncReport(version=7, gap=3.1e-6, largest=9.0e-6, band=1e-4, trainer_moved=0.021, engine_moved=0.021)."""

    version: int
    gap: float
    """Mean over the probe's tokens of |engine - trainer|, nats."""
    largest: float
    """The largest of them."""
    band: float
    """The gap that stops the run."""
    trainer_moved: float
    """Mean change of the trainer's log-probs since the last sync: what the update did to the probe."""
    engine_moved: float


def sample_probe(engine: Engine, prompt: Sequence[int], tokens: int = PROBE_TOKENS) -> Probe:
    """A probe of what the policy says itself: such tokens move with training, and their log-probs are moderate."""
    sampling = SamplingDistribution(max_new_tokens=tokens)
    (completion,) = engine.generate([prompt], sampling)[0]
    return Probe(tuple(prompt), completion.ids)


def trainer_logprobs(policy: Policy, probe: Probe) -> list[float]:
    """What the trainer gives the probe's ids, by the path that its losses take."""
    tree = make_tree(probe.prompt, [(probe.ids, [True] * len(probe.ids))], RowRef("weight sync probe", 1))
    with torch.no_grad(), evaluating(policy.model):
        values: list[float] = policy(collate([tree])).logprobs_N.double().tolist()
    return values


class WeightSync:
    """Pushes the policy's weights to an engine and proves that they arrived.

    Args:
        engine: what samples; `native`, served or colocated.
        policy: the trainer's.
        probe: `sample_probe(...)`, or a sequence of your own.
        widening, smallest, largest: see the constants of this module.
        score_each: `engine.score` of each of several holders of weights by name, as `ServerPool.score_each`: all of
            them have to agree. None: there is one.
        in_flight: what becomes of requests in flight, as `ServedEngine.update_weights` takes it; None of an engine that
            has none when weights are pushed.
    """

    def __init__(
        self,
        engine: SyncedEngine,
        policy: Policy,
        probe: Probe,
        *,
        widening: float = WIDENING,
        smallest: float = SMALLEST_NOISE,
        largest: float = LARGEST_NOISE,
        score_each: ScoreEach | None = None,
        in_flight: str | None = None,
    ):
        self.engine = engine
        self.policy = policy
        self.probe = probe
        self.noise: float | None = None
        """Nats per token that the two sides were measured apart with equal weights; None before that. A resumed run
        sets what its checkpoint holds."""
        self._pushing: dict[str, Any] = {} if in_flight is None else {"in_flight": in_flight}
        self._widening = widening
        self._smallest = smallest
        self._largest = largest
        self._score_each = score_each or (lambda prompt, ids: {"": engine.score(prompt, ids)})
        self._trainer: tuple[int, list[float]] | None = None
        """Version and log-probs of the probe in the trainer, when it was last scored."""
        self._before: _Scores | None = None
        """After the last sync."""

    @property
    def band(self) -> float:
        """Nats per token; a wider gap stops the run."""
        noise = self._smallest if self.noise is None else self.noise
        # Never beyond what already equal weights may differ by: a noisy start would otherwise excuse a stale engine.
        return min(self._widening * noise, max(self._largest, noise))

    def __call__(self, version: int) -> float:
        """`start` at first and `sync` ever after; the gap."""
        return (self.start(version) if self.noise is None else self.sync(version)).gap

    def start(self, version: int = 0) -> SyncReport:
        """Push the weights as they are and measure the noise.

        Raises:
            WeightSyncError: already with equal weights, the two sides are further apart than noise can be.
            EngineError: the engine did not take the weights.
        """
        self.engine.update_weights(self.policy.model, version, **self._pushing)
        scores = self._scores()
        name, gap, largest = scores.farthest()
        if not gap <= self._largest:
            raise WeightSyncError(
                "engine and trainer disagree on a fixed sequence although they have just been given the same weights",
                where=_where(version, name),
                found=f"{gap:.3g} nats apart per token, at most {largest:.3g}",
                expected=f"at most {self._largest:g} per token",
                remedy="serve the same model in the same precision as it trains; for vLLM start the server with "
                "`--logprobs-mode processed_logprobs` and no quantisation",
            )
        # At least the rounding of fp32: two equal computations give a gap of 0, and a band of 0 would ring at once.
        self.noise = max(self._smallest, gap)
        self._before = scores
        return SyncReport(version, gap, largest, self.band, 0.0, 0.0)

    def sync(self, version: int) -> SyncReport:
        """Push the weights and compare.

        Raises:
            WeightSyncError: the probe says that the engine samples from other weights.
            EngineError: the engine did not take the weights.
        """
        self.engine.update_weights(self.policy.model, version, **self._pushing)
        return self.check()

    def check(self) -> SyncReport:
        """Score the probe on both sides without pushing anything: after an engine woke up, or at any time.

        Raises:
            WeightSyncError: as `sync`.
        """
        scores, before = self._scores(), self._before
        name, gap, largest = scores.farthest()
        trainer_moved = 0.0 if before is None else _gap(scores.trainer, before.trainer)[0]
        # Of a member that came back meanwhile there is nothing to compare with.
        moved = {
            own: _gap(values, before.engines[own])[0]
            for own, values in scores.engines.items()
            if before is not None and own in before.engines
        }
        # An engine whose scores stand still while the trainer's move is wrong within any band: the update may be
        # smaller than the noise.
        still = [own for own, value in moved.items() if value == 0 and trainer_moved > (self.noise or self._smallest)]
        if still:
            name, gap, largest = still[0], *_gap(scores.trainer, scores.engines[still[0]])
        engine_moved = moved.get(name, 0.0)
        # `not <=`, so that NaN is a gap.
        if still or not gap <= self.band:
            raise self._other_weights(self.engine.policy_version, name, gap, largest, (trainer_moved, engine_moved))
        self._before = scores
        return SyncReport(self.engine.policy_version, gap, largest, self.band, trainer_moved, engine_moved)

    def prove(self, name: str, member: SyncedEngine) -> None:
        """Score the probe on one server that was given the weights of the last push again: for `ServerPool.prove_with`.

        Weights that the trainer has not scored yet are left to the `check` that follows their push.

        Raises:
            WeightSyncError: it samples from other weights.
        """
        trainer = self._trainer
        if trainer is None or trainer[0] != member.policy_version:
            return
        gap, largest = _gap(trainer[1], member.score(self.probe.prompt, self.probe.ids))
        if not gap <= self.band:
            raise self._other_weights(trainer[0], name, gap, largest, None)

    def _other_weights(
        self, version: int, name: str, gap: float, largest: float, moved: tuple[float, float] | None
    ) -> WeightSyncError:
        since = ""
        if moved is not None:
            since = (
                f"; since the last sync it moved by {moved[0]:.3g} in the trainer and by {moved[1]:.3g} in the engine"
            )
        return WeightSyncError(
            "the engine samples from other weights than the trainer's",
            where=_where(version, name),
            found=f"a fixed sequence scores {gap:.3g} nats apart per token, at most {largest:.3g}{since}",
            expected=f"at most {self.band:.3g}: {self._widening:g} times the noise measured with equal weights",
            remedy="restart the engine and resume the run from its last checkpoint; completions sampled since the "
            "last good sync are of an older policy",
        )

    def _scores(self) -> _Scores:
        trainer = trainer_logprobs(self.policy, self.probe)
        # Before the engines are scored: a server that comes back from now on is held against these.
        self._trainer = self.engine.policy_version, trainer
        return _Scores(trainer, self._score_each(self.probe.prompt, self.probe.ids))


@dataclass(frozen=True, slots=True)
class _Scores:
    """Log-probs of the probe's ids: in the trainer, and in each engine."""

    trainer: list[float]
    engines: Mapping[str, list[float]]

    def farthest(self) -> tuple[str, float, float]:
        """The engine that is farthest from the trainer, with the mean and the largest difference."""
        gaps = {name: _gap(self.trainer, values) for name, values in self.engines.items()}
        name = max(gaps, key=lambda one: gaps[one][0])
        return name, *gaps[name]


def _where(version: int, name: str) -> str:
    return f"policy version {version}" + (f", {name}" if name else "")


def _gap(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """(mean, largest) absolute difference; infinite where a value is not a number."""
    gaps = [abs(a - b) for a, b in zip(first, second, strict=True)]
    # A mean with NaN compares false with every bound, and would pass.
    if any(math.isnan(gap) for gap in gaps):
        return math.inf, math.inf
    return sum(gaps) / len(gaps), max(gaps)
