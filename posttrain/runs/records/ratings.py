"""Who is better, by games.

evaluations/<suite>.games.jsonl   GameLine    what a judge or people said, as `posttrain rate` reads it
evaluations/<suite>.ballot.jsonl  BallotLine  pairs that nobody has voted on
ratings.json (of the run)         RunRatings  a `Ratings` for each suite of win rates; `posttrain rate --out` writes one
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

from posttrain.runs.records.base import Record, WholeFile
from posttrain.runs.records.evaluation import Figure


@dataclass(frozen=True, slots=True)
class RatedPolicy(Record):
    """RatedPolicy("dpo", Figure(1084.2, ...), Figure(1061.0, ...), Figure(0.62, ...), None, 412.0, 80, 40)"""

    policy: str
    rating: Figure | None
    """Bradley-Terry, on Elo's scale."""
    controlled: Figure | None
    """The same at equal style; null where the games have no responses, or nothing differs."""
    win_rate: Figure | None
    """Over the anchor, ties half; null for the anchor and where the two never met."""
    lc_win_rate: Figure | None
    """The same at equal length."""
    characters: float | None
    """Mean length of its answers."""
    games: int | None
    prompts: int | None


@dataclass(frozen=True, slots=True)
class Meeting(Record):
    """Two policies that met: Meeting("start", "dpo", win_rate=Figure(0.38, ...), games=1600)"""

    policy: str
    other: str
    win_rate: Figure | None
    """Of `policy`, with n prompts."""
    games: int | None


@dataclass(frozen=True, slots=True)
class StyleWeight(Record):
    """StyleWeight("length", Figure(0.31, 0.22, 0.40, 800))"""

    feature: str
    weight: Figure | None
    """Log-odds for one root mean square of its difference: above 0, more of it wins."""


@dataclass(frozen=True, slots=True)
class BothOrders(Record):
    """Comparisons that were judged in both orders: BothOrders(800, Figure(0.81, ...), Figure(0.06, ...))"""

    comparisons: int | None
    agreement: Figure | None
    """How often both orders have the same outcome."""
    lean: Figure | None
    """Mean points of the answer that was shown first, over half: above 0, the judge leans to the first."""


@dataclass(frozen=True, slots=True)
class Ratings(Record):
    """Ratings(1, "start", 1000.0, 800, 1600, policies=(RatedPolicy("dpo", ...), ...), meetings=(...), ...)"""

    schema: int | None
    anchor: str | None
    """The policy whose rating is fixed, and that the win rates are over."""
    anchor_rating: float | None
    prompts: int | None
    games: int | None
    policies: tuple[RatedPolicy, ...]
    """The best first."""
    meetings: tuple[Meeting, ...]
    style: tuple[StyleWeight, ...]
    orders: BothOrders | None
    """Null where nothing was judged in both orders."""
    notes: tuple[str, ...]
    """What a reader has to know: policies whose rating stands on the prior, rows that nobody judged, ..."""

    def __str__(self) -> str:
        """The tables for a terminal."""
        return "\n\n".join(part for part in (_table(self), _matrix(self), _remarks(self)) if part)

    def _repr_html_(self) -> str:
        """The same for a notebook's cell, where a record of so many figures would be unreadable."""
        return f"<pre style='font-family: monospace'>{escape(str(self))}</pre>"


@dataclass(frozen=True, slots=True)
class RunRatings(WholeFile):
    """ratings.json: RunRatings({"liked": Ratings(...)})"""

    FILE = "ratings.json"

    suites: Mapping[str, Ratings]


@dataclass(frozen=True, slots=True)
class GameLine(Record):
    """A line of evaluations/<suite>.games.jsonl: GameLine("2 + 2?", "dpo", "start", 1.0, "4", "5")"""

    prompt: str
    model_a: str
    """Whose answer was shown first."""
    model_b: str
    score: float | None
    """Points of `model_a`."""
    response_a: str
    response_b: str


@dataclass(frozen=True, slots=True)
class BallotLine(Record):
    """A line of evaluations/<suite>.ballot.jsonl: BallotLine("2 + 2?", "dpo", "start", None, "4", "5")"""

    prompt: str
    model_a: str
    model_b: str
    winner: str | None
    """For people to fill in: model_a, model_b or tie."""
    response_a: str
    response_b: str


# ---------------------------------------------------------------- for people


def percent(figure: Figure | None) -> str:
    """62 % [58, 66]; - where nothing was measured."""
    return "-" if figure is None else f"{figure.value:.0%} {_ends(figure, 100)}".replace("%", " %").rstrip()


def points(figure: Figure | None, anchored: bool) -> str:
    """1084 [1050, 1119]; the anchor's has no interval."""
    return "-" if figure is None else f"{figure.value:.0f}" + ("" if anchored else f" {_ends(figure, 1)}")


def _ends(figure: Figure, scale: float) -> str:
    low, high = figure.low, figure.high
    return "" if low is None or high is None else f"[{low * scale:.0f}, {high * scale:.0f}]"


def _table(record: Ratings) -> str:
    rows = [["", "rating", "at equal style", f"wins over {record.anchor}", "at equal length", "characters", "games"]]
    for policy in record.policies:
        anchored = policy.policy == record.anchor
        rows.append(
            [
                policy.policy,
                points(policy.rating, anchored),
                points(policy.controlled, anchored),
                percent(policy.win_rate),
                percent(policy.lc_win_rate),
                "-" if policy.characters is None else f"{policy.characters:,.0f}",
                f"{policy.games or 0:,}",
            ]
        )
    return f"{record.games or 0:,} games, {record.prompts or 0:,} prompts\n" + _aligned(_without_empty(rows))


def _matrix(record: Ratings) -> str:
    """Each policy over each other; with two policies the table has said it."""
    names = [policy.policy for policy in record.policies]
    if len(names) < 3:
        return ""
    won = {(met.policy, met.other): met.win_rate for met in record.meetings}
    rows = [["row over column", *names]]
    for own in names:
        cells = []
        for other in names:
            forth, back = won.get((own, other)), won.get((other, own))
            share = forth.value if forth else 1 - back.value if back else None
            cells.append("-" if share is None else f"{share:.0%}".replace("%", " %"))
        rows.append([own, *cells])
    return _aligned(rows)


def _remarks(record: Ratings) -> str:
    lines = []
    weights = [
        f"{one.feature} {one.weight.value:+.2f} [{one.weight.low or 0:+.2f}, {one.weight.high or 0:+.2f}]"
        for one in record.style
        if one.weight is not None
    ]
    if weights:
        lines.append(f"style, log-odds for one typical difference: {', '.join(weights)}")
    orders = record.orders
    if orders is not None and orders.agreement is not None and orders.lean is not None:
        lines.append(
            f"both orders of {orders.comparisons or 0:,} comparisons: the same outcome in {percent(orders.agreement)}; "
            f"the first shown has {orders.lean.value:+.1%} of a point".replace("%", " %").replace("  %", " %")
        )
    return "\n".join([*lines, *(f"note: {note}" for note in record.notes)])


def _without_empty(rows: list[list[str]]) -> list[list[str]]:
    """Without columns in which nothing was measured."""
    kept = [index for index in range(len(rows[0])) if any(row[index] not in ("-", "") for row in rows[1:])]
    return [[row[index] for index in kept] for row in rows]


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
