"""Win rates and ratings: by hand, by a slow oracle, and under what must change nothing."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

import posttrain as pt
from posttrain.errors import ConfigError, DataError, EmptyDatasetError, UnknownKeyError
from posttrain.evaluate.ratings.bradley_terry import ELO, one_sided, ratings
from posttrain.evaluate.ratings.games import Game, GameTable
from posttrain.evaluate.ratings.length import length_controlled, length_controlled_win_rate, meets_in_length, win_rate
from posttrain.evaluate.ratings.logistic import fit, sigmoid
from posttrain.evaluate.ratings.rate import both_orders, rate_games
from posttrain.evaluate.ratings.style import style_differences, style_of
from posttrain.intervals import Score, mean_of, refitted, wilson
from posttrain.types import RowRef

ROW = RowRef("votes.jsonl", 1)


def game(prompt: str, a: str, b: str, points: float, answers: tuple[str, str] | None = None, weight: float = 1) -> Game:
    first, second = answers or (None, None)
    return Game(prompt, a, b, points, ROW, first, second, weight)


def chance(odds: float) -> float:
    return 1 / (1 + math.exp(-odds))


def turned(one: Game) -> Game:
    """The same game told from the other side."""
    return replace(
        one,
        model_a=one.model_b,
        model_b=one.model_a,
        points=1 - one.points,
        response_a=one.response_b,
        response_b=one.response_a,
    )


def drawn(prompts: int = 60, policies: int = 4, seed: int = 0, answers: bool = True) -> list[Game]:
    """Games by a model with skill, length and bold words, each in both orders."""
    rng = np.random.default_rng(seed)
    skill = np.linspace(0, 1.2, policies)
    games = []
    for prompt in range(prompts):
        for a, b in itertools.combinations(range(policies), 2):
            lengths = rng.integers(1, 40, size=2)
            words = ("x", "**b** ") if rng.random() < 0.5 else ("**b** ", "x")
            texts = (words[0] * int(lengths[0]), words[1] * int(lengths[1])) if answers else None
            odds = skill[a] - skill[b] + 0.04 * (lengths[0] - lengths[1])
            points = float(rng.random() < chance(float(odds)))
            one = game(f"q{prompt}", f"m{a}", f"m{b}", points, texts)
            games += [one, turned(one)]
    return games


# ---------------------------------------------------------------- the fit


def slow_fit(x: np.ndarray, wins: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Gradient ascent on the stated likelihood, a game at a time."""
    beta = np.zeros(x.shape[1])
    for _ in range(20_000):
        slope = sum(
            (wins[g] - counts[g] / (1 + math.exp(-float(x[g] @ beta)))) * x[g] for g in range(len(x))
        ) + np.array([0.5 - 1 / (1 + math.exp(-b)) for b in beta])
        beta = beta + 0.05 * slope
        if np.abs(slope).max() < 1e-9:
            break
    return beta


def test_the_fit_is_that_of_a_slow_oracle_for_each_resample_by_itself() -> None:
    rng = np.random.default_rng(1)
    x, counts = rng.normal(size=(12, 2)), rng.integers(0, 4, size=(3, 12)).astype(float)
    wins = counts * rng.random((3, 12))
    found = fit(x, wins, counts)
    for index in range(3):
        assert found[index] == pytest.approx(slow_fit(x, wins[index], counts[index]), abs=1e-6)
    by_resample = np.broadcast_to(x, (3, 12, 2))
    assert fit(by_resample, wins, counts) == pytest.approx(found, abs=1e-9)
    assert fit(x, wins, counts, start_F=np.array([5.0, -5.0])) == pytest.approx(found, abs=1e-8)


def test_one_coefficient_alone_has_jeffreyss_half_win() -> None:
    for won, of in ((0, 5), (3, 5), (5, 5), (400, 400)):
        (beta,) = fit(np.ones((1, 1)), np.array([[won]]), np.array([[of]]))[0]
        assert 1 / (1 + math.exp(-beta)) == pytest.approx((won + 0.5) / (of + 1))


def test_what_separates_wins_from_losses_has_a_finite_weight() -> None:
    x = np.stack([np.ones(40), np.repeat([-1e6, 1e6], 20)], axis=1)  # far out, where a whole Newton step overshoots
    beta = fit(x, np.repeat([0.0, 1.0], 20)[None], np.ones((1, 40)))[0]
    assert np.isfinite(beta).all() and beta[1] > 0 and abs(beta[0]) < 1e-6


# ---------------------------------------------------------------- the bootstrap


