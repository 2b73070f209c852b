"""Who compares a model's answers with the start's, pair by pair: a judge behind an URL, or people by a file of votes.

A reward model gives each answer a number by itself, see `win_rate`. These see both answers:

    judge.outcomes([Pair("2 + 2?", "4", "5")])      # [Outcome(points=1.0, orders=(1.0, 1.0))]
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from posttrain.config.suites import ComparingJudge
from posttrain.errors import RewardError, RowError
from posttrain.evaluate.ratings.layouts import read_games
from posttrain.rewards.endpoint import Endpoint
from posttrain.rewards.judge import Judge, Match
from posttrain.runs.progress import Progress

VERDICTS = "verdicts"
"""Folder of a judge's replies beside the start's answers, where a recipe names none."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Pair("2 + 2?", answer="4", other="5", reference="4")"""

    prompt: str
    answer: str
    other: str
    reference: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Outcome(points=0.5, orders=(1.0, 0.0)): the answer wins where it is shown first, and loses where second."""

    points: float | None
    """Of the answer; None where nobody said."""
    orders: tuple[float, float] | None = None
    """Its points where it is shown first and where second; None where it was not judged so."""


TIE = Outcome(0.5)
TIE_IN_BOTH = Outcome(0.5, (0.5, 0.5))
"""Of equal texts, beside pairs that are asked in both orders: two games as they are, so that it weighs as much."""
NOBODY = Outcome(None)


class EndpointJudge:
    """Each pair in both orders; equal texts tie unasked.

    Raises (from `outcomes`):
        RewardError: the endpoint does not answer, or gives no verdict at all.
        ConfigError: it refuses the key or the model.
    """

    def __init__(self, name: str, settings: ComparingJudge, baseline: Path, progress: Progress):
        cache = baseline / VERDICTS if settings.cache is None else Path(settings.cache)
        self.name, self.settings, self.progress = name, settings, progress
        self.judge = Judge(
            Endpoint.of(settings, cache),
            standard=settings.standard,
            temperature=settings.temperature,
            max_tokens=settings.max_tokens,
            concurrency=settings.concurrency,
        )

    def outcomes(self, pairs: Sequence[Pair]) -> list[Outcome]:
        asked = [pair for pair in pairs if pair.answer != pair.other]
        with (
            self.progress.phase(f"{self.name}: verdicts", total=len(asked), unit="pairs") as phase,
            ThreadPoolExecutor(self.settings.concurrency) as pool,
        ):
            judged = iter(list(phase.track(pool.map(self._outcome, asked))))
        found = [TIE_IN_BOTH if pair.answer == pair.other else next(judged) for pair in pairs]
        if asked and all(outcome.points is None for outcome in found if outcome is not TIE_IN_BOTH):
            raise RewardError(
                f"the judge `{self.settings.model}` gives no verdict on any pair",
                where=f"evaluate.suites.{self.name}.judge",
                found=f"{len(asked):,} pairs, each asked in both orders",
                expected="a last line of [[A]], [[B]] or [[C]]",
                remedy="take a stronger judge, or raise `max_tokens`: a reply that is cut has no verdict",
            )
        return found

    def try_once(self, prompt: str, answer: str) -> None:
        """One question now: a wrong address, key or model must not wait until the first stage is trained."""
        self.judge.both_orders(Match(prompt, answer, f"{answer} "))

    def _outcome(self, pair: Pair) -> Outcome:
        reference = pair.reference if self.settings.show_reference else ""
        forth, back = self.judge.both_orders(Match(pair.prompt, pair.answer, pair.other, reference))
        if forth is None or back is None:
            return NOBODY
        return Outcome((forth + back) / 2, (forth, back))


class Votes:
    """People's votes on these very texts: what they said of other answers to a prompt says nothing of these.

    Raises:
        RowError: a vote without its two responses.
    """

    def __init__(self, file: str):
        self.file = file
        self.points: dict[tuple[str, str, str], list[float]] = defaultdict(list)
        for game in read_games(file).games:
            if game.response_a is None or game.response_b is None:
                raise RowError(
                    "the vote does not say on which answers",
                    reason="missing_key",
                    where=game.row,
                    found="no `response_a`, or no `response_b`",
                    expected="both texts: a model that is trained anew answers otherwise",
                    remedy="fill in `winner` in the rows that the suite writes to vote on (`*.ballot.jsonl`)",
                )
            self.points[game.prompt, game.response_a, game.response_b].append(game.points)

    def outcomes(self, pairs: Sequence[Pair]) -> list[Outcome]:
        return [self._outcome(pair) for pair in pairs]

    def _outcome(self, pair: Pair) -> Outcome:
        if pair.answer == pair.other:
            return TIE
        forth = self.points.get((pair.prompt, pair.answer, pair.other), [])
        back = [1 - points for points in self.points.get((pair.prompt, pair.other, pair.answer), [])]
        return Outcome(fmean([*forth, *back])) if forth or back else NOBODY
