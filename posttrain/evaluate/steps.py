"""What a process reward model's scores of held-out steps say about it.

    scores = StepScores.of([[2.1, -0.3], [0.4]], [[1.0, 0.0], [1.0]], rows)
    record = evaluate_steps(scores, untrained=before)
    write_step_evaluation(folder, record, scores, untrained=before)

It works on plain numbers, as `posttrain.evaluate.reward` does. Writes

    step_evaluation.json   figures with intervals, of the trained and of the untrained head
    step_scores.jsonl      the score and the label of each held-out step

A score above 0 calls a step right, a label from 0.5 on does. The response is the unit that was drawn: its steps are
drawn together, and every interval is over responses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from posttrain.data.write import write_jsonl
from posttrain.errors import DataError, EmptyDatasetError
from posttrain.intervals import Score, average, bootstrap, paired_difference
from posttrain.runs.folder import StageFolder
from posttrain.runs.records.evaluation import figures_of
from posttrain.runs.records.reward import StepEvaluation, StepRewards

SCHEMA = 1
RIGHT = 0.5


@dataclass(frozen=True, slots=True)
class StepScores:
    """The labelled steps of R responses, one after another.

    StepScores(score_S=[2.1, -0.3, 0.4], label_S=[1.0, 0.0, 1.0], response_S=[0, 0, 1],
               rows=("steps.jsonl, row 1", "steps.jsonl, row 2"))
    """

    score_S: np.ndarray
    label_S: np.ndarray
    response_S: np.ndarray
    rows: tuple[str, ...]

    @classmethod
    def of(
        cls, scores: Sequence[Sequence[float]], labels: Sequence[Sequence[float]], rows: Sequence[object]
    ) -> StepScores:
        """From lists by response, checked.

        Raises:
            EmptyDatasetError: no responses.
            DataError: a score that is not finite; it names the row.
        """
        assert len(scores) == len(labels) == len(rows), "one entry per response"
        if not rows:
            raise EmptyDatasetError("there are no steps to score", remedy="give the stage held-out rows: `held_out`")
        for own, labels_of_row, row in zip(scores, labels, rows, strict=True):
            assert len(own) == len(labels_of_row) >= 1, "a label for each score"
            if not np.isfinite(own).all():
                raise DataError(
                    "the score of a step is not finite",
                    where=str(row),
                    found=str(list(own)),
                    remedy="train with a lower learning rate or in fp32; the model that gave these scores is unusable",
                )
        response_S = np.repeat(np.arange(len(rows)), [len(own) for own in scores])
        return cls(
            np.concatenate([np.asarray(own, float) for own in scores]),
            np.concatenate([np.asarray(labels_of_row, float) for labels_of_row in labels]),
            response_S,
            tuple(str(row) for row in rows),
        )

    @property
    def right_S(self) -> np.ndarray:
        return self.label_S >= RIGHT

    def per_response(self, values_S: np.ndarray) -> np.ndarray:
        """Sums over each response's steps, [R]."""
        return np.bincount(self.response_S, weights=values_S, minlength=len(self.rows))

    def first(self, wrong_S: np.ndarray) -> np.ndarray:
        """Place in S of each response's first wrong step, [R]; S where it has none."""
        # S stands for "none": two responses without a wrong step then compare as equal, which is what is wanted.
        place_R = np.full(len(self.rows), len(wrong_S))
        np.minimum.at(place_R, self.response_S[wrong_S], np.flatnonzero(wrong_S))
        return place_R


def evaluate_steps(scores: StepScores, *, untrained: StepScores | None = None) -> StepEvaluation:
    """All figures of one process reward model.

    Args:
        untrained: the same rows scored before training, by the same backbone with a random head.

    Raises:
        DataError: the two were not scored on the same rows.
    """
    return StepEvaluation(
        schema=SCHEMA,
        responses=len(scores.rows),
        steps=len(scores.score_S),
        trained=figures_of(figures(scores)),
        untrained=None if untrained is None else figures_of(figures(untrained)),
        gain=None if untrained is None else figures_of(gains(scores, untrained)),
    )


