"""Every 95 % interval that a user is shown: what chance alone would make of a figure on as many prompts.

One method for each kind of figure, so that a figure has the same interval wherever it is shown (suites, held-out
scores, the audit, the report):

| figure | method |
|---|---|
| a share of yes or no | Wilson (1927, eq. 7): `share`, `wilson` |
| a mean, a ratio, a correlation | percentile bootstrap (Efron 1979): `mean`, `average`, `unbounded`, `bootstrap` |
| a change over the same prompts | percentile bootstrap of the differences: `paired_difference` |
| its p | the paired randomisation test: `sign_flip` |
| such a change over several trainings | both drawn anew, seeds and prompts (Owen 2007): `over_seeds` |
| what a whole fit gives (a rating, a coefficient) | bootstrap, expanded percentiles, fitted anew: `refitted` |
| a mean over trainings that differ in their seed alone | Student's t (1908): `over_runs` |
| the best of several settings | out of the bootstrap's bag (Tsamardinos 2018): `of_the_best` |
| the mean of figures over different prompts | from their intervals (Zou & Donner 2008): `mean_of` |
| a figure of which only the standard error is known | the normal approximation: `from_error` |

Shares need a method of their own because they live near 0 and 1, where the bootstrap is too narrow: of 20 right answers
in 20 it would give [1, 1], Wilson gives [0.84, 1]. A mean of values in [0, 1] (pass@k, a win rate, several answers to a
prompt) has the same trouble where all but a few are near one end, and gets Wilson's there: values of 0 or 1 have the
largest variance of all with their mean, so it errs on the wide side.

The prompt is the unit that was drawn, so every interval is over prompts; several answers to one prompt are one
observation, their mean. With a fixed set of prompts and greedy answers nothing is random but their choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # loaded on request: `posttrain report` and the command line's tables start without numpy
    import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 2_000
Z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
"""Standard errors to each side: 1.95996."""
Z_POWER = NormalDist().inv_cdf(0.8)
"""Standard errors that a change must lie beyond the test's bound to be shown four times in five."""
CORRELATION = 0.5
"""Between two models' scores of the same items, where it is not known yet."""
EXACT = 12
"""Up to so many prompts that changed, every combination of signs is tried; beyond, FLIPS random ones."""
FLIPS = 10_000
FEW = 5
"""In sum this far from 0 or from n, a mean of values in [0, 1] is bootstrapped; nearer, its resamples are all alike."""
FEWEST_PROMPTS = 6
"""Below it even unanimity is chance: 2^-4 > 0.05."""


@dataclass(frozen=True, slots=True)
class Score:
    """A figure and its interval: Score(0.94, 0.87, 0.98, n=64)."""

    value: float
    low: float
    high: float
    n: int
    """Prompts, not answers."""


@dataclass(frozen=True, slots=True)
class Difference(Score):
    """A mean change over the same prompts, with its interval: Difference(0.88, 0.80, 0.95, 64)."""

    @property
    def clear(self) -> bool:
        """The interval leaves out zero, of at least six prompts."""
        return self.n >= FEWEST_PROMPTS and (self.low > 0 or self.high < 0)


# ---------------------------------------------------------------- shares


def wilson(successes: float, total: float) -> tuple[float, float]:
    """Interval of a share: wilson(20, 20) -> (0.839, 1.0); (0, 1) where nothing was counted.

    Ties may be counted as halves.
    """
    if total <= 0:
        return 0.0, 1.0
    proportion = successes / total
    spread = Z * math.sqrt(proportion * (1 - proportion) / total + Z**2 / (4 * total**2))
    centre = proportion + Z**2 / (2 * total)
    scale = 1 + Z**2 / total
    # The bounds are 0 and 1 exactly where no or every answer is right; rounding must not push them past the value.
    low = min(max(0.0, (centre - spread) / scale), proportion)
    return low, max(min(1.0, (centre + spread) / scale), proportion)


def share(successes: float, n: int) -> Score:
    """share(8, 10) -> Score(0.8, 0.490, 0.943, 10)"""
    low, high = wilson(successes, n)
    return Score(successes / n, low, high, n)


# ---------------------------------------------------------------- means


def mean(values_by_prompt: Sequence[Sequence[float]]) -> Score:
    """The mean of the prompts' means: mean([[1, 0], [1, 1]]) is that of 0.5 and 1."""
    return average([fmean(values) for values in values_by_prompt])


def average(values: np.ndarray | Sequence[float]) -> Score:
    """The mean of one value per prompt: Wilson's interval for values of 0 and 1, and for values between them of which
    all but a few are near one end; else the bootstrap's."""
    given = _floats(values)
    total, n = float(given.sum()), len(given)
    if ((given >= 0) & (given <= 1)).all() and (min(total, n - total) < FEW or ((given == 0) | (given == 1)).all()):
        return share(total, n)
    return unbounded(given)


