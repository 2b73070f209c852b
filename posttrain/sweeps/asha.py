"""Which settings go on: asynchronous successive halving (Li et al. 2020, "A System for Massively Parallel
Hyperparameter Tuning", MLSys, algorithm 2), on what a suite says of the models at rungs.

    halving = Halving(rungs=3, keep=3, settings=9)
    halving.next()                    # Step(setting=0, rung=0)
    halving.reached(0, 0, 0.41)       # setting 0 scored 0.41 at rung 0; None: it failed
    halving.next()                    # goes on with the best third of rung 0, or begins another setting

Rung k is at the share `keep ** (k - rungs + 1)` of a stage's steps, the last rung at its end. Deviations:

1. A setting's score at a rung is the mean over its seeds, which move together: halving single runs would compare one
   setting's lucky seed with another's unlucky one.
2. With fewer than `keep` settings at a rung, and no more to come, nobody is in the best `1/keep`; then the best goes
   on, so that a sweep ends with at least one finished setting.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Step:
    """What is to be done next: Step(setting=4, rung=0) trains setting 4 until rung 0."""

    setting: int
    rung: int


@dataclass(slots=True)
class Halving:
    """The state, filled again from what is on the disk when a sweep is resumed."""

    rungs: int
    """Places at which runs are compared, the end of the stage included: at least 2."""
    keep: int
    """One in so many goes on (the paper's reduction factor eta): at least 2."""
    settings: int
    """How many there are to begin."""
    lower: bool = False
    """Whether less is better."""
    begun: set[tuple[int, int]] = field(default_factory=set)
    """(setting, rung) that were handed out or have been reached."""
    scores: dict[tuple[int, int], float | None] = field(default_factory=dict)
    """By (setting, rung); None of what failed."""

    def share(self, rung: int) -> float:
        """Of the stage's steps, at which the rung is: with 3 rungs and keep=3 a ninth, a third, 1."""
        return float(self.keep) ** (rung - self.rungs + 1)

    def reached(self, setting: int, rung: int, score: float | None) -> None:
        self.begun.add((setting, rung))
        self.scores[setting, rung] = score

    def next(self) -> Step | None:
        """The next step; None where everything waits for a result, or is over (`is_over`)."""
        step = self._promotion() or self._beginning() or self._last_resort()
        if step is not None:
            self.begun.add((step.setting, step.rung))
        return step

    def _promotion(self) -> Step | None:
        # From the top, as in the paper: what is nearly finished is finished first.
        for rung in range(self.rungs - 2, -1, -1):
            ranked = self._ranked(rung)
            for setting in ranked[: len(self._at(rung)) // self.keep]:
                if (setting, rung + 1) not in self.begun:
                    return Step(setting, rung + 1)
        return None

    def _beginning(self) -> Step | None:
        fresh = next((setting for setting in range(self.settings) if (setting, 0) not in self.begun), None)
        return None if fresh is None else Step(fresh, 0)

    def _last_resort(self) -> Step | None:
        if self._is_waiting():
            return None
        for rung in range(self.rungs - 2, -1, -1):
            # One that fails at the rung above is an answer too: else all would follow it, one after the other.
            if self._ranked(rung) and not any(above == rung + 1 for _, above in self.begun):
                return Step(self._ranked(rung)[0], rung + 1)
        return None

    def _at(self, rung: int) -> list[int]:
        """Settings that have been there, failed ones too."""
        return [setting for (setting, at) in self.scores if at == rung]

    def _ranked(self, rung: int) -> list[int]:
        """Those that have a score, the best first; of equals the one that began first."""
        scored = [(score, setting) for (setting, at), score in self.scores.items() if at == rung and score is not None]
        return [
            setting for _, setting in sorted(scored, key=lambda pair: (pair[0] if self.lower else -pair[0], pair[1]))
        ]

    def _is_waiting(self) -> bool:
        return len(self.begun) > len(self.scores)

    @property
    def is_over(self) -> bool:
        """Nothing is under way, and nothing would be handed out."""
        if self._is_waiting():
            return False
        return self._promotion() is None and self._beginning() is None and self._last_resort() is None
