"""Games to one record: ratings, win rates, who beats whom, style, and how far both orders agree.

record = rate("votes.jsonl", anchor="start")
record.policies[0]        # RatedPolicy("dpo", rating=Figure(1084.2, ...), lc_win_rate=Figure(0.58, ...), ...)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from posttrain.arguments import checked_list, wrong_argument
from posttrain.errors import ConfigError, EmptyDatasetError, unknown
from posttrain.evaluate.ratings.bradley_terry import Fitted, one_sided, ratings, require_connected
from posttrain.evaluate.ratings.games import Game, GameTable
from posttrain.evaluate.ratings.layouts import read_games
from posttrain.evaluate.ratings.length import length_controlled_win_rate, longer_by, one_sided_length, win_rate
from posttrain.evaluate.ratings.style import FEATURES, lengths_of, style_differences
from posttrain.intervals import average, unbounded
from posttrain.runs.records.evaluation import Figure
from posttrain.runs.records.ratings import BothOrders, Meeting, RatedPolicy, Ratings, StyleWeight

SCHEMA = 1
ANCHOR_RATING = 1000.0
EXTREME = 0.1
"""A length-controlled rate that is this far from the raw one is said: AlpacaEval warns there, too."""


def rate(
    games: Any,
    *,
    anchor: str | None = None,
    anchor_rating: float = ANCHOR_RATING,
    models: Sequence[str] | None = None,
    style: Sequence[str] = FEATURES,
) -> Ratings:
    """Who is better, by a file of votes or games: win rates, length-controlled ones, and Bradley-Terry ratings.

    All intervals are 95 %, over prompts: with a prompt all of its games are drawn, and every fit is made anew.

    Args:
        games: what `read` takes: a path, a pattern, rows, or a list of these, in one of the layouts of docs/ratings.md.
        anchor: the policy whose rating is fixed and that win rates are over; None: the one with the most games.
        anchor_rating: its rating.
        models: only games among these policies.
        style: what is held equal beside the plain rating: some of length, headers, bold, lists. It needs responses.

    Raises:
        SourceError, RowError: a file or a row cannot be read.
        DataError: policies that no chain of games joins.
        EmptyDatasetError: there is no game.
        UnknownKeyError: no policy or feature has this name.
    """
    wanted = checked_style(style)
    number = _checked_rating(anchor_rating)
    chosen = None if models is None else _checked_names(models)
    if anchor is not None and not isinstance(anchor, str):
        raise wrong_argument("anchor", anchor, expected="the name of a policy", remedy="write `anchor='start'`")
    read = read_games(games)
    notes = [f"{read.unjudged:,} comparisons have no verdict and are left out"] if read.unjudged else []
    played = read.games
    if chosen is not None:
        known = dict.fromkeys(name for game in played for name in (game.model_a, game.model_b))
        for name in chosen:
            if name not in known:
                raise unknown("policy", name, known)
        played = [game for game in played if game.model_a in chosen and game.model_b in chosen]
        notes += [f"{len(read.games) - len(played):,} games of other policies are left out"]
    if not played:
        raise EmptyDatasetError(
            "there is no game to rate by",
            found=f"{read.rows:,} rows, {read.unjudged:,} comparisons without a verdict",
            remedy="give rows with a verdict" if chosen is None else "name policies that met",
        )
    return rate_games(played, anchor=anchor, anchor_rating=number, style=wanted, notes=notes)


def rate_games(
    games: Sequence[Game],
    *,
    anchor: str | None = None,
    anchor_rating: float = ANCHOR_RATING,
    style: Sequence[str] = FEATURES,
    notes: Sequence[str] = (),
) -> Ratings:
    """The same of games that are there already; see `rate`."""
    table = GameTable.of(games)
    fixed = _anchor(table, anchor)
    require_connected(table)
    plain = ratings(table, fixed, anchor_rating=anchor_rating)
    controlled, features, said = _controlled(table, fixed, anchor_rating, style)
    policies = [_policy(table, index, fixed, plain, controlled) for index in range(len(table.policies))]
    order = sorted(range(len(policies)), key=lambda index: -plain.ratings[index].value)
    return Ratings(
        schema=SCHEMA,
        anchor=table.policies[fixed],
        anchor_rating=anchor_rating,
        prompts=len(table.prompts),
        games=len(table.games),
        policies=tuple(policies[index] for index in order),
        meetings=tuple(_meetings(table, order)),
        style=tuple(
            StyleWeight(name, Figure.of(weight))
            for name, weight in zip(features, controlled.style if controlled else (), strict=True)
        ),
        orders=both_orders(games),
        notes=(*notes, *said, *_said_of(table, fixed, policies)),
    )


def _policy(table: GameTable, index: int, fixed: int, plain: Fitted, controlled: Fitted | None) -> RatedPolicy:
    own = (table.a_G == index) | (table.b_G == index)
    raw = None if index == fixed else win_rate(table, index, fixed)
    equal = None if index == fixed else length_controlled_win_rate(table, index, fixed)
    characters = None
    if table.has_responses:
        lengths_G2 = lengths_of(table)
        sides = [lengths_G2[table.a_G == index, 0], lengths_G2[table.b_G == index, 1]]
        characters = float(np.concatenate(sides).mean())
    return RatedPolicy(
        policy=table.policies[index],
        rating=Figure.of(plain.ratings[index]),
        controlled=None if controlled is None else Figure.of(controlled.ratings[index]),
        win_rate=None if raw is None else Figure.of(raw),
        lc_win_rate=None if equal is None else Figure.of(equal),
        characters=characters,
        games=int(own.sum()),
        prompts=len(np.unique(table.prompt_G[own])),
    )


def _controlled(
    table: GameTable, fixed: int, anchor_rating: float, style: Sequence[str]
) -> tuple[Fitted | None, list[str], list[str]]:
    """Ratings at equal style, the features that differ somewhere, and what is to be said of it."""
    if not style:
        return None, [], []
    if not table.has_responses:
        without = sum(game.response_a is None or game.response_b is None for game in table.games)
        return None, [], [f"no length or style control: {without:,} of {len(table.games):,} games have no responses"]
    style_GS = style_differences(table, style)
    differs = [index for index in range(len(style)) if style_GS[:, index].any()]
    features = [style[index] for index in differs]
    still = [name for name in style if name not in features]
    said = [f"no game differs in {', '.join(still)}, which therefore explains nothing"] if still else []
    if not features:
        return None, [], said
    return ratings(table, fixed, anchor_rating=anchor_rating, style_GS=style_GS[:, differs]), features, said


def _meetings(table: GameTable, order: Sequence[int]) -> list[Meeting]:
    """Every two policies that met, the better one first."""
    found = []
    for place, policy in enumerate(order):
        for other in order[place + 1 :]:
            rate_of_policy = win_rate(table, policy, other)
            if rate_of_policy is not None:
                games = len(table.between(policy, other)[0])
                found.append(Meeting(table.policies[policy], table.policies[other], Figure.of(rate_of_policy), games))
    return found


def both_orders(games: Sequence[Game]) -> BothOrders | None:
    """What became of comparisons that were judged in both orders; None where there is none.

    A comparison is a prompt, two policies and their two answers, which differ. Its outcome in an order is the mean of
    the games.
    """
    shown: dict[tuple[str, tuple[str, str | None], tuple[str, str | None]], list[float]] = defaultdict(list)
    for game in games:
        if game.response_a is not None and game.response_a == game.response_b:
            continue  # equal texts tie unasked
        shown[game.prompt, (game.model_a, game.response_a), (game.model_b, game.response_b)].append(game.points)
    agree, lean = defaultdict(list), defaultdict(list)
    for (prompt, first, second), points in shown.items():
        back = shown.get((prompt, second, first))
        if back is not None and repr(first) < repr(second):  # each comparison once
            forth_mean, back_mean = float(np.mean(points)), float(np.mean(back))
            agree[prompt].append(float(abs(forth_mean - (1 - back_mean)) < 1e-9))
            lean[prompt].append((forth_mean + back_mean) / 2 - 0.5)
    if not agree:
        return None
    return BothOrders(
        comparisons=sum(map(len, agree.values())),
        agreement=Figure.of(average([float(np.mean(values)) for values in agree.values()])),
        lean=Figure.of(unbounded([float(np.mean(values)) for values in lean.values()])),
    )


def _said_of(table: GameTable, fixed: int, policies: Sequence[RatedPolicy]) -> list[str]:
    """What a reader would misread without a word on it."""
    said = []
    for index, share in one_sided(table).items():
        name = table.policies[index]
        what = "won every game" if share else "lost every game"
        said.append(f"`{name}` {what}: how far it is from the others is the prior's word, and no bound")
    if 0 < table.points_G.min() == table.points_G.max() < 1:
        said.append("every game ended alike: nothing varies between prompts, and the ratings' intervals bound nothing")
    for policy in policies:
        raw, equal = policy.win_rate, policy.lc_win_rate
        if raw is not None and equal is None and table.has_responses:
            own = table.policies.index(policy.policy)
            apart = one_sided_length(longer_by(table, own, table.between(own, fixed)[0]))
            said.append(
                f"of the answers of `{policy.policy}` {apart} than those of `{table.policies[fixed]}`: nothing tells "
                "what it wins at equal length"
            )
        if raw is not None and equal is not None and abs(raw.value - equal.value) > EXTREME:
            said.append(
                f"`{policy.policy}` wins {raw.value:.0%} and at equal length {equal.value:.0%}: "
                "much of the difference is the length, or the fit fails; look at answers of equal length"
            )
    return said


def _anchor(table: GameTable, anchor: str | None) -> int:
    if anchor is None:
        # The one with the most games has the most neighbours to be compared with.
        games = np.bincount(np.concatenate([table.a_G, table.b_G]), minlength=len(table.policies))
        return int(games.argmax())
    if anchor not in table.policies:
        raise unknown("policy", anchor, table.policies)
    return table.policies.index(anchor)


def checked_style(style: Any) -> list[str]:
    """Features by name, each once."""
    names = [] if style is None else checked_list("style", style, of="features", example="['length', 'lists']")
    for name in names:
        if name not in FEATURES:
            raise unknown("feature", str(name), FEATURES)
    return list(dict.fromkeys(names))


def _checked_names(models: Any) -> list[str]:
    example = "['start', 'dpo']"
    names = checked_list("models", models, of="names", example=example)
    if odd := [name for name in names if not isinstance(name, str)]:
        raise wrong_argument("models", odd[0], expected="names of policies", remedy=f"write `models={example}`")
    return names


def _checked_rating(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise ConfigError("`anchor_rating` is no number", found=repr(value)[:80], remedy="write `anchor_rating=1000`")
    return float(value)
