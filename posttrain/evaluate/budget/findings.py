"""What the curves of a budget say, in words; each claim with the difference that it stands on, and what chance makes.

    at the price of k samples, which is best here?     `choices`
    does accuracy fall as n grows?                     `falls`: its scorer is over-optimised
    how much does the choice lose?                     `losses`: the oracle minus the choice
    is a strategy worth its tokens?                    `against_pool`: the best of the pool at as many tokens

Differences are over the same prompts, with the bootstrap's interval over prompts (`posttrain.intervals`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from posttrain.evaluate.budget.curves import Curve, CurvePoint, PoolTable, values_at
from posttrain.evaluate.budget.difficulty import WITHIN, by_difficulty
from posttrain.evaluate.words import in_points, percent
from posttrain.intervals import Difference, paired_difference
from posttrain.runs.records.budget import BudgetChoice, BudgetFinding, DifficultyChoice
from posttrain.runs.records.evaluation import Figure


def choices(table: PoolTable, curves: Sequence[Curve]) -> list[BudgetChoice]:
    """Who is best at the price of n answers, for each n of the pool's curves above 1, and how far before the next.

    A strategy counts with its best point within that price, and of equal ones the cheaper is the best. Best and second
    are chosen on the prompts on which their difference is measured, which favours the best: a difference that is not
    clear is none.
    """
    oracle = next(curve for curve in curves if not curve.chooses)
    found = []
    for n in [point.n for point in oracle.points if point.n is not None and point.n > 1]:
        price = n * table.tokens
        entries = sorted(_affordable(curves, n, price), key=lambda entry: (-entry[1].value, entry[1].tokens))
        best_name, best = entries[0]
        if len(entries) == 1:
            found.append(BudgetChoice(n, price, best_name, None, None, None))
            continue
        second_name, second = entries[1]
        ahead = paired_difference(second.values_P, best.values_P)
        found.append(BudgetChoice(n, price, best_name, second_name, Figure.of(ahead), ahead.clear))
    return found


def _affordable(curves: Sequence[Curve], n: int, price: float) -> Iterator[tuple[str, CurvePoint]]:
    """Each way to an answer with the best that it makes of this price."""
    for curve in curves:
        if not curve.chooses:
            continue
        if curve.of_pool:
            # Its scorer may sample more than the answers do: what its fewest answers cost is then beyond the price.
            if curve.points[0].tokens > WITHIN * price:
                continue
            # Between its points where its scorer samples too: a mark for each answer leaves fewer answers.
            values_P, paid = values_at(curve, price)
            yield curve.name, CurvePoint(f"n = {paid:.1f}", n, values_P, price, 0.0, 0.0)
        elif within := [point for point in curve.points if point.tokens <= WITHIN * price]:
            best = max(within, key=lambda point: point.value)
            yield best.label, best


def fall(curve: Curve) -> tuple[int, Difference] | None:
    """Where accuracy was highest before it fell, and the fall from there to the largest n; None where it did not.

    The peak of a noisy curve is too high by chance, so that the way down from it always looks like a fall. Therefore
    each half of the prompts is measured from the peak of the other half.
    """
    values_PK = np.stack([point.values_P for point in curve.points], axis=1)
    prompts, ns = values_PK.shape
    if ns < 2 or prompts < 2:
        return None
    halves_P = np.random.default_rng(0).permutation(prompts) % 2
    at_peak_P = np.zeros(prompts)
    for half in (0, 1):
        peak = int(values_PK[halves_P == half].mean(axis=0).argmax())
        at_peak_P[halves_P != half] = values_PK[halves_P != half, peak]
    fell = paired_difference(at_peak_P, values_PK[:, -1])
    whole = int(values_PK.mean(axis=0).argmax())
    peak_n = curve.points[whole].n
    return (peak_n, fell) if fell.clear and fell.value < 0 and peak_n is not None else None


def findings(
    table: PoolTable, curves: Sequence[Curve], chosen: Sequence[BudgetChoice], difficulty: DifficultyChoice | None
) -> list[BudgetFinding]:
    """All sentences, the answer to "which is best here?" first."""
    strategies = [curve for curve in curves if not curve.of_pool]
    return [
        *_best(table, curves, chosen),
        *(_fell(curve, found) for curve in curves if curve.chooses and (found := _fall_of(curve))),
        *_losses(curves),
        *(found for curve in strategies for point in curve.points for found in _against_pool(point, curves)),
        *([] if difficulty is None else [_by_difficulty(difficulty)]),
    ]


def difficulty_of(table: PoolTable, ns: Sequence[int], curves: Sequence[Curve]) -> DifficultyChoice | None:
    """See `by_difficulty`."""
    return by_difficulty(table, ns, [curve for curve in curves if not curve.of_pool])


# ---------------------------------------------------------------- the sentences


def _fall_of(curve: Curve) -> tuple[int, Difference] | None:
    return fall(curve) if curve.of_pool else None


def _interval(found: Difference | Figure) -> str:
    """+4 points [−1, +9]"""
    assert found.low is not None and found.high is not None
    return f"{in_points(found.value)} points [{in_points(found.low)}, {in_points(found.high)}]"


def _tokens(tokens: float) -> str:
    return f"{tokens:,.0f} tokens a prompt"


def _best(table: PoolTable, curves: Sequence[Curve], chosen: Sequence[BudgetChoice]) -> Iterator[BudgetFinding]:
    if not chosen:
        return
    last = chosen[-1]
    assert last.n is not None and last.tokens is not None
    best = next(point for name, point in _affordable(curves, last.n, last.tokens) if name == last.best)
    one_P = table.right_PN.mean(axis=1)
    gain = paired_difference(one_P, best.values_P)
    one = percent(float(one_P.mean()))
    price = f"At the price of {last.n} answers ({_tokens(last.tokens)})"
    if gain.value <= 0:
        text = f"{price} nothing is better than one answer alone, which is right in {one} %: the best of them, "
        yield BudgetFinding("plain", f"{text}`{last.best}`, is in {percent(best.value)} %, {_interval(gain)}.")
        return
    text = (
        f"{price} `{last.best}` is best here, {percent(best.value)} % right where one answer alone is in {one} %: "
        f"{_interval(gain)}{'' if gain.clear else ', which chance may explain'}."
    )
    if last.second is not None and last.difference is not None:
        text += f" Before the next, `{last.second}`, it is by {_interval(last.difference)}: " + (
            "more than chance explains." if last.clear else "chance may explain that, so either may be taken."
        )
    yield BudgetFinding("good" if gain.clear else "plain", text)


def _fell(curve: Curve, found: tuple[int, Difference]) -> BudgetFinding:
    n, fell = found
    last = curve.points[-1]
    if n == curve.points[0].n:
        who = f"the scorer `{curve.scorer}` prefers" if curve.scorer else "the votes favour"
        who += " wrong answers from the beginning; take one answer as it comes"
    else:
        who = f"the scorer `{curve.scorer}` is over-optimised" if curve.scorer else "the votes favour a wrong answer"
        who += f"; stop near n = {n}"
    return BudgetFinding(
        "warn",
        f"`{curve.name}` falls as n grows: {percent(curve.at_n(n).value)} % at n = {n}, {percent(last.value)} % at "
        f"n = {last.n} ({_interval(fell)}, measured from the peak of other prompts): {who}.",
    )


def _losses(curves: Sequence[Curve]) -> Iterator[BudgetFinding]:
    oracle = next(curve for curve in curves if not curve.chooses)
    top, first = oracle.points[-1], oracle.points[0]
    reach = top.value - first.value
    parts = []
    for curve in curves:
        if curve.chooses and curve.of_pool:
            point = curve.points[-1]
            loss = paired_difference(point.values_P, top.values_P)
            kept = f", {percent((point.value - first.value) / reach)} % of the reach" if reach > 0.005 else ""
            parts.append(f"`{curve.name}` {percent(point.value)} % (loses {_interval(loss).lstrip('+')}{kept})")
    yield BudgetFinding(
        "plain",
        f"Among {top.n} answers a right one is found for {percent(top.value)} % of the prompts (the oracle), and one "
        f"answer alone is right in {percent(first.value)} %. Of that reach the choice makes: {'; '.join(parts)}.",
    )


def _against_pool(point: CurvePoint, curves: Sequence[Curve]) -> Iterator[BudgetFinding]:
    """A strategy's point against the best of the pool's methods at as many tokens."""
    pool = [curve for curve in curves if curve.chooses and curve.of_pool]
    at_price = [(curve, *values_at(curve, point.tokens)) for curve in pool]
    curve, values_P, n = max(at_price, key=lambda entry: float(entry[1].mean()))
    moved = paired_difference(values_P, point.values_P)
    price = f"about n = {n:.1f}"
    if point.tokens > WITHIN * curve.points[-1].tokens:
        price = f"n = {curve.points[-1].n}, the largest, though the strategy costs more"
    elif WITHIN * point.tokens < curve.points[0].tokens:
        price = f"n = {curve.points[0].n}, the smallest, though the strategy costs less"
    verdict = "better" if moved.value > 0 else "worse"
    said = f"{verdict} than chance explains" if moved.clear else "chance may explain that"
    yield BudgetFinding(
        ("good" if moved.value > 0 else "warn") if moved.clear else "plain",
        f"`{point.label}` is right in {percent(point.value)} % for {_tokens(point.tokens)}; the best of the pool at "
        f"that price, `{curve.name}` ({price}), in {percent(float(values_P.mean()))} %: {_interval(moved)}, {said}.",
    )


def _by_difficulty(found: DifficultyChoice) -> BudgetFinding:
    gain = found.gain
    assert gain is not None and gain.low is not None and gain.high is not None
    clear = gain.low > 0 or gain.high < 0
    if all(set(one.choices) <= set(found.fixed) for one in found.bins) and gain.value == 0:
        text = f"At the price of {found.n} answers no difficulty wants another strategy than the others."
        return BudgetFinding("plain", text)
    said = "which chance may explain" if not clear else "more than chance explains"
    return BudgetFinding(
        "good" if clear and gain.value > 0 else "plain",
        f"Choosing the strategy by difficulty ({len(found.bins)} bins of the pass rate, at the price of {found.n} "
        f"answers; chosen on one half of the prompts, measured on the other) brings {_interval(gain)} over one "
        f"strategy for all, {said}.",
    )
