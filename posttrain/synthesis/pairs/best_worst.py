"""The policy's best and worst answer to a prompt, by a score: on-policy pairs, as rounds of DPO take them.

    pair(x) = (y_i, y_j) with the largest s_i - s_j >= margin           Yuan et al. 2024, arXiv:2401.10020
    and further ones, right against wrong                               Pang et al. 2024, arXiv:2404.19733

Equal scores make no pair, whatever the margin: nothing says which of the two is better. Of equal differences the
earlier draws count.
"""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.config.pairs import BestWorst
from posttrain.data.origin import Origin
from posttrain.synthesis.attempts import Attempt, sampled_as
from posttrain.synthesis.pairs.made import Made
from posttrain.types import Task


def pair_best_and_worst(
    made: Made, task: Task, attempts: Sequence[Attempt], settings: BestWorst, *, model: str, seed: int
) -> None:
    """The pairs of one prompt, and why there are none."""
    for attempt in attempts:
        if attempt.reason is not None:
            made.skip(task, attempt.reason, attempt.text)
    fit = different(attempts)
    if len(fit) < 2:
        made.skip(task, "same_text" if _all_say_one(attempts) else "one_answer", fit[0].text if fit else "")
        return
    ranked = ranked_pairs(fit, settings.pairs_per_prompt)
    if not ranked:
        made.skip(task, "same_score", fit[0].text)
        return
    wide = [(best, worst) for best, worst in ranked if _score(best) - _score(worst) >= settings.margin]
    if not wide:
        made.skip(task, "small_margin", ranked[0][0].text)
    for best, worst in wide:
        origin = Origin(
            "pairs/best_worst",
            model=model,
            source=str(task.row),
            sampling=sampled_as(settings, best),
            seed=seed,
            scores={"chosen": _score(best), "rejected": _score(worst)},
            details={
                "of": len(attempts),
                "attempts": [attempts.index(best) + 1, attempts.index(worst) + 1],
                "rejected_temperature": sampled_as(settings, worst)["temperature"],
            },
        )
        scores = (_score(best), _score(worst))
        made.pair(task, chosen=best.text, rejected=worst.text, origin=origin, scores=scores)


def different(attempts: Sequence[Attempt]) -> list[Attempt]:
    """Those that may make a row, each text once: of the same text the first draw."""
    first: dict[str, Attempt] = {}
    for attempt in attempts:
        if attempt.reason is None:
            first.setdefault(attempt.text.strip(), attempt)
    return list(first.values())


def ranked_pairs(attempts: Sequence[Attempt], most: int | None = 1) -> list[tuple[Attempt, Attempt]]:
    """(better, worse), the largest difference of scores first, of equal ones the earlier draws; `most` of them."""
    places = range(len(attempts))
    if most == 1:  # the usual case, without looking at all pairs of thousands of answers
        best = max(places, key=lambda at: (_score(attempts[at]), -at))
        worst = min(places, key=lambda at: (_score(attempts[at]), at))
        found = [(best, worst)] if _score(attempts[best]) > _score(attempts[worst]) else []
    else:
        found = [(i, j) for i in places for j in places if _score(attempts[i]) > _score(attempts[j])]
        found.sort(key=lambda pair: (_score(attempts[pair[1]]) - _score(attempts[pair[0]]), pair))
    return [(attempts[i], attempts[j]) for i, j in found[:most]]


def _all_say_one(attempts: Sequence[Attempt]) -> bool:
    return sum(attempt.reason is None for attempt in attempts) > 1


def _score(attempt: Attempt) -> float:
    assert attempt.score is not None, "an attempt without a reason was judged"
    return attempt.score
