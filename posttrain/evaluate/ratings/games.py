"""The nouns of ratings: a game, and many of them as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from posttrain.errors import DataError, EmptyDatasetError
from posttrain.types import RowRef


@dataclass(frozen=True, slots=True)
class Game:
    """Two policies' answers to one prompt, judged.

    Game("2 + 2?", "start", "dpo", points=0.0, row=RowRef("votes.jsonl", 1), response_a="5", response_b="4")
    """

    prompt: str
    """What games are drawn by: all games of one prompt stand or fall together."""
    model_a: str
    """Whose answer was shown first."""
    model_b: str
    points: float
    """Of `model_a`: 1 for a win, 1/2 for a tie, 0; or between them, where a judge gives a probability."""
    row: RowRef
    response_a: str | None = None
    response_b: str | None = None
    weight: float = 1.0
    """How many games it counts as."""


@dataclass(frozen=True, slots=True)
class GameTable:
    """G games of P policies over C prompts.

    GameTable(("start", "dpo"), ("2 + 2?",), prompt_G=[0], a_G=[0], b_G=[1], points_G=[0.0], weight_G=[1.0], games=...)
    """

    policies: tuple[str, ...]
    """In the order in which the games first name them."""
    prompts: tuple[str, ...]
    prompt_G: np.ndarray
    a_G: np.ndarray
    b_G: np.ndarray
    points_G: np.ndarray
    weight_G: np.ndarray
    games: tuple[Game, ...]

    @classmethod
    def of(cls, games: Sequence[Game]) -> GameTable:
        """The games as arrays.

        Raises:
            EmptyDatasetError: there is no game.
            DataError: a game of a policy against itself, points outside [0, 1], a weight that is not above 0.
        """
        if not games:
            raise EmptyDatasetError("there is no game to rate by", remedy="give rows in which somebody was preferred")
        for game in games:
            _require_sound(game)
        policies = dict.fromkeys(name for game in games for name in (game.model_a, game.model_b))
        prompts = dict.fromkeys(game.prompt for game in games)
        number = {name: index for index, name in enumerate(policies)}
        place = {prompt: index for index, prompt in enumerate(prompts)}
        return cls(
            policies=tuple(policies),
            prompts=tuple(prompts),
            prompt_G=np.array([place[game.prompt] for game in games]),
            a_G=np.array([number[game.model_a] for game in games]),
            b_G=np.array([number[game.model_b] for game in games]),
            points_G=np.array([game.points for game in games], dtype=float),
            weight_G=np.array([game.weight for game in games], dtype=float),
            games=tuple(games),
        )

    @property
    def has_responses(self) -> bool:
        return all(game.response_a is not None and game.response_b is not None for game in self.games)

    def between(self, policy: int, other: int) -> tuple[np.ndarray, np.ndarray]:
        """The games in which the two met, and the points of `policy` in them."""
        as_a, as_b = (self.a_G == policy) & (self.b_G == other), (self.b_G == policy) & (self.a_G == other)
        met = np.flatnonzero(as_a | as_b)
        return met, np.where(as_a[met], self.points_G[met], 1 - self.points_G[met])


def _require_sound(game: Game) -> None:
    if game.model_a == game.model_b:
        raise DataError(
            "a policy plays against itself",
            where=game.row,
            found=f"`model_a` and `model_b` are both {game.model_a!r}",
            expected="two policies",
            remedy="remove the row, or name the two policies apart",
        )
    if not 0 <= game.points <= 1:  # NaN is refused too
        raise DataError(
            "the points of a game are no share",
            where=game.row,
            found=f"{game.points!r}",
            expected="0 to 1: 1 where `model_a` wins, 0.5 for a tie",
            remedy="correct the row",
        )
    if not 0 < game.weight < float("inf"):
        raise DataError(
            "the weight of a game is not above 0",
            where=game.row,
            found=f"{game.weight!r}",
            expected="a finite number above 0",
            remedy="correct `weight`, or leave it out",
        )