def test_a_resample_draws_as_many_prompts_as_there_are() -> None:
    seen: list[np.ndarray] = []

    def statistic(times: np.ndarray) -> np.ndarray:
        seen.append(times)
        return times[:, :1]

    refitted(8, statistic, cells=1_000_000, resamples=50)
    times = np.concatenate(seen)
    assert len(times) == 51 and len(seen) > 2, "in parts, by the cells that a fit holds"
    assert (times.sum(axis=1) == 8).all()
    assert (times == 1).all(axis=1).sum() < 5


def test_the_mean_of_independent_figures_has_the_root_of_their_squares() -> None:
    found = mean_of([Score(0.5, 0.2, 0.6, 10), Score(1.0, 0.6, 1.0, 20)])
    assert (found.value, found.n) == (0.75, 30)
    assert (found.low, found.high) == pytest.approx((0.75 - 0.5 / 2, 0.75 + 0.1 / 2))


def test_the_interval_of_few_prompts_is_students() -> None:
    values = np.random.default_rng(5).normal(size=20)
    (score,) = refitted(20, lambda times: times @ values[:, None] / 20, resamples=40_000)
    # Student's 97.5 % of 19 degrees of freedom is 2.093.
    error = values.std(ddof=1) / math.sqrt(20)
    assert (score.high - score.low) / 2 / error == pytest.approx(2.093, rel=0.03)


def test_the_interval_of_a_mean_is_that_of_the_bootstrap_of_means() -> None:
    values = np.random.default_rng(3).normal(size=200)
    (score,) = refitted(200, lambda times: times @ values[:, None] / times.sum(axis=1, keepdims=True))
    error = values.std() / math.sqrt(200)
    assert score.value == pytest.approx(values.mean())
    assert (score.high - score.low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.06)


# ---------------------------------------------------------------- win rates


def test_a_raw_win_rate_counts_a_prompt_once_and_ties_half() -> None:
    games = [
        game("1", "new", "old", 1.0),
        game("1", "old", "new", 0.0),
        game("1", "new", "old", 1.0),
        game("2", "old", "new", 1.0),
        game("3", "new", "old", 0.5),
        game("3", "new", "other", 0.0),
    ]
    table = GameTable.of(games)
    rate = win_rate(table, table.policies.index("new"), table.policies.index("old"))
    assert rate is not None and (rate.value, rate.n) == (pytest.approx((1 + 0 + 0.5) / 3), 3)
    assert win_rate(table, table.policies.index("old"), table.policies.index("other")) is None
    heavy = GameTable.of([game("1", "new", "old", 1.0, weight=3), game("1", "new", "old", 0.0)])
    assert win_rate(heavy, 0, 1).value == 0.75  # type: ignore[union-attr]


def test_without_a_difference_in_length_lc_is_the_raw_rate_with_one_tie_more() -> None:
    points = np.array([1.0, 1, 1, 0, 0.5])
    for lengths in (np.zeros(5), np.full(5, 30.0)):
        assert length_controlled(points, lengths, np.arange(5)).value == pytest.approx((3.5 + 0.5) / 6)


def test_lc_is_the_glm_at_equal_length() -> None:
    rng = np.random.default_rng(2)
    longer = rng.normal(60, 80, size=50).round()
    points = (rng.random(50) < sigmoid(0.2 + 1.1 * np.tanh(longer / longer.std()))).astype(float)
    points[:4] = 0.5
    x = np.stack([np.ones(50), np.tanh(longer / longer.std())], axis=1)
    theta = slow_fit(x, points, np.ones(50))[0]
    found = length_controlled(points, longer, np.arange(50))
    assert found.value == pytest.approx(1 / (1 + math.exp(-theta)), abs=1e-6)
    assert found.value < points.mean(), "its answers are longer, and longer ones win"
    mirrored = length_controlled(1 - points, -longer, np.arange(50))
    assert (mirrored.value, mirrored.low, mirrored.high) == pytest.approx(
        (1 - found.value, 1 - found.high, 1 - found.low)
    )
    # Rows that are copied know no more: each prompt counts once.
    again = length_controlled(np.tile(points, 3), np.tile(longer, 3), np.tile(np.arange(50), 3))
    assert (again.value, again.low, again.high) == pytest.approx((found.value, found.low, found.high))


def test_lc_of_an_undefeated_policy_is_finite_and_as_wide_as_wilsons() -> None:
    score = length_controlled(np.ones(20), np.random.default_rng(0).normal(size=20), np.arange(20))
    assert 0.9 < score.value < 1 and score.low < 0.85 and score.high > score.value


# ---------------------------------------------------------------- ratings


