"""Alarms: small pure checks over the recent metrics, run after every step.

    alarms = Alarms()
    for alarm in alarms.check(step, values, last_good_checkpoint="checkpoints/step-00000050"):
        print(alarm.message, alarm.remedy)

Each check of `posttrain.diagnostics.checks` is a frozen record of named thresholds with one method,
`look(history) -> Detection | None`; it keeps no state. `Alarms` keeps the state: a bounded history, and which alarms
are under way. An alarm is raised once per episode: again only when it becomes more severe, or when its condition has
been absent for `rearm_after` steps and comes back. `state_dict()` is plain JSON; a resumed run raises exactly what
the uninterrupted one would have raised.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from typing import Any, Literal

from posttrain.diagnostics.checks import CHECKS, ONLINE_CHECKS
from posttrain.diagnostics.detection import AlarmCheck, Detection
from posttrain.diagnostics.history import RECENT, History
from posttrain.errors import CheckpointError, ConfigError, unknown
from posttrain.runs.records.logs import Alarm, AlarmSeverity


def non_finite(
    step: int,
    tensors: Sequence[str],
    rows: Sequence[str] = (),
    *,
    last_good_checkpoint: str | None = None,
) -> Alarm:
    """The alarm of a step whose loss or gradient was NaN or infinite; the loop raises it instead of updating.

    Args:
        tensors: names of the non-finite tensors: "loss", or parameters whose gradient is.
        rows: the rows of the step, as far as they can be named.
    """
    shown = ", ".join(tensors[:3]) + (f" and {len(tensors) - 3} more" if len(tensors) > 3 else "")
    return Alarm(
        name="non_finite",
        severity="critical",
        step=step,
        message=f"not finite: {shown}; nothing was updated",
        evidence={"tensors": list(tensors), "rows": list(rows)},
        remedy="look at the rows named in the evidence, lower the learning rate, lengthen the warm-up, "
        "or train in fp32 (compute.precision)",
        last_good_checkpoint=last_good_checkpoint,
    )


# ---------------------------------------------------------------- thresholds from a recipe


def make_checks(changes: Mapping[str, Mapping[str, float] | Literal["off"]] | None = None) -> tuple[AlarmCheck, ...]:
    """All checks, with thresholds changed or checks switched off by name.

    make_checks({"gradient_spike": "off", "likelihood_displacement": {"fall_per_token": 0.05}})

    Raises:
        UnknownKeyError: no such check, or no such threshold.
        ConfigError: a threshold that is not a positive number, or a window longer than the history kept.
    """
    changes = changes or {}
    for name in changes:
        _known(name, CHECKS, "alarm", "alarms")
    checks: list[AlarmCheck] = []
    for name, check in CHECKS.items():
        change = changes.get(name, {})
        if change == "off":
            continue
        checks.append(_with_thresholds(check, change))
    return tuple(checks)


def _with_thresholds(check: AlarmCheck, change: Mapping[str, float]) -> AlarmCheck:
    assert is_dataclass(check) and not isinstance(check, type)
    where = f"alarms.{check.name}"
    defaults = {field.name: field.default for field in fields(check)}
    settled: dict[str, float] = {}
    for key, value in change.items():
        _known(key, defaults, "threshold", where)
        # The default's type says what a threshold counts: 20 steps and not 20.5, while 1.0 nats may become 0.5.
        whole = isinstance(defaults[key], int)
        # True is an int to Python; `window: true` would be a window of one step.
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0
        # A window longer than the history never fills: the alarm would be silent for good, and nobody would see why.
        if not number or (whole and (value != int(value) or value > RECENT)):
            raise ConfigError(
                f"{key} is out of range",
                where=where,
                found=f"{key}: {value!r}",
                expected=f"a whole number from 1 to {RECENT}" if whole else "a number above 0",
                remedy=f"leave it out to take {defaults[key]}, or switch the alarm off (`alarms.off: [{check.name}]`)",
            )
        settled[key] = int(value) if whole else float(value)
    changed: AlarmCheck = replace(check, **settled)
    return changed


def _known(key: str, candidates: Mapping[str, Any], what: str, where: str) -> None:
    if key in candidates:
        return
    details = {} if candidates else {"expected": "no thresholds"}
    raise unknown(what, key, candidates, where=where, found=key, otherwise=f"remove `{key}`", **details)


# ---------------------------------------------------------------- state


@dataclass(slots=True)
class _Episode:
    """An alarm under way: how grave it has been, and for how many steps its condition has been absent."""

    severity: AlarmSeverity
    quiet_steps: int = 0
    stops: bool = False


class Alarms:
    """The checks with their state over a run.

    Args:
        checks: from `make_checks`; all with default thresholds if not given.
        rearm_after: steps without the condition after which an alarm may be raised anew.
    """

    SCHEMA = 1
    CHECKPOINTS_KEPT = 32

    def __init__(self, checks: Sequence[AlarmCheck] | None = None, *, rearm_after: int = 10):
        self.checks = tuple(CHECKS.values()) if checks is None else tuple(checks)
        self.rearm_after = rearm_after
        # `entropy_sampled` beside what the checks watch: its presence is how `not_watched` knows a stage that samples.
        self.history = History(["entropy_sampled", *(metric for check in self.checks for metric in check.metrics)])
        self._episodes: dict[str, _Episode] = {}
        self._checkpoints: list[tuple[int, str]] = []

    def check(
        self,
        step: int,
        values: Mapping[str, float],
        *,
        last_good_checkpoint: str | None = None,
        split: str = "train",
    ) -> list[Alarm]:
        """Take in one step's metrics and return the alarms that it raises, in the order of the checks.

        Args:
            step: counts up; held-out metrics come with the step after which they were measured.
            values: names as in `posttrain.diagnostics.metrics.METRICS`; those that are missing or NaN are skipped.
            last_good_checkpoint: the newest complete checkpoint at this step. An alarm names the newest one from before
                its trouble began, which may be an older one.
            split: "train" or "held_out".
        """
        if last_good_checkpoint is not None and (
            not self._checkpoints or self._checkpoints[-1][1] != last_good_checkpoint
        ):
            # With the step at which it was first seen, since an alarm needs one from before its trouble, not the
            # newest.
            self._checkpoints.append((step, last_good_checkpoint))
            del self._checkpoints[: -self.CHECKPOINTS_KEPT]
        self.history.add(step, values, split)
        if split == "train":
            # Before the checks, which set it back where the condition is there. Only training steps count: the held-out
            # measurements between two of them would else end an episode that goes on.
            self._count_quiet_step()
        raised = [self._episode(check, self._detected(check, step, split), step) for check in self.checks]
        return [alarm for alarm in raised if alarm is not None]

    def not_watched(self) -> dict[str, str]:
        """Alarms that cannot ring in this run, and why: {"negative_kl": "needs kl_k1_reference, ..."}.

        Ask after the first step that trained. Only a stage that samples is answered: what an alarm of the others needs
        is there by the stage's method.
        """
        if not self.history.seen("entropy_sampled"):
            return {}
        watching = {check.name for check in self.checks}
        found = {}
        for name, check in ONLINE_CHECKS.items():
            # `needs`, not `metrics`: a check may watch more than it must have.
            missing = [metric for metric in check.needs if not self.history.seen(metric)]
            if name not in watching:
                found[name] = "switched off in the recipe"
            elif missing:
                found[name] = f"no {' and no '.join(missing)}; it needs {check.absent}"
        return found

    def _detected(self, check: AlarmCheck, step: int, split: str) -> Detection | None:
        """What a check detects. What ends a run is judged of a step that was just taken: a resumed run may measure
        first, or have a step without an update, and the last gradient is then from before whatever was mended."""
        detection = check.look(self.history)
        stale = split != "train" or (detection is not None and detection.since != step - 1)
        return None if detection is not None and detection.stops and stale else detection

    def _episode(self, check: AlarmCheck, detection: Detection | None, step: int) -> Alarm | None:
        if detection is None:
            return None
        episode = self._episodes.get(check.name)
        if episode is not None:
            episode.quiet_steps = 0
            # From critical back to warning is no news: the reader has been told the worse of it.
            if episode.severity == detection.severity or episode.severity == "critical":
                return None
        self._episodes[check.name] = _Episode(detection.severity, stops=detection.stops)
        return Alarm(
            name=check.name,
            severity=detection.severity,
            step=step,
            message=detection.message,
            evidence=detection.evidence,
            remedy=detection.remedy,
            last_good_checkpoint=self._checkpoint_at(detection.since),
            stops=detection.stops,
        )

    def _count_quiet_step(self) -> None:
        """One step more without their condition for all alarms under way; those that have it are reset right after."""
        for episode in self._episodes.values():
            episode.quiet_steps += 1
        self._episodes = {
            name: episode for name, episode in self._episodes.items() if episode.quiet_steps <= self.rearm_after
        }

    def _checkpoint_at(self, step: int) -> str | None:
        """The newest checkpoint that was there at `step`, when all was well; else the oldest."""
        if not self._checkpoints:
            return None
        # A checkpoint from within the bad window has the trouble in its weights: to go back to it would be in vain.
        before = [name for at, name in self._checkpoints if at <= step]
        return before[-1] if before else self._checkpoints[0][1]

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON; loading it and going on raises what the uninterrupted run would have raised."""
        return {
            "schema": self.SCHEMA,
            "history": self.history.state_dict(),
            "episodes": {name: asdict(episode) for name, episode in sorted(self._episodes.items())},
            "checkpoints": [list(item) for item in self._checkpoints],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """
        Raises:
            CheckpointError: the state was written by another version.
        """
        if state.get("schema") != self.SCHEMA:
            raise CheckpointError(
                "the alarms' state has another layout",
                found=f"schema {state.get('schema')!r}",
                expected=f"schema {self.SCHEMA}",
                remedy="resume with the version of posttrain that began the run",
            )
        self.history.load_state_dict(state["history"])
        # What ended the run ends it again: whoever resumes without having changed anything is told anew.
        episodes = {name: _Episode(**episode) for name, episode in state["episodes"].items()}
        self._episodes = {name: episode for name, episode in episodes.items() if not episode.stops}
        self._checkpoints = [(step, name) for step, name in state["checkpoints"]]
