"""Ratings of all policies of a run, for each of its suites of win rates, when the run ends.

    write_ratings(run.path, ratings_of_run(folders, suites))     # ratings.json

By a reward model every policy meets every other, for each answer has its reward. A judge has compared each with the
start, and ratings join them through it. People's votes count between whichever policies' texts they were cast on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path

from posttrain.config.suites import WinRateSuite
from posttrain.evaluate.ratings.bradley_terry import parts_of
from posttrain.evaluate.ratings.games import Game, GameTable
from posttrain.evaluate.ratings.layouts import read_games
from posttrain.evaluate.ratings.rate import rate_games
from posttrain.evaluate.suites.win_rate import outcome
from posttrain.evaluate.suites.win_rate_files import games_path
from posttrain.evaluate.suites.win_rate_judges import TIE, Pair, Votes
from posttrain.runs.folder import RunFolder, read_answers
from posttrain.runs.records.evaluation import AnswerLine
from posttrain.runs.records.ratings import Ratings, RunRatings
from posttrain.types import RowRef


def ratings_of_run(folders: Mapping[str, Path], suites: Sequence[WinRateSuite]) -> RunRatings | None:
    """Ratings by suite; None where no two policies were compared in any.

    Args:
        folders: {policy: its stage folder}, the start first, which the others are rated against.
    """
    found: dict[str, Ratings] = {}
    start = next(iter(folders))
    for suite in suites:
        if suite.judge is not None:
            games = _of_judge(folders, suite.name)
        elif suite.votes is not None:
            games = list(_by_votes(folders, suite.name, Votes(suite.votes)))
        else:
            games = list(_by_rewards(folders, suite.name))
        asked = [name for name, folder in folders.items() if read_answers(folder, suite.name)]
        rated = _rated(games, start, asked)
        if rated is not None:
            found[suite.name] = rated
    return RunRatings(found) if found else None


def write_ratings(run: Path, record: RunRatings) -> None:
    RunFolder(run).write(record)


def _rated(games: Sequence[Game], start: str, asked: Sequence[str]) -> Ratings | None:
    """Ratings of the policies that games join with the start; the others that were asked are named."""
    if not any(start in (game.model_a, game.model_b) for game in games):
        return None
    table = GameTable.of(games)
    parts = [[table.policies[index] for index in part] for part in parts_of(table)]
    joined = next(part for part in parts if start in part)
    apart = [f"`{name}`" for name in asked if name not in joined]
    notes = [f"no comparison joins {', '.join(apart)} with `{start}`: not rated"] if apart else []
    return rate_games([game for game in games if game.model_a in joined], anchor=start, notes=notes)


def _of_judge(folders: Mapping[str, Path], suite: str) -> list[Game]:
    """What the judge said of each policy and the start, in both orders."""
    paths = [path for folder in folders.values() if (path := games_path(folder, suite)).exists()]
    # A policy whose answers all were the start's own, or had no verdict, left an empty file.
    return [game for path in paths if path.stat().st_size for game in read_games(str(path)).games]


def _met(folders: Mapping[str, Path], suite: str) -> Iterator[tuple[str, str, list[tuple[AnswerLine, AnswerLine]]]]:
    """Every two policies with their answers to the same prompts, each answer of one with each of the other."""
    kept = {name: answers for name, folder in folders.items() if (answers := read_answers(folder, suite))}
    for one, other in combinations(kept, 2):
        by_prompt: dict[str, list[AnswerLine]] = {}
        for answer in kept[other]:
            by_prompt.setdefault(answer.prompt, []).append(answer)
        yield one, other, [(own, its) for own in kept[one] for its in by_prompt.get(own.prompt, ())]


def _by_rewards(folders: Mapping[str, Path], suite: str) -> Iterator[Game]:
    for one, other, pairs in _met(folders, suite):
        for own, its in pairs:
            # Rewards of two reward models have no common scale.
            if own.reward is not None and its.reward is not None and own.judge == its.judge:
                points = outcome(own.completion, own.reward, its.completion, its.reward)
                yield _game(one, other, own, its, points, suite)


def _by_votes(folders: Mapping[str, Path], suite: str, votes: Votes) -> Iterator[Game]:
    for one, other, pairs in _met(folders, suite):
        judged = votes.outcomes([Pair(own.prompt, own.completion, its.completion) for own, its in pairs])
        # Equal texts tie unasked, but policies on which nobody voted are not compared by these alone.
        if any(found.points is not None and found is not TIE for found in judged):
            for (own, its), found in zip(pairs, judged, strict=True):
                if found.points is not None:
                    yield _game(one, other, own, its, found.points, suite)


def _game(one: str, other: str, own: AnswerLine, its: AnswerLine, points: float, suite: str) -> Game:
    return Game(own.prompt, one, other, points, RowRef(f"suite {suite}", 0), own.completion, its.completion)