def slow_ratings(games: list[Game], names: tuple[str, ...]) -> dict[str, float]:
    """Zermelo's iteration (Hunter 2004, doi:10.1214/aos/1079120141), with one tie of each against a player of 1."""
    strength = dict.fromkeys(names, 1.0)
    for _ in range(3000):
        new = {}
        for name in names:
            won, met = 0.5, 1 / (strength[name] + 1)
            for one in games:
                if name in (one.model_a, one.model_b):
                    other = one.model_b if name == one.model_a else one.model_a
                    won += one.weight * (one.points if name == one.model_a else 1 - one.points)
                    met += one.weight / (strength[name] + strength[other])
            new[name] = won / met
        strength = new
    return {name: ELO * math.log(value / strength[names[0]]) for name, value in strength.items()}


def test_ratings_are_those_of_zermelos_iteration() -> None:
    games = drawn(prompts=4, policies=3, answers=False)
    games[0] = replace(games[0], weight=3.0, points=0.5)
    table = GameTable.of(games)
    slow = slow_ratings(games, table.policies)
    for name, score in zip(table.policies, ratings(table, 0, resamples=20).ratings, strict=True):
        assert score.value == pytest.approx(1000 + slow[name], abs=1e-3)


def test_odds_of_ten_to_one_are_400_points() -> None:
    games = [game(str(index), "strong", "weak", float(index % 11 != 0)) for index in range(11_000)]
    strong, weak = ratings(GameTable.of(games), 1, anchor_rating=1200.0, resamples=20).ratings
    assert (weak.value, weak.low, weak.high) == (1200.0, 1200.0, 1200.0)
    assert strong.value == pytest.approx(1600, abs=1)


def test_neither_the_order_of_games_nor_their_sides_nor_the_anchor_change_a_difference() -> None:
    games = drawn(prompts=12)
    style = ("length", "bold")
    plain = rate_games(games, anchor="m0", style=style)
    shuffled = rate_games([turned(one) for one in games[::-1]], anchor="m0", style=style)
    moved = rate_games(games, anchor="m2", anchor_rating=0.0, style=style)
    offset = next(one.rating.value for one in moved.policies if one.policy == "m0")  # type: ignore[union-attr]
    for one, same, other in zip(plain.policies, shuffled.policies, moved.policies, strict=True):
        assert one.policy == same.policy == other.policy
        assert one.rating and same.rating and other.rating and one.controlled and same.controlled
        assert same.rating.value == pytest.approx(one.rating.value)
        assert same.controlled.value == pytest.approx(one.controlled.value)
        assert other.rating.value - offset == pytest.approx(one.rating.value - 1000)
    assert [one.weight.value for one in shuffled.style] == pytest.approx([one.weight.value for one in plain.style])  # type: ignore[union-attr]


def test_games_that_are_copied_make_no_interval_narrower() -> None:
    games = drawn(prompts=40, policies=3)
    once, thrice = (rate_games(copies, anchor="m0") for copies in (games, games * 3))
    for one, three in zip(once.policies, thrice.policies, strict=True):
        if one.policy != "m0":
            for name in ("rating", "controlled", "win_rate", "lc_win_rate"):
                width, same = (getattr(it, name).high - getattr(it, name).low for it in (one, three))
                # Only the prior weighs less against them; independent rows would give 0.58.
                assert 0.97 < same / width < 1.1, name


def test_style_that_wins_is_told_from_skill() -> None:
    rng = np.random.default_rng(4)
    games = []
    for prompt in range(200):
        # `wordy` is as good as `terse` and longer; the judge goes by length alone.
        lengths = rng.integers(25, 90), rng.integers(10, 60)
        points = float(rng.random() < chance(4 * (lengths[0] - lengths[1]) / (lengths[0] + lengths[1])))
        games.append(game(str(prompt), "wordy", "terse", points, ("x" * lengths[0], "y" * lengths[1])))
    record = rate_games(games, anchor="terse")
    wordy = next(one for one in record.policies if one.policy == "wordy")
    assert wordy.rating and wordy.controlled and wordy.lc_win_rate and wordy.win_rate
    assert wordy.rating.low and wordy.rating.low > 1020
    assert wordy.controlled.low and wordy.controlled.high and wordy.controlled.low < 1000 < wordy.controlled.high
    assert wordy.win_rate.low and wordy.win_rate.low > 0.55 > wordy.lc_win_rate.value > 0.4
    assert [one.feature for one in record.style] == ["length"]
    assert "headers, bold, lists" in record.notes[0]


def test_policies_that_never_met_are_refused_by_name() -> None:
    games = [game("1", "a", "b", 1.0), game("1", "c", "d", 1.0)]
    with pytest.raises(DataError, match="2 parts that never met") as error:
        rate_games(games)
    assert "`a`, `b`; `c`, `d`" in str(error.value)
    joined = rate_games([*games, game("2", "a", "c", 0.5)])
    assert len(joined.policies) == 4


