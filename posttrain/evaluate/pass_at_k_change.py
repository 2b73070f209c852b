"""Did training widen what a policy can do, or only sharpen what it could do already?

Both policies answer the same prompts n times. pass@1 is how often an answer is right; pass@K, K the largest k, is how
many prompts are within reach of K attempts. Training that lifts pass@1 and leaves pass@K where it was has made likely
what the start found now and then (Yue et al. 2025, arXiv:2504.13837).

    change(before, after).verdict     # ReachVerdict.SHARPENED

A difference counts where chance does not explain it: the paired bootstrap's interval over prompts leaves out 0, and so
does an exact test by signs. The second is there because the bootstrap takes four prompts of forty that all rose for
proof, which happens by chance one time in eight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from pathlib import Path

from posttrain.errors import DataError
from posttrain.evaluate.pass_at_k import PassCounts, estimates, powers_to, read_counts
from posttrain.evaluate.words import in_points, percent
from posttrain.intervals import CONFIDENCE, Difference, Score, average, paired_difference, sign_flip
from posttrain.runs.folder import RunFolder
from posttrain.runs.records.evaluation import Figure, PassAtKChange, PassAtKChanges, PassAtKPoint

LEAST_UNSOLVED = 6
"""Prompts that the base does not solve in K attempts. With fewer, solving all of them would not be told from chance:
five of five have the same sign one time in sixteen."""


class ReachVerdict(StrEnum):
    """What became of the policy's reach."""

    WIDENED = "widened"
    """pass@K rose: prompts are solved that were out of reach."""
    SHARPENED = "sharpened"
    """pass@1 rose, pass@K did not."""
    NEITHER = "neither"
    """Neither rose."""
    CANNOT_TELL = "cannot tell"
    """The base solves so many prompts in K attempts that there is no room to widen, or too few changed to be sure."""


@dataclass(frozen=True, slots=True)
class ReachPoint:
    """One k: ReachPoint(8, Score(0.31, ...), Score(0.35, ...), Difference(0.04, -0.02, 0.10, 40), p=0.21)."""

    k: int
    base: Score
    trained: Score
    difference: Difference
    """Trained minus base over the same prompts, with the paired bootstrap's 95 % interval."""
    p: float
    """How often chance alone makes as large a difference, by signs."""

    @property
    def clear(self) -> bool:
        """Whether chance does not explain the difference: neither test lets it."""
        return (self.difference.low > 0 or self.difference.high < 0) and self.p <= 1 - CONFIDENCE

    @property
    def may_have_risen(self) -> bool:
        """The two tests disagree: the interval lies above 0, and so few prompts changed that it may be chance."""
        return self.difference.low > 0 and not self.clear

    @property
    def rose(self) -> bool:
        return self.clear and self.difference.value > 0

    @property
    def fell(self) -> bool:
        return self.clear and self.difference.value < 0


@dataclass(frozen=True, slots=True)
class ReachChange:
    """Two policies on one suite."""

    suite: str
    samples: int
    points: tuple[ReachPoint, ...]
    unsolved: float
    """Prompts that the base does not solve in K attempts."""
    verdict: ReachVerdict

    @property
    def prompts(self) -> int:
        return self.points[0].base.n

    def sentence(self, base: str, trained: str) -> str:
        """The verdict in words: sentence("sft", "grpo")."""
        first, last = self.points[0], self.points[-1]
        verdict = {
            ReachVerdict.WIDENED: f"{trained} widened what {base} can do",
            ReachVerdict.SHARPENED: f"{trained} only sharpened what {base} could do already",
            ReachVerdict.NEITHER: f"{trained} neither widened nor sharpened what {base} can do",
            ReachVerdict.CANNOT_TELL: f"whether {trained} widened what {base} can do cannot be told from these prompts",
        }[self.verdict]
        parts = [f"pass@1 {_moved(first)}"] + ([f"pass@{last.k} {_moved(last)}"] if last.k > 1 else [])
        return f"{verdict}: {', '.join(parts)}; {self.prompts} prompts.{self._remark(base, last)}"

    def _remark(self, base: str, last: ReachPoint) -> str:
        if self.verdict is ReachVerdict.CANNOT_TELL and last.may_have_risen and self.unsolved >= LEAST_UNSOLVED:
            return (
                f" The gain at {last.k} attempts leaves out 0, but so few prompts changed that chance makes as large a "
                f"difference {percent(last.p)} times in 100; ask more prompts."
            )
        if self.verdict is ReachVerdict.CANNOT_TELL:
            return (
                f" In {last.k} attempts {base} solves {percent(last.base.value)} % of them, so there is no room "
                "above it; ask harder prompts."
            )
        if self.verdict is ReachVerdict.SHARPENED and last.fell:
            return " It narrowed: prompts that were within reach no longer are."
        if self.verdict is ReachVerdict.SHARPENED and last.difference.high > 0:
            return f" A gain of up to {percent(last.difference.high)} points would not show on so few prompts."
        return ""

    def record(self, base: str, trained: str) -> PassAtKChange:
        """As pass_at_k.json has it, with the names of the two policies."""
        points = tuple(
            PassAtKPoint(
                point.k,
                base=Figure.of(point.base),
                trained=Figure.of(point.trained),
                difference=Figure.of(point.difference),
                p=point.p,
                clear=point.clear,
            )
            for point in self.points
        )
        return PassAtKChange(
            base,
            trained,
            self.suite,
            self.samples,
            self.prompts,
            verdict=str(self.verdict),
            unsolved=self.unsolved,
            points=points,
            said=self.sentence(base, trained),
        )


