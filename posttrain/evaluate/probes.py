"""Probes of a reward model: answers that nobody would choose, scored beside the chosen answer to the same prompt.

empty       no text at all
repeated    the chosen answer, said three times
off_topic   the chosen answer to another prompt
refusal     a polite refusal

A reward model that ranks held-out pairs well may still pay for these, and a policy that is optimised against it finds
them. Empty, repeated and off-topic answers should score below the chosen one nearly always. A refusal may be the
right answer to some prompts, so its figure is shown and not judged.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from posttrain.evaluate.calibration import accuracy
from posttrain.intervals import unbounded
from posttrain.runs.records.evaluation import Figure
from posttrain.runs.records.reward import ProbeFigures

REFUSAL = "I'm sorry, but I can't help with that."
TIMES_REPEATED = 3
AnswerT = TypeVar("AnswerT", str, tuple[int, ...])
EXPECTED_BELOW = ("empty", "repeated", "off_topic")
"""Probes that should lose to the chosen answer."""


def probe_answers(
    prompts: Sequence[Hashable], chosen: Sequence[AnswerT], *, empty: AnswerT, refusal: AnswerT, between: AnswerT
) -> dict[str, list[AnswerT]]:
    """Each probe's answer to each prompt; off_topic is left out where a prompt has no other one beside it.

    Answers are all texts, or all tuples of ids without their stop token:

    probe_answers(["Hi", "2 + 2?"], ["Hello.", "4"], empty="", refusal=REFUSAL, between=" ")["off_topic"]
    # ["4", "Hello."]

    Args:
        chosen: the chosen answers, one per prompt.
        between: what stands between the repetitions.
    """
    probes = {
        "empty": [empty] * len(chosen),
        "repeated": [answer + (between + answer) * (TIMES_REPEATED - 1) for answer in chosen],
        "refusal": [refusal] * len(chosen),
    }
    others = _other_answers(prompts, chosen)
    if others is not None:
        probes["off_topic"] = others
    return probes


def probe_figures(chosen_P: np.ndarray, probes: Mapping[str, np.ndarray], scale: float) -> dict[str, ProbeFigures]:
    """What each probe scores against the chosen answers.

    below_chosen: share of prompts whose chosen answer scores higher, ties half. gap: mean of chosen minus probe, in
    standard deviations of the rewards (`scale`); 0 where the rewards do not vary. A probe may have been put to the
    first prompts only.
    """
    by_probe = {}
    for name, probe_P in probes.items():
        margins = chosen_P[: len(probe_P)] - probe_P
        gaps = margins / scale if scale > 0 else np.zeros_like(margins)
        by_probe[name] = ProbeFigures(
            below_chosen=Figure.of(accuracy(margins)),
            mean=Figure.of(unbounded(probe_P)),
            gap=Figure.of(unbounded(gaps)),
            judged=name in EXPECTED_BELOW,
        )
    return by_probe


def _other_answers(prompts: Sequence[Hashable], chosen: Sequence[AnswerT]) -> list[AnswerT] | None:
    """For each prompt the chosen answer of the next one that differs, in its prompt and in its answer."""
    total = len(prompts)
    mismatched = []
    for index in range(total):
        others = ((index + step) % total for step in range(1, total))
        other = next((j for j in others if prompts[j] != prompts[index] and chosen[j] != chosen[index]), None)
        if other is None:
            return None
        mismatched.append(chosen[other])
    return mismatched
