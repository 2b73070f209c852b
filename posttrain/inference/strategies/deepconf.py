"""DeepConf: answers vote by how confident the model was while it wrote them; the least confident do not.

    C_i  = -1/k sum over the k likeliest tokens of log p_i      a token's confidence: high where the rest is unlikely
    G_i  = mean of C over the w tokens up to i                  a group's
    C_t  = min_i G_i  (`lowest`)                                an answer's; also `bottom`, `tail`, `mean`
    s    = the (1 - keep) quantile of C_t;  argmax_a sum over the answers with C_t >= s that say a of C_t
                                                                Fu et al. 2025, arXiv:2508.15260, sections 3 and 4

offline (`warmup: null`)   n whole answers; s is the quantile of those that vote.
online (`warmup: m`)       s is the quantile of the first m, which are drawn whole. Each later draw is ended at the
                           token at which a full group falls below s, and has no vote; its tokens until then are
                           counted. Draws end when the votes agree to `consensus`.

Log-probs are raw (temperature 1), whatever the answers are drawn with, as vLLM gives them.

Deviations:
1. A token's confidence is rounded to thousandths, as the authors' code does, and summed in whole numbers: draws with
   equal ids then have equal confidences, which the last digits of a batch would tell apart at the threshold.
2. The authors' code averages one more log-prob where the sampled token is not among the k likeliest; we keep to k.
3. Answers that end on nothing are left out before the quantile is taken offline (theirs too), not of the warm-up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from posttrain.config.strategies import DeepConf
from posttrain.inference.answers import Equality
from posttrain.inference.choosing import Vote, candidates, vote_of
from posttrain.inference.drawing import ENDED_EARLY
from posttrain.inference.solution import Node, Solution, Stopped
from posttrain.inference.solving import Solving, SpendingEnded
from posttrain.inference.strategies.self_consistency import representative
from posttrain.rollout.engine import Alternatives, SampledToken


async def solve(solving: Solving, settings: DeepConf) -> Solution:
    equality = solving.asked.equality(settings.answers)
    stopped, threshold = Stopped.DONE, None
    try:
        drawn = await solving.sample(settings.warmup or settings.n, alternatives=settings.top)
        if settings.warmup is not None:
            threshold = quantile([_judged(node, settings) for node in drawn], 1 - settings.keep)
            stopped = await _draw_the_rest(solving, settings, equality, threshold)
    except SpendingEnded as ended:
        stopped = ended.reason
    answers = [node for node in candidates(solving, stopped) if node.note != ENDED_EARLY]
    for node in solving.nodes:
        _judged(node, settings)
    if threshold is None:
        voting = [node for node in answers if equality.final(node.answer) is not None]
        threshold = quantile([node.scores["confidence"] for node in voting], 1 - settings.keep) if voting else 0.0
    return _elected(solving, settings, equality, stopped, answers, threshold)


async def _draw_the_rest(solving: Solving, settings: DeepConf, equality: Equality, threshold: float) -> Stopped:
    """Draws after the warm-up, each ended once it falls below the threshold, until the votes agree."""
    while (left := settings.n - len(solving.nodes)) > 0:
        whole = [node for node in solving.nodes if node.note != ENDED_EARLY]
        if settings.consensus is not None and _vote(whole, equality, threshold)[1].share >= settings.consensus:
            return Stopped.AGREED
        drawn = await solving.sample(
            min(settings.at_once, left), alternatives=settings.top, watch=lambda: Falling(threshold, settings.group)
        )
        for node in drawn:
            _judged(node, settings)
    return Stopped.DONE


def _vote(answers: Sequence[Node], equality: Equality, threshold: float) -> tuple[list[Node], Vote]:
    """The answers that are confident enough, and their vote."""
    kept = [node for node in answers if node.scores["confidence"] >= threshold]
    return kept, vote_of(kept, equality, [node.scores["confidence"] for node in kept])


def _elected(
    solving: Solving,
    settings: DeepConf,
    equality: Equality,
    stopped: Stopped,
    answers: Sequence[Node],
    threshold: float,
) -> Solution:
    kept, vote = _vote(answers, equality, threshold)
    facts: dict[str, Any] = {
        "answers": len(solving.nodes),
        "ended_early": sum(node.note == ENDED_EARLY for node in solving.nodes),
        "voting": sum(number is not None for number in vote.numbers),
        "votes": vote.count,
        "share": vote.share,
        "threshold": threshold,
    }
    members = [kept[place] for place in vote.members] or kept[:1] or answers[:1] or solving.nodes[:1]
    return solving.solution(representative(members, settings) if members else None, stopped, answer=None, **facts)


# ---------------------------------------------------------------- confidence


def token_confidence(alternatives: Alternatives) -> int:
    """C_i in thousandths of a nat: 1000 * mean of -log p over the likeliest tokens."""
    # A token that a model can never say has no log-prob to average.
    values = [logprob for _, logprob in alternatives.top if logprob > float("-inf")]
    return round(-1000 * sum(values) / len(values))


def _groups(values: Sequence[int], group: int) -> list[float]:
    """Mean confidence of each run of `group` tokens, in nats; of all, where there are fewer."""
    size = min(group, len(values))
    sums = np.cumsum([0, *values])
    return [int(total) / size / 1000 for total in sums[size:] - sums[:-size]] if size else [0.0]


def confidence(node: Node, settings: DeepConf) -> float:
    """C_t of an answer, in nats."""
    values = [token_confidence(one) for one in node.alternatives]
    if settings.confidence == "mean":
        return _groups(values, len(values))[0]
    if settings.confidence == "tail":
        return _groups(values[-settings.group :], settings.group)[0]
    groups = sorted(_groups(values, settings.group))
    share = max(1, len(groups) // 10) if settings.confidence == "bottom" else 1
    return sum(groups[:share]) / share


def _judged(node: Node, settings: DeepConf) -> float:
    if "confidence" not in node.scores:
        node.scores["confidence"] = confidence(node, settings)
    return node.scores["confidence"]


def quantile(values: Sequence[float], share: float) -> float:
    """Linear between the two nearest values, as numpy has it."""
    # A hair above a value that it equals would leave out the very answer that it was read from.
    return min(float(np.quantile(values, share)), max(values))


class Falling:
    """Watches a draw: true once the last `group` tokens' mean confidence is below the threshold."""

    def __init__(self, threshold: float, group: int):
        self.threshold = threshold
        self.window: deque[int] = deque(maxlen=group)
        self.total = 0

    def __call__(self, token: SampledToken) -> bool:
        assert token.alternatives is not None, "the draws ask for alternatives"
        size = self.window.maxlen
        assert size is not None
        if len(self.window) == size:
            self.total -= self.window[0]
        self.window.append(token_confidence(token.alternatives))
        self.total += self.window[-1]
        return len(self.window) == size and self.total / size / 1000 < self.threshold