def test_an_undefeated_policy_has_a_finite_rating_and_a_note() -> None:
    games = [game(str(index), "new", "old", 1.0) for index in range(10)] + [game("x", "old", "low", 0.5)]
    record = rate_games(games, anchor="old")
    best = record.policies[0]
    assert best.policy == "new" and best.rating and 1300 < best.rating.value < 2000
    assert any("`new` won every game" in note for note in record.notes)
    assert one_sided(GameTable.of(games)) == {0: 1.0}


def test_at_equal_length_there_is_a_figure_only_where_somebody_played() -> None:
    """Always shorter, and better: the curve would say that it loses."""
    assert not meets_in_length(np.array([-9.0] * 96 + [1.0] * 4))
    assert meets_in_length(np.array([-9.0] * 95 + [1.0] * 5)) and meets_in_length(np.zeros(3))
    shorter = [
        game(str(index), "new", "old", float(index % 4 > 0), ("a" * (1 + index % 3), "b" * 9)) for index in range(40)
    ]
    record = rate_games(shorter, anchor="old")
    assert record.policies[0].policy == "new" and record.policies[0].lc_win_rate is None
    assert any("of the answers of `new` 100% are shorter than those of `old`" in note for note in record.notes)
    other = rate_games(
        [*shorter, *(game(f"x{index}", "new", "old", 0.5, ("aa", "bb")) for index in range(4))], anchor="old"
    )
    assert other.policies[0].lc_win_rate is not None and not any("are shorter" in note for note in other.notes)


def test_ties_alone_have_wilsons_width_and_a_note() -> None:
    """Every resample of them is a half; ten ties are no proof of it."""
    games = [game(str(index), "new", "old", 0.5, ("a", "b")) for index in range(10)]
    table = GameTable.of(games)
    low, high = wilson(5, 10)
    for found in (win_rate(table, 0, 1), length_controlled_win_rate(table, 0, 1)):
        assert found is not None and found.value == pytest.approx(0.5)
        assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert any("every game ended alike" in note for note in rate_games(games).notes)
    other = rate_games([*games, game("x", "new", "old", 1.0, ("a", "b"))])
    assert not any("ended alike" in note for note in other.notes)


# ---------------------------------------------------------------- style, orders, refusals


def test_the_style_of_an_answer_by_hand() -> None:
    text = "# Sum\n\n- **4**\n* __5__\n 1. six\n```\n# no header\n- no item\n```\n#hash"
    assert style_of(text) == {"length": len(text), "headers": 1, "bold": 2, "lists": 3}
    assert style_of("```\n# open") == {"length": 10, "headers": 0, "bold": 0, "lists": 0}
    table = GameTable.of([game("1", "a", "b", 1.0, ("# x\n# y", "# z")), game("2", "a", "b", 1.0, ("", ""))])
    assert style_differences(table, ("length", "headers", "lists")).tolist() == [[0.4, 1 / 3, 0], [0, 0, 0]]


def test_both_orders_by_hand() -> None:
    answers = ("4", "5")
    games = [
        game("1", "a", "b", 1.0, answers),
        game("1", "b", "a", 0.0, answers[::-1]),
        game("2", "a", "b", 1.0, answers),
        game("2", "b", "a", 1.0, answers[::-1]),  # the first shown, both times
        game("3", "a", "b", 1.0, answers),  # one order only
    ]
    found = both_orders(games)
    assert found is not None and found.agreement and found.lean
    assert (found.comparisons, found.agreement.value, found.lean.value) == (2, 0.5, 0.25)
    assert both_orders(games[4:]) is None


def test_what_cannot_be_a_game_is_refused() -> None:
    for odd, words in (
        (game("1", "a", "a", 1.0), "against itself"),
        (game("1", "a", "b", 1.5), "no share"),
        (game("1", "a", "b", float("nan")), "no share"),
        (game("1", "a", "b", 1.0, weight=0.0), "weight"),
    ):
        with pytest.raises(DataError, match=words):
            GameTable.of([odd])
    with pytest.raises(EmptyDatasetError):
        GameTable.of([])
    table = GameTable.of([game("1", "a", "b", 1.0)])
    assert length_controlled_win_rate(table, 0, 1) is None


def test_arguments_of_rate_are_checked() -> None:
    rows = [{"prompt": "1", "model_a": "start", "model_b": "dpo", "winner": "dpo"}]
    assert pt.rate(rows).policies[0].policy == "dpo"
    for wrong, kind in (
        ({"anchor": "strat"}, UnknownKeyError),
        ({"style": ["lenght"]}, UnknownKeyError),
        ({"models": ["start", "dop"]}, UnknownKeyError),
        ({"models": "start"}, ConfigError),
        ({"anchor_rating": float("nan")}, ConfigError),
        ({"models": ["start"]}, EmptyDatasetError),
    ):
        with pytest.raises(kind):
            pt.rate(rows, **wrong)