def unbounded(values: np.ndarray | Sequence[float]) -> Score:
    """The mean, one value per prompt, of a quantity that may lie anywhere: a length, a gap, a change. That all of its
    values lie in [0, 1] makes it no share, so it is always bootstrapped."""
    given = _floats(values)
    return bootstrap(len(given), lambda index: given[index].mean(axis=-1))


def bootstrap(n: int, statistic: Callable[[np.ndarray], np.ndarray], seed: int = 0) -> Score:
    """Percentile bootstrap of a statistic over n prompts.

    Args:
        statistic: prompt indices [..., n] to values [...]; called with all prompts, and with resamples of them.
    """
    import numpy as np

    # A stream of its own, always from the same seed: an interval must not move when a report is made again.
    rng = np.random.default_rng(seed)
    # All resamples at once of 100,000 prompts would be 1.6 GB.
    draws = [statistic(rng.integers(0, n, size=(rows, n))) for rows in blocks(RESAMPLES, n)]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.concatenate(draws), [tail, 1 - tail])
    return Score(float(statistic(np.arange(n))), float(low), float(high), n)


def refitted(
    prompts: int,
    fit: Callable[[np.ndarray], np.ndarray],
    *,
    cells: int = 1,
    resamples: int | None = None,
) -> list[Score]:
    """Bootstrap of everything that a fit gives, by prompt: all games of a prompt are drawn together, and the fit is
    made anew for each resample, so that what it does not know is in the interval.

    Its percentiles are expanded for few prompts (Hesterberg 2015, doi:10.1080/00031305.2015.1089789, section 5.3):
    resamples vary less than samples do, and the plain ones of a mean of 20 values hold it in 93 of 100 samples.

    Args:
        fit: how often each prompt is drawn [R, prompts] to what is estimated [R, K]; called with ones for the
            value itself.
        cells: numbers that the fit holds of one resample, so that no more resamples are made at once than memory takes.
        resamples: 2,000 if not given.
    """
    import numpy as np

    resamples = RESAMPLES if resamples is None else resamples
    rng = np.random.default_rng(0)
    rows = max(1, min(resamples, 4_000_000 // max(cells, prompts, 1)))
    draws = []
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        draws.append(fit(rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=size).astype(float)))
    tail = _expanded_tail(prompts)
    low_K, high_K = np.quantile(np.concatenate(draws), [tail, 1 - tail], axis=0)
    return [
        Score(float(value), float(low), float(high), prompts)
        for value, low, high in zip(fit(np.ones((1, prompts)))[0], low_K, high_K, strict=True)
    ]


def _expanded_tail(prompts: int) -> float:
    """Share of the resamples beyond each end: 2.5 % of many prompts, 1.6 % of 20."""
    freedom = max(1, prompts - 1)
    # Student's quantile from the normal one (Abramowitz & Stegun, 26.7.5).
    student = Z + (Z**3 + Z) / (4 * freedom) + (5 * Z**5 + 16 * Z**3 + 3 * Z) / (96 * freedom**2)
    return NormalDist().cdf(-student * math.sqrt((freedom + 1) / freedom))


def mean_of(scores: Sequence[Score]) -> Score:
    """The mean of figures over different prompts, each weighing the same. Its interval is made of theirs (Zou & Donner
    2008, doi:10.1002/sim.3095, eq. 7), so that a share of 0 or 1 brings Wilson's width along."""
    value = fmean(score.value for score in scores)
    below = math.hypot(*(score.value - score.low for score in scores)) / len(scores)
    above = math.hypot(*(score.high - score.value for score in scores)) / len(scores)
    return Score(value, value - below, value + above, sum(score.n for score in scores))


def outside_chance(score: Score, total: float) -> Score:
    """The same figure of a share, and Wilson's interval around it as well where all but a few of `total` are at one
    end, or all are alike: then resamples are alike too, whatever is fitted to them."""
    if score.low < score.high and min(score.value, 1 - score.value) * total >= FEW:
        return score
    low, high = wilson(score.value * total, total)
    return Score(score.value, min(score.low, low), max(score.high, high), score.n)


def from_error(value: float, standard_error: float) -> tuple[float, float]:
    """The normal approximation, for a figure of which no more than its standard error was written down."""
    return value - Z * standard_error, value + Z * standard_error


# ---------------------------------------------------------------- changes


def paired_difference(before: Sequence[float] | np.ndarray, after: Sequence[float] | np.ndarray) -> Difference:
    """The mean change over the same prompts: pairing removes what is merely hard about a prompt.

    before, after: scores of the same prompts in the same order, at least one.
    """
    change = unbounded(_floats(after) - _floats(before))
    return Difference(change.value, change.low, change.high, change.n)


def over_seeds(change_SP: np.ndarray) -> Difference:
    """The mean change of several trainings over the same prompts. Seeds and prompts are drawn anew, independently of
    each other: the pigeonhole bootstrap (Owen 2007, doi:10.1214/07-AOAS122), which errs on the wide side.

    change_SP: [seeds, prompts].
    """
    import numpy as np

    seeds, prompts = change_SP.shape
    rng = np.random.default_rng(0)
    # How often each seed and each prompt is drawn; the mean of a resample is then one product.
    seeds_RS = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=RESAMPLES)
    prompts_RP = rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=RESAMPLES)
    means_R = ((seeds_RS @ change_SP) * prompts_RP).sum(axis=1) / (seeds * prompts)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means_R, [tail, 1 - tail])
    return Difference(float(change_SP.mean()), float(low), float(high), prompts)


