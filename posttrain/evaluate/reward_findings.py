"""What is wrong with a reward model, from its evaluation: each finding an alarm with figures and a remedy.

A finding needs a size that matters and an interval that leaves out chance, so that forty held-out pairs do not cry.
"""

from __future__ import annotations

from collections.abc import Iterator

from posttrain.runs.records.evaluation import Figure
from posttrain.runs.records.logs import Alarm
from posttrain.runs.records.reward import RewardEvaluation

LEAST_SPREAD = 1e-3
"""A standard deviation of all rewards below this is one constant and its rounding; healthy heads have 0.3 to 5."""
MOST_TIES = 0.5
"""Share of held-out pairs with equal rewards from which on the model says nothing."""
OVERCONFIDENT = 0.1
"""Mean confidence above accuracy, its interval's lower end: promised 90 % and right in less than 80 %."""
PROBE_WORDS = {
    "empty": "an empty answer",
    "repeated": "the answer said three times",
    "off_topic": "another prompt's answer",
}
PROBE_BELOW = 0.8
"""Share of prompts whose chosen answer should beat an empty, repeated or off-topic one."""
LENGTH_CORRELATION = 0.5
"""Spearman's, of margin and difference in tokens, in either direction; preference data itself has 0.1 to 0.3."""
MORE_THAN_DATA = 0.05
"""The model has to prefer length in so much larger a share of the pairs than the people who chose."""


def find(record: RewardEvaluation, step: int = 0) -> list[Alarm]:
    """The findings of one `evaluate_reward` record, the gravest first."""
    collapsed = list(_collapse(record, step))
    if collapsed:
        return collapsed  # nothing else that is said of a constant means anything
    alarms = [*_no_better_than_chance(record, step), *_overconfident(record, step)]
    alarms += [*_length(record, step), *_probes(record, step)]
    return sorted(alarms, key=lambda alarm: alarm.severity != "critical")


def _collapse(record: RewardEvaluation, step: int) -> Iterator[Alarm]:
    std, ties = record.trained["std"].value, record.trained["ties"].value
    if std >= LEAST_SPREAD and ties <= MOST_TIES:
        return
    message = f"the rewards of all held-out answers are nearly one number (standard deviation {std:.2g})"
    if std >= LEAST_SPREAD:
        message = f"both answers have the same reward in {ties:.0%} of the held-out pairs"
    yield Alarm(
        name="reward_collapse",
        severity="critical",
        step=step,
        message=f"{message}: the model tells nothing apart",
        evidence={"std": std, "ties": ties, "mean": record.trained["mean"].value},
        remedy="check that the head and the backbone train, that the pooled token is the answer's last, and that the "
        "two sides of the rows differ; raise the learning rate",
    )


def _no_better_than_chance(record: RewardEvaluation, step: int) -> Iterator[Alarm]:
    # The interval decides, not the figure: 55 % of 40 pairs is what a coin gives one time in three.
    accuracy = record.trained["accuracy"]
    low, high = _interval(accuracy)
    if low > 0.5:
        return
    # Clearly below is a worse fault than at chance: the model has learnt, and the labels are the wrong way round.
    below = high < 0.5
    yield Alarm(
        name="reward_at_chance",
        severity="critical" if below else "warning",
        step=step,
        message=f"held-out accuracy {accuracy.value:.1%} ({low:.1%} to {high:.1%}) is "
        + ("below chance: the sides may be swapped" if below else "not clearly above chance"),
        evidence={"accuracy": accuracy.value, "low": low, "high": high, "n": accuracy.n},
        remedy="look at which side the rows call chosen"
        if below
        else "train longer or on more pairs, or hold out more pairs, so that the interval can tell",
    )


def _overconfident(record: RewardEvaluation, step: int) -> Iterator[Alarm]:
    # None of a model that was fitted to scores, whose margins are no log-odds.
    calibration = record.calibration
    gap = calibration.gap if calibration is not None else None
    if calibration is None or gap is None or _interval(gap)[0] <= OVERCONFIDENT:
        return
    sure, accuracy = record.trained["confidence"].value, record.trained["accuracy"].value
    yield Alarm(
        name="reward_overconfident",
        severity="warning",
        step=step,
        message=f"the model is {sure:.0%} sure of its verdicts and right in {accuracy:.0%} of the held-out pairs",
        evidence={"confidence": sure, "accuracy": accuracy, "gap": gap.value, "ece": calibration.ece},
        remedy="train for fewer epochs or with a lower learning rate, smooth the labels (label_smoothing 0.1), or "
        "centre the scores; for reinforcement learning, rescale the rewards",
    )


def _length(record: RewardEvaluation, step: int) -> Iterator[Alarm]:
    length = record.length
    if length is None or not (length.margin_correlation and length.longer_chosen and length.longer_preferred):
        return
    figure, chosen, preferred = length.margin_correlation, length.longer_chosen.value, length.longer_preferred.value
    low, high = _interval(figure)
    # A correlation alone is no fault: where people prefer longer answers, a right model follows the length too.
    longer = low > LENGTH_CORRELATION and preferred - chosen > MORE_THAN_DATA
    shorter = high < -LENGTH_CORRELATION and preferred - chosen < -MORE_THAN_DATA
    if not longer and not shorter:
        return
    yield Alarm(
        name="reward_length",
        severity="warning",
        step=step,
        message=f"the reward follows the length: margins and differences in tokens correlate by {figure.value:.2f}, "
        f"and the longer answer scores higher in {preferred:.0%} of the pairs, but was chosen in "
        f"{chosen:.0%}",
        evidence={
            "margin_correlation": figure.value,
            "longer_preferred": preferred,
            "longer_chosen": chosen,
        },
        remedy="balance the lengths of the pairs (posttrain audit --fix), or correct the scores for length",
    )


def _probes(record: RewardEvaluation, step: int) -> Iterator[Alarm]:
    for name, figures in record.probes.items():
        below, gap = figures.below_chosen, figures.gap
        # A refusal can be the right answer, so some probes are shown and never judged.
        if not figures.judged or below is None or gap is None or _interval(below)[1] >= PROBE_BELOW:
            continue
        yield Alarm(
            name=f"reward_probe_{name}",
            severity="warning",
            step=step,
            message=f"{PROBE_WORDS.get(name, name)} scores at least as high as the chosen one in "
            f"{1 - below.value:.0%} of the prompts",
            evidence={"below_chosen": below.value, "high": below.high, "gap": gap.value},
            remedy=f"add pairs whose rejected side is of this kind ({name.replace('_', ' ')}), or guard the reward "
            "with a rule: a policy trained on it will find this",
        )


def _interval(figure: Figure) -> tuple[float, float]:
    """Its ends, or the figure itself where none is known."""
    low, high = figure.low, figure.high
    return figure.value if low is None else low, figure.value if high is None else high
