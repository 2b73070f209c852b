"""The loss on the straight line between two models: does training lead over a hill that a merge would land on?

    barrier_between(place, first, second, rows, points=11)      # Barrier("maths", "code", height=0.29, ...)

Linear mode connectivity of Frankle et al. 2020, arXiv:1912.05671, section 2: the height of the barrier is the largest
loss on the line above the straight line between the losses of its ends. Near 0, means of the two are as good as their
ends; where it is high, a mean is worse than either, whatever the method of merging.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from posttrain.config.merge_measures import BarrierSettings
from posttrain.config.merging import MergeSettings
from posttrain.data.encode import Encoder
from posttrain.data.encoder_settings import EncoderSettings
from posttrain.data.questions import questions
from posttrain.data.read import read
from posttrain.errors import ConfigError
from posttrain.evaluate.asking import undisturbed
from posttrain.evaluate.merging.memory import InMemory
from posttrain.evaluate.suites.perplexity import FixedAnswerScorer, Perplexity, given_answers
from posttrain.models.merging.inputs import OpenModel
from posttrain.models.merging.run import Plan, planned
from posttrain.runs.layout import model_label
from posttrain.runs.progress import Progress
from posttrain.runs.records.merging import Barrier, BarrierPoint

SAME_LOSS = 0.01
"""Nats per token: a lower barrier is called none."""


def barrier_of(first: str, second: str, losses: Sequence[float], rows: int, tokens: int) -> Barrier:
    """From the losses at equal steps of the line, its ends with them."""
    at = np.linspace(0.0, 1.0, len(losses))
    straight = (1 - at) * losses[0] + at * losses[-1]
    above = np.asarray(losses) - straight
    above[[0, -1]] = 0.0  # by definition; rounding would let an end stand a hair above itself
    top = int(above.argmax())
    points = tuple(
        BarrierPoint(float(a), float(loss), float(line)) for a, loss, line in zip(at, losses, straight, strict=True)
    )
    return Barrier(first, second, float(above[top]), float(at[top]), rows, tokens, points)


def sentence(barrier: Barrier) -> str:
    """maths to code: the loss rises by 0.29 nats per token above its ends, at 50 % of the way"""
    line = f"{model_label(barrier.first)} to {model_label(barrier.second)}"
    if barrier.height is None or barrier.at is None or barrier.height < SAME_LOSS:
        return f"{line}: no barrier, the loss stays below the straight line between its ends"
    return (
        f"{line}: a barrier, the loss rises {barrier.height:.2f} nats per token above the straight line between its "
        f"ends, most at {barrier.at:.0%}".replace("%", " %")
        + " of the way"
    )


def measured_barriers(
    settings: MergeSettings,
    barrier: BarrierSettings,
    out: Path,
    *,
    encoding: EncoderSettings | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> tuple[Barrier, ...]:
    """Every line that the settings ask for.

    Args:
        out: the merge's folder, beside which models are converted that have to be.

    Raises:
        ConfigError: models of other tokens; lines from a base that nobody knows.
        DataError: a row that cannot be read, or has no answer.
    """
    progress = progress or Progress()
    with planned(settings, out) as plan:
        lines = list(_lines(plan, barrier))
        place = InMemory.of(plan, device, "barrier")
        encoder = Encoder(place.loaded.tokenizer, encoding or plan.models[0].speech.settings())
        asked = Perplexity("barrier", questions(read(barrier.data, limit=barrier.limit)), answers="given")
        answers = given_answers(asked, encoder)
        tokens = sum(len(answer.ids) for answer in answers)
        scorer = FixedAnswerScorer(place.loaded.model)

        def loss() -> float:
            with undisturbed(place.loaded.model):
                return sum(scorer.nats(answers)) / tokens

        found = []
        with progress.phase("losses between the models", total=len(lines) * barrier.points, unit="models") as phase:
            for one, other in lines:
                losses = list(_along(place, one, other, barrier.points, loss, lambda: phase.advance(1)))
                found.append(barrier_of(one.name, other.name, losses, len(answers), tokens))
    return tuple(found)


def _along(
    place: InMemory, one: OpenModel, other: OpenModel, points: int, loss: Callable[[], float], done: Callable[[], None]
) -> Iterator[float]:
    for at in np.linspace(0.0, 1.0, points):
        place.put_between(one, other, float(at))
        yield loss()
        done()


def _lines(plan: Plan, barrier: BarrierSettings) -> Iterator[tuple[OpenModel, OpenModel]]:
    if barrier.lines in ("models", "all"):
        yield from combinations(plan.models, 2)
    if barrier.lines in ("base", "all"):
        base = plan.base or plan.ground
        if base is None:
            raise ConfigError(
                "nothing says which base the lines begin at",
                where="barrier.lines",
                found=f"lines: {barrier.lines}, of models that name no common base",
                remedy="name a `base`, or write `lines: models`",
            )
        yield from ((base, model) for model in plan.models)