def change(base: PassCounts, trained: PassCounts) -> ReachChange:
    """What became of the base's reach.

    Raises:
        DataError: other prompts, or another number of answers, than the base's.
    """
    _refuse_unpaired(base, trained)
    ks = powers_to(base.samples)
    before_PK, after_PK = (estimates(counts.samples, counts.correct, ks) for counts in (base, trained))
    points = []
    for place, k in enumerate(ks):
        before_P, after_P = before_PK[:, place], after_PK[:, place]
        moved = paired_difference(before_P, after_P)
        points.append(ReachPoint(k, average(before_P), average(after_P), moved, sign_flip(after_P - before_P)))
    unsolved = float((1 - before_PK[:, -1]).sum())
    return ReachChange(base.suite, base.samples, tuple(points), unsolved, _verdict(points[0], points[-1], unsolved))


def _verdict(first: ReachPoint, last: ReachPoint, unsolved: float) -> ReachVerdict:
    if last.k == 1:  # one answer to each prompt says nothing of what further ones could reach
        return ReachVerdict.CANNOT_TELL if first.rose else ReachVerdict.NEITHER
    if last.rose:
        return ReachVerdict.WIDENED
    if last.may_have_risen or (unsolved < LEAST_UNSOLVED and not last.fell):
        return ReachVerdict.CANNOT_TELL
    return ReachVerdict.SHARPENED if first.rose else ReachVerdict.NEITHER


def _refuse_unpaired(base: PassCounts, trained: PassCounts) -> None:
    if base.prompts == trained.prompts and base.samples == trained.samples:
        return
    raise DataError(
        "the two policies did not answer the same prompts equally often, so their pass@k cannot be compared",
        where=trained.suite,
        found=f"{len(trained.prompts)} prompts, {trained.samples} answers each",
        expected=f"the base's {len(base.prompts)} prompts in their order, {base.samples} answers each",
        remedy="ask both policies the same suite",
    )


def _moved(point: ReachPoint) -> str:
    """rose from 30 to 61 % (+31 points [+25, +37])"""
    still = "may have risen" if point.may_have_risen else "stayed within noise"
    word = "rose" if point.rose else "fell" if point.fell else still
    sign = point.difference
    return (
        f"{word}, {percent(point.base.value)} to {percent(point.trained.value)} % "
        f"({in_points(sign.value)} points [{in_points(sign.low)}, {in_points(sign.high)}])"
    )


# ---------------------------------------------------------------- of a run


def changes_of_run(folders: Mapping[str, Path], suites: Sequence[str]) -> list[PassAtKChange]:
    """Each policy against the one before it, and the last against the first: records for pass_at_k.json.

    A policy whose counts are missing, or still of other prompts, is passed over.

    Args:
        folders: {policy: its stage folder} in the order of training, the start first.
    """
    records = []
    for suite in suites:
        asked = {name: counts for name, folder in folders.items() if (counts := read_counts(folder, suite))}
        names = list(asked)
        pairs = list(pairwise(names))
        if len(names) > 2:
            pairs.append((names[0], names[-1]))
        for base, trained in pairs:
            try:
                moved = change(asked[base], asked[trained])
            except DataError:
                continue  # asked before the suite was changed; the run asks it again when it comes to that stage
            records.append(moved.record(base, trained))
    return records


def write_changes(run: Path, records: Sequence[PassAtKChange]) -> None:
    RunFolder(run).write(PassAtKChanges(tuple(records)))