def sign_flip(moved_P: np.ndarray) -> float:
    """How often chance alone moves a mean as far: two-sided p of the paired randomisation test (Fisher 1935, ch. III).

    Without an effect each prompt's difference is as likely as its negative. sign_flip([1, 1, 1, 1]) is 2/16.
    """
    import numpy as np

    moved = moved_P[np.abs(moved_P) > 1e-12]
    if not len(moved):
        return 1.0
    seen = abs(float(moved.sum())) * (1 - 1e-9)
    if len(moved) <= EXACT:
        signs = 1 - 2 * ((np.arange(1 << len(moved))[:, None] >> np.arange(len(moved))) & 1)
        return int((np.abs(signs @ moved) >= seen).sum()) / len(signs)
    rng, as_far = np.random.default_rng(0), 0
    for tries in blocks(FLIPS, len(moved)):
        as_far += int((np.abs(rng.choice([-1, 1], size=(tries, len(moved))) @ moved) >= seen).sum())
    # The signs as they are count among those that are tried (Phipson and Smyth 2010).
    return (as_far + 1) / (FLIPS + 1)


def blocks(total: int, n: int) -> list[int]:
    """How many of so many draws of n numbers are made at a time: 32 MB of them, for any n."""
    most = max(1, min(total, 4_000_000 // max(1, n)))
    return [min(most, total - start) for start in range(0, total, most)]


# ---------------------------------------------------------------- several trainings


def over_runs(values: Sequence[float]) -> Score | None:
    """The mean of one figure per training, with Student's interval: over_runs([1, 2, 3]) -> Score(2, -0.484, 4.484, 3).

    Of what another seed would give on the same prompts. None of one training: nobody knows how far another would lie.
    """
    n = len(values)
    if n < 2:
        return None
    middle = fmean(values)
    spread = math.sqrt(sum((value - middle) ** 2 for value in values) / (n - 1))
    half = student_quantile(0.5 + CONFIDENCE / 2, n - 1) * spread / math.sqrt(n)
    return Score(middle, middle - half, middle + half, n)


def student_quantile(place: float, freedom: int) -> float:
    """student_quantile(0.975, 2) -> 4.3027, by halving a finite sum (Abramowitz and Stegun 1964, 26.7.3)."""
    if place < 0.5:
        return -student_quantile(1 - place, freedom)
    low, high = 0.0, 1.0
    while _student(high, freedom) < place:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _student(middle, freedom) < place else (low, middle)
    return (low + high) / 2


def _student(t: float, freedom: int) -> float:
    """P(T < t), for t from 0 up."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine = math.cos(angle)
    odd = freedom % 2 == 1
    term = cosine if odd else 1.0
    total = 0.0 if freedom == 1 else term
    for k in range(2 if odd else 1, freedom - 2, 2):
        term *= cosine**2 * k / (k + 1)
        total += term
    inside = 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
    return 0.5 + inside / 2


def of_the_best(scores_CSP: np.ndarray, *, lower: bool = False) -> Score | None:
    """What the best of several settings gives on prompts and seeds that did not choose it.

    The highest of many means is too high: what is chosen was partly lucky. So choosing is done again and again on a
    bootstrap sample of the seeds and prompts, and the chosen setting's score is taken on those that were not drawn
    (BBC, Tsamardinos, Greasidou and Borboudakis 2018, doi:10.1007/s10994-018-5714-4, algorithm 5, with seeds beside
    the prompts). The mean over resamples errs on the low side, since a sample has fewer different prompts than all; the
    interval is of the percentiles.

    Args:
        scores_CSP: [settings, seeds, prompts]. One seed, or one prompt, is not drawn: chance is over the other alone.
        lower: whether less is better.

    Returns:
        n: prompts times seeds. None where there is one score a setting, or fewer than two settings.
    """
    import numpy as np

    settings, seeds, prompts = scores_CSP.shape
    if settings < 2 or seeds * prompts < 2:
        return None
    rng = np.random.default_rng(0)
    seeds_RS, seeds_out_RS = _bags(rng, seeds)
    prompts_RP, prompts_out_RP = _bags(rng, prompts)
    # With two seeds every other sample has both, and none is left to score on.
    usable_R = seeds_out_RS.any(axis=1) & prompts_out_RP.any(axis=1)
    if not usable_R.any():
        return None
    in_bag_RC = np.stack([((seeds_RS @ own_SP) * prompts_RP).sum(axis=1) for own_SP in scores_CSP], axis=1)
    chosen_R = np.argmax(-in_bag_RC if lower else in_bag_RC, axis=1)
    out_RC = np.stack([((seeds_out_RS @ own_SP) * prompts_out_RP).sum(axis=1) for own_SP in scores_CSP], axis=1)
    left_R = seeds_out_RS.sum(axis=1) * prompts_out_RP.sum(axis=1)
    found_R = out_RC[np.arange(len(chosen_R)), chosen_R][usable_R] / left_R[usable_R]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(found_R, [tail, 1 - tail])
    return Score(float(found_R.mean()), float(low), float(high), seeds * prompts)


def _bags(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each of n is drawn, and 1 where it is not: both [resamples, n]. One alone is in and out."""
    import numpy as np

    if n == 1:
        return np.ones((RESAMPLES, 1)), np.ones((RESAMPLES, 1))
    drawn_RN = rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(float)
    return drawn_RN, (drawn_RN == 0).astype(float)


# ---------------------------------------------------------------- how many prompts it takes


def smallest_change(deviation: float, n: int) -> float:
    """The smallest true change of a mean over the same n items that a two-sided test at 5 % shows with 80 % power.

    (z_0.975 + z_0.8) deviation / sqrt(n), which is 2.80 standard errors (Miller 2024, arXiv:2411.00640, section 5).

    Args:
        deviation: of the items' changes.
    """
    return (Z + Z_POWER) * deviation / math.sqrt(n)


def smallest_of_interval(change: Score) -> float:
    """The same, of a change whose interval is known: it is 1.96 standard errors to each side."""
    return (change.high - change.low) / 2 * (Z + Z_POWER) / Z


def deviation_of_change(share_seen: float = 0.5, correlation: float = CORRELATION) -> float:
    """How far the changes of scores in [0, 1] spread at most, without an effect: sqrt(2 s (1 - s) (1 - correlation)).

    Args:
        share_seen: the mean score s of both models; the default is the widest.
        correlation: of the two models' scores on the same items.
    """
    return math.sqrt(2 * share_seen * (1 - share_seen) * (1 - correlation))


def spread(values: np.ndarray | Sequence[float]) -> float:
    """Standard deviation of a sample (n - 1); 0 of a single value."""
    given = _floats(values)
    return float(given.std(ddof=1)) if len(given) > 1 else 0.0


def prompts_within(share_seen: float, half_width: float) -> int:
    """How many prompts a share needs for a Wilson interval of at most so much to each side: (0.5, 0.1) -> 93.

    Raises nothing; `half_width` lies between 0 and 0.5.
    """
    low, high = 1, 1
    while _half_width(share_seen, high) > half_width:
        low, high = high, 2 * high
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _half_width(share_seen, middle) <= half_width else (middle + 1, high)
    return high


def prompts_to_tell(change: float, half_width: float, prompts: int) -> int | None:
    """How many prompts would part a change from zero, were it as large as it looks: (0.1, 0.2, 30) -> 120.

    An interval shrinks with the root of the number of prompts. None where nothing changed: no number would do.

    Args:
        change: the mean change that was seen.
        half_width: of its 95 % interval.
        prompts: over which it was seen.
    """
    if change == 0 or prompts < 1:
        return None
    return max(prompts + 1, FEWEST_PROMPTS, math.ceil(prompts * (half_width / change) ** 2))


def _half_width(share_seen: float, n: int) -> float:
    low, high = wilson(share_seen * n, n)
    return (high - low) / 2


def chance_of_fall(values: Sequence[float]) -> float:
    """How often values in random order fall as clearly as these: Mann and Kendall's test, one-sided, by the normal
    approximation with its correction (Mann 1945, doi:10.2307/1907187)."""
    total = len(values)
    signs = sum((values[j] < values[i]) - (values[j] > values[i]) for i in range(total) for j in range(i + 1, total))
    deviation = math.sqrt(total * (total - 1) * (2 * total + 5) / 18)
    return 1 - NormalDist().cdf((signs - 1) / deviation)


def quantile(ordered: Sequence[float], place: float) -> float:
    """Linear interpolation between the values of a sorted list (the definition of numpy and R's type 7)."""
    at = (len(ordered) - 1) * place
    below = math.floor(at)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (at - below)


def _floats(values: np.ndarray | Sequence[float]) -> np.ndarray:
    import numpy as np

    return np.asarray(values, dtype=float)