def write_step_evaluation(
    folder: Path, record: StepEvaluation, scores: StepScores, *, untrained: StepScores | None = None
) -> None:
    """step_scores.jsonl, then step_evaluation.json, whose presence therefore says that both are there."""
    lines = []
    for index, row in enumerate(scores.rows):
        own = scores.response_S == index
        before = None if untrained is None else tuple(untrained.score_S[own].tolist())
        line = StepRewards(row, tuple(scores.score_S[own].tolist()), tuple(scores.label_S[own].tolist()), before)
        lines.append(line.to_json())
    write_jsonl(folder / StepRewards.FILE, lines)
    StageFolder(folder).write(record)


# ---------------------------------------------------------------- figures


def figures(scores: StepScores) -> dict[str, Score]:
    """What is said of any process reward model.

    step_accuracy: share of steps on whose side the score is, ties half. first_error_accuracy: share of responses whose
    first step with a score below 0 is their first wrong one, or that have neither. error_found, no_error_found: the
    same of the responses with, and of those without a wrong step; absent where there are none. first_error_f1: the
    harmonic mean of these two (Zheng et al. 2024, ProcessBench, arXiv:2412.06559). right_steps: share of steps that are
    labelled right, the accuracy of a model that calls every step right. mean, std: of the scores.
    """
    ones_S = np.ones(len(scores.score_S))
    right, first_right = _judged(scores), _found(scores)
    faulty = scores.per_response((~scores.right_S).astype(float)) > 0
    known = {
        "step_accuracy": _ratio(scores, right, ones_S),
        "first_error_accuracy": average(first_right),
        "right_steps": _ratio(scores, scores.right_S.astype(float), ones_S),
        "mean": _ratio(scores, scores.score_S, ones_S),
        "std": Score(float(scores.score_S.std()), float("nan"), float("nan"), len(scores.rows)),
    }
    for name, members in (("error_found", faulty), ("no_error_found", ~faulty)):
        if members.any():
            known[name] = average(first_right[members])
    # The F1 of two accuracies needs both: without correct responses it would be 0 whatever the model does.
    if faulty.any() and not faulty.all():
        known["first_error_f1"] = bootstrap(len(first_right), lambda index: _f1(first_right[index], faulty[index]))
    return known


def gains(scores: StepScores, untrained: StepScores) -> dict[str, Score]:
    """Both accuracies minus the untrained head's, over the same responses."""
    if scores.rows != untrained.rows or not np.array_equal(scores.label_S, untrained.label_S):
        raise DataError(
            "the trained and the untrained head were scored on other rows",
            found=f"{len(scores.rows)} and {len(untrained.rows)} responses",
            remedy="score both on the same held-out rows, in the same order",
        )
    return {
        "step_accuracy": _ratio(scores, _judged(scores) - _judged(untrained), np.ones(len(scores.score_S))),
        "first_error_accuracy": paired_difference(_found(untrained), _found(scores)),
    }


def _judged(scores: StepScores) -> np.ndarray:
    """1 for a step on whose side the score is, 1/2 for a score of 0, [S]."""
    # (sign + 1) / 2 maps right, zero and wrong to 1, 1/2 and 0 without a branch per step.
    return (np.sign(np.where(scores.right_S, scores.score_S, -scores.score_S)) + 1) / 2


def _found(scores: StepScores) -> np.ndarray:
    """1 for a response whose first error is found, or that is seen to have none, [R]."""
    return (scores.first(scores.score_S < 0) == scores.first(~scores.right_S)).astype(float)


def _ratio(scores: StepScores, values_S: np.ndarray, counts_S: np.ndarray) -> Score:
    """A mean over steps whose interval is over responses."""
    # Steps of one response stand or fall with each other, so whole responses are resampled (a cluster bootstrap).
    sums_R, counts_R = scores.per_response(values_S), scores.per_response(counts_S)
    return bootstrap(len(scores.rows), lambda index: sums_R[index].sum(axis=-1) / counts_R[index].sum(axis=-1))


def _f1(right: np.ndarray, faulty: np.ndarray) -> np.ndarray:
    """Harmonic mean of the accuracies with and without a wrong step; 0 where a resample lacks one of them."""
    accuracies = []
    for members in (faulty, ~faulty):
        counts = members.sum(axis=-1)
        accuracies.append(np.where(members, right, 0).sum(axis=-1) / np.maximum(counts, 1))
    both = accuracies[0] + accuracies[1]
    return np.asarray(2 * accuracies[0] * accuracies[1] / np.where(both == 0, 1, both))
