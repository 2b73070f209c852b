"""What a reward model's scores of held-out pairs say about it.

    scores = PairScores.of(chosen, rejected, tokens_chosen, tokens_rejected, rows)
    record = evaluate_reward(scores, untrained=before, probes={"empty": [...]}, seed=0)
    write_reward_evaluation(folder, record, scores, untrained=before)

It works on plain arrays, so any scorer can be judged: ours, a public one, a person. Writes

    reward_evaluation.json   figures with intervals, buckets, calibration, probes, agreement, findings
    reward_scores.jsonl      the rewards of both sides of each pair, after and before training

The pair is the unit that was drawn, so every interval is over pairs; both answers of a pair are drawn together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from posttrain.data.write import write_jsonl
from posttrain.errors import DataError, EmptyDatasetError
from posttrain.evaluate.agreement import agreement, pearson, ranks, spearman
from posttrain.evaluate.calibration import (
    accuracy,
    bins_for,
    confidence,
    confidence_gap,
    correct,
    error_by_chance,
    expected_calibration_error,
    reliability,
)
from posttrain.evaluate.probes import probe_figures
from posttrain.evaluate.reward_findings import find
from posttrain.intervals import Score, average, bootstrap, paired_difference
from posttrain.runs.folder import StageFolder
from posttrain.runs.records.evaluation import Figure, figures_of
from posttrain.runs.records.reward import (
    BucketAccuracy,
    Calibration,
    CalibrationBin,
    ChanceError,
    LengthFigures,
    PairRewards,
    RewardEvaluation,
)

SCHEMA = 1
FEWEST_OF_A_CATEGORY = 5
"""A category with fewer pairs has no line of its own: its interval would span nearly everything."""


@dataclass(frozen=True, slots=True)
class PairScores:
    """The rewards of both answers of P pairs.

    PairScores(chosen_P=[1.2, 0.3], rejected_P=[-0.4, 0.5], tokens_chosen_P=[12, 40], tokens_rejected_P=[9, 11],
               rows=("pairs.jsonl, row 1", "pairs.jsonl, row 2"), categories=("manners", None))
    """

    chosen_P: np.ndarray
    rejected_P: np.ndarray
    tokens_chosen_P: np.ndarray
    tokens_rejected_P: np.ndarray
    rows: tuple[str, ...]
    categories: tuple[str | None, ...]

    @classmethod
    def of(
        cls,
        chosen: Sequence[float] | np.ndarray,
        rejected: Sequence[float] | np.ndarray,
        tokens_chosen: Sequence[int] | np.ndarray,
        tokens_rejected: Sequence[int] | np.ndarray,
        rows: Sequence[object],
        categories: Sequence[str | None] | None = None,
    ) -> PairScores:
        """Arrays of one length, checked.

        Raises:
            EmptyDatasetError: no pairs.
            DataError: a reward that is not finite; it names the row.
        """
        names = tuple(str(row) for row in rows)
        kinds = tuple(categories) if categories is not None else (None,) * len(names)
        pairs = cls(
            np.asarray(chosen, dtype=float),
            np.asarray(rejected, dtype=float),
            np.asarray(tokens_chosen, dtype=float),
            np.asarray(tokens_rejected, dtype=float),
            names,
            kinds,
        )
        lengths = {len(pairs.chosen_P), len(pairs.rejected_P), len(pairs.tokens_chosen_P), len(pairs.tokens_rejected_P)}
        # A shorter array would be paired with the wrong rows, and every figure below would still look plausible.
        assert lengths == {len(names)} == {len(kinds)}, "one value of each kind per pair"
        if not names:
            raise EmptyDatasetError("there are no pairs to score", remedy="give the stage held-out pairs: `held_out`")
        odd = np.flatnonzero(~(np.isfinite(pairs.chosen_P) & np.isfinite(pairs.rejected_P)))
        if len(odd):
            raise DataError(
                "a reward is not finite",
                where=names[odd[0]],
                found=f"chosen {pairs.chosen_P[odd[0]]}, rejected {pairs.rejected_P[odd[0]]}; {len(odd)} such pairs",
                remedy="train with a lower learning rate or in fp32; the model that gave these scores is unusable",
            )
        return pairs

    @property
    def margins_P(self) -> np.ndarray:
        return self.chosen_P - self.rejected_P

    @property
    def rewards_P2(self) -> np.ndarray:
        """Both answers of each pair, the chosen one first."""
        return np.stack([self.chosen_P, self.rejected_P], axis=1)

    @property
    def tokens_P2(self) -> np.ndarray:
        return np.stack([self.tokens_chosen_P, self.tokens_rejected_P], axis=1)


# ---------------------------------------------------------------- the record


def evaluate_reward(
    scores: PairScores,
    *,
    untrained: PairScores | None = None,
    probes: Mapping[str, Sequence[float]] | None = None,
    others: Mapping[str, PairScores] | None = None,
    step: int = 0,
    probabilities: bool = True,
) -> RewardEvaluation:
    """All figures of one reward model.

    Args:
        untrained: the same rows scored before training, by the same backbone with its new head.
        probes: {"empty": [...]}: each probe's rewards, one per pair (or for the first pairs only); see
            `posttrain.evaluate.probes`.
        others: further reward models on the same rows, to agree with.
        step: the training step at which the model was scored; findings carry it.
        probabilities: whether sigmoid(margin) is meant as a probability, as Bradley-Terry and Plackett-Luce mean it. A
            model that was fitted to scores is not asked for its calibration.
    """
    # Probes are told in units of this model's own spread: reward models differ in scale by orders of magnitude.
    spread = float(scores.rewards_P2.std())
    record = RewardEvaluation(
        schema=SCHEMA,
        pairs=len(scores.rows),
        trained=figures_of(figures(scores)),
        untrained=None if untrained is None else figures_of(figures(untrained)),
        gain=None if untrained is None else Figure.of(gain(scores, untrained)),
        by_length=by_length(scores),
        by_category=by_category(scores),
        calibration=calibration(scores) if probabilities else None,
        length=length_figures(scores),
        probes=probe_figures(scores.chosen_P, _arrays(probes), spread),
        agreement={
            name: agreement(scores.rewards_P2, other.rewards_P2)
            for name, other in {**({"untrained": untrained} if untrained else {}), **(others or {})}.items()
        },
        findings=(),
    )
    return replace(record, findings=tuple(find(record, step=step)))


def write_reward_evaluation(
    folder: Path, record: RewardEvaluation, scores: PairScores, *, untrained: PairScores | None = None
) -> None:
    """reward_scores.jsonl, then reward_evaluation.json, whose presence therefore says that both are there."""
    write_jsonl(folder / PairRewards.FILE, (line.to_json() for line in score_lines(scores, untrained)))
    StageFolder(folder).write(record)


def score_lines(scores: PairScores, untrained: PairScores | None = None) -> list[PairRewards]:
    return [
        PairRewards(
            row=row,
            category=scores.categories[index],
            chosen=float(scores.chosen_P[index]),
            rejected=float(scores.rejected_P[index]),
            tokens_chosen=int(scores.tokens_chosen_P[index]),
            tokens_rejected=int(scores.tokens_rejected_P[index]),
            untrained_chosen=None if untrained is None else float(untrained.chosen_P[index]),
            untrained_rejected=None if untrained is None else float(untrained.rejected_P[index]),
        )
        for index, row in enumerate(scores.rows)
    ]


# ---------------------------------------------------------------- figures


def figures(scores: PairScores) -> dict[str, Score]:
    """What is said of any reward model.

    accuracy: share of pairs whose chosen answer scores higher, ties half. ties: share of equal pairs. mean, std: of
    all rewards. margin: chosen minus rejected. confidence: sigmoid(|margin|).
    """
    rewards, margins = scores.rewards_P2, scores.margins_P
    return {
        "accuracy": accuracy(margins),
        "mean": average(rewards.mean(axis=1)),
        "std": bootstrap(len(rewards), lambda index: rewards[index].std(axis=(-2, -1))),
        "mean_chosen": average(scores.chosen_P),
        "mean_rejected": average(scores.rejected_P),
        "margin": average(margins),
        "confidence": average(confidence(margins)),
        "ties": average(margins == 0),
    }


def gain(scores: PairScores, untrained: PairScores) -> Score:
    """Accuracy minus the untrained head's, over the same pairs.

    Raises:
        DataError: the two were not scored on the same rows.
    """
    if scores.rows != untrained.rows:
        raise DataError(
            "the trained and the untrained head were scored on other rows",
            found=f"{len(scores.rows)} and {len(untrained.rows)} pairs",
            remedy="score both on the same held-out pairs, in the same order",
        )
    # Paired: what is merely easy or hard about a pair is the same for both heads, and would widen the interval.
    return paired_difference(correct(untrained.margins_P), correct(scores.margins_P))


def calibration(scores: PairScores) -> Calibration:
    """The reliability curve and its error, beside the error that chance alone makes."""
    margins = scores.margins_P
    bins = bins_for(len(margins))
    chance, chance_high = error_by_chance(margins, bins)
    return Calibration(
        ece=expected_calibration_error(margins, bins),
        by_chance=ChanceError(chance, chance_high),
        gap=Figure.of(confidence_gap(margins)),
        bins=tuple(
            CalibrationBin(group.low, group.high, group.n, group.confidence, Figure.of(group.accuracy))
            for group in reliability(margins, bins)
        ),
    )


# ---------------------------------------------------------------- length and category


def by_length(scores: PairScores) -> tuple[BucketAccuracy, ...]:
    """Accuracy by how much longer the chosen answer is, cut at zero and at the median of the differences' sizes.

    A model that pays for length is right where the chosen answer is longer and wrong where it is shorter.
    """
    difference = scores.tokens_chosen_P - scores.tokens_rejected_P
    sizes = np.abs(difference[difference != 0])
    # The data's own median: fixed bounds would put all pairs of a set of short answers into one bucket.
    middle = float(np.median(sizes)) if len(sizes) else 0.0
    cut = f"{middle:g}"
    buckets = [
        (f"over {cut} shorter", difference < -middle),
        (f"up to {cut} shorter", (difference < 0) & (difference >= -middle)),
        ("as long", difference == 0),
        (f"up to {cut} longer", (difference > 0) & (difference <= middle)),
        (f"over {cut} longer", difference > middle),
    ]
    return tuple(_accuracy_of(scores, label, inside) for label, inside in buckets if inside.any())


def by_category(scores: PairScores) -> tuple[BucketAccuracy, ...]:
    """Accuracy of each category with at least five pairs, the largest category first."""
    names = np.array([name or "" for name in scores.categories])
    known, counts = np.unique(names[names != ""], return_counts=True)
    order = sorted(zip(known.tolist(), counts.tolist(), strict=True), key=lambda item: (-item[1], item[0]))
    return tuple(_accuracy_of(scores, name, names == name) for name, count in order if count >= FEWEST_OF_A_CATEGORY)


def _accuracy_of(scores: PairScores, label: str, inside: np.ndarray) -> BucketAccuracy:
    return BucketAccuracy(label, Figure.of(accuracy(scores.margins_P[inside])))


def length_figures(scores: PairScores) -> LengthFigures:
    """How far the reward is the length.

    correlation: Spearman's, of reward and tokens over all answers. margin_correlation: Spearman's, of the margin and
    the difference in tokens, within pairs. longer_chosen: how often the data's chosen answer is the longer one.
    longer_preferred: how often the model's is. Pairs of equal length count half in both.
    """
    difference = scores.tokens_chosen_P - scores.tokens_rejected_P
    margins = scores.margins_P
    # Ranked once, over all pairs: ranked anew in each resample it would cost 2,000 sorts.
    x, y = ranks(margins), ranks(difference)
    # +1 where the model prefers the longer answer, -1 the shorter, 0 for a tie of either; `accuracy` counts 0 half.
    preferred = np.sign(margins) * np.sign(difference)
    return LengthFigures(
        correlation=Figure.of(spearman(scores.rewards_P2, scores.tokens_P2)),
        margin_correlation=Figure.of(bootstrap(len(x), lambda index: pearson(x[index], y[index]))),
        longer_chosen=Figure.of(accuracy(difference)),
        longer_preferred=Figure.of(accuracy(preferred)),
    )


def _arrays(probes: Mapping[str, Sequence[float]] | None) -> dict[str, np.ndarray]:
    return {name: np.asarray(values, dtype=float) for name, values in (probes or {}).items()}
