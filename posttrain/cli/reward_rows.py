"""What `posttrain score` computes: the rows of its output, and one line about them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from posttrain.data.read import Examples
from posttrain.evaluate.reward_bench import BenchRow, score_reward_bench
from posttrain.evaluate.steps import RIGHT
from posttrain.losses.reward_rule import Combine
from posttrain.models.devices import device_of
from posttrain.models.folders.own_code import ModelCode
from posttrain.models.reward.scoring import RewardModel, ensemble_rating, load_reward
from posttrain.runs.progress import Phase, Progress
from posttrain.runs.records.reward_bench import RewardBench
from posttrain.types import Comparison, Example, StepwiseFeedback


def open_models(
    names: Sequence[str], head: str | None, progress: Progress, model_code: ModelCode = "refuse"
) -> list[RewardModel]:
    return [load_reward(name, head=head, device=device_of(), model_code=model_code, say=progress.say) for name in names]


def scored_rows(
    models: Sequence[RewardModel],
    examples: Examples | Sequence[Example],
    how: Combine,
    std_weight: float,
    head: str | None,
    normalised: bool,
    phase: Phase,
) -> Iterator[dict[str, Any]]:
    """One record per row; every model sees a window of rows before any sees the next."""
    passes = [model.score_rows(examples, head=head, normalised=normalised) for model in models]
    for example, *ratings in zip(examples, *passes, strict=True):
        rating = ensemble_rating(ratings, how, std_weight) if len(ratings) > 1 else ratings[0]
        phase.advance(1, tokens=len(ratings) * sum(rating.tokens))
        record: dict[str, Any] = {
            "row": str(rating.row),
            "rewards": list(rating.rewards),
            "tokens": list(rating.tokens),
        }
        best = best_of(example)
        if best is not None:
            record["best"] = best
        if rating.steps is not None:
            record["steps"] = [list(steps) for steps in rating.steps]
            if isinstance(example, StepwiseFeedback):
                record["labels"] = list(example.labels)
        if len(ratings) > 1:
            record["by_model"] = {model.name: list(r.rewards) for model, r in zip(models, ratings, strict=True)}
        yield record


def best_of(example: Example) -> int | None:
    """Which response the row calls best; None where it says nothing."""
    if not isinstance(example, Comparison):
        return None
    return example.ranking[0] if example.ranking else example.winner


class Tally:
    """What the rewards of a file are like, in one line; it counts records as they pass."""

    def __init__(self) -> None:
        self.rewards = 0
        self.sum = self.squares = 0.0
        self.judged = 0
        self.right = 0.0
        self.steps = self.responses = 0
        self.steps_right = self.found = 0.0

    def counted(self, record: dict[str, Any]) -> dict[str, Any]:
        rewards = record["rewards"]
        self.rewards += len(rewards)
        self.sum += sum(rewards)
        self.squares += sum(reward * reward for reward in rewards)
        if "best" in record:
            best = record["best"]
            others = [reward for index, reward in enumerate(rewards) if index != best]
            self.judged += len(others)
            self.right += sum((reward < rewards[best]) + 0.5 * (reward == rewards[best]) for reward in others)
        if "labels" in record:
            self._count_steps(record["steps"][0], record["labels"])
        return record

    def _count_steps(self, scores: Sequence[float], labels: Sequence[float | None]) -> None:
        known = [(score, label >= RIGHT) for score, label in zip(scores, labels, strict=True) if label is not None]
        self.steps += len(known)
        self.steps_right += sum(0.5 if score == 0 else (score > 0) == right for score, right in known)
        wrong = [place for place, (_, right) in enumerate(known) if not right]
        called = [place for place, (score, _) in enumerate(known) if score < 0]
        self.responses += 1
        self.found += wrong[:1] == called[:1]

    def __str__(self) -> str:
        mean = self.sum / max(1, self.rewards)
        spread = max(0.0, self.squares / max(1, self.rewards) - mean * mean) ** 0.5
        line = f"mean reward {mean:.3f}, standard deviation {spread:.3f}"
        if self.steps:
            line += f", {self.steps_right / self.steps:.1%} of {self.steps:,} steps judged right"
            line += f", the first error found (or that there is none) in {self.found / self.responses:.1%}"
        return line + (
            f", the best response has the higher reward in {self.right / self.judged:.1%}" if self.judged else ""
        )


class BenchTally:
    """What RewardBench 2 says of the rewards; it keeps those of every record as it passes."""

    def __init__(self, rows: Sequence[BenchRow]):
        self.rows = rows
        self.rewards: list[Sequence[float]] = []

    def counted(self, record: dict[str, Any]) -> dict[str, Any]:
        row = self.rows[len(self.rewards)]
        self.rewards.append(record["rewards"])
        # More than one answer may be right, so that none is the best.
        return {
            **{key: value for key, value in record.items() if key != "best"},
            "subset": row.subset,
            "id": row.id,
            "right": len(row.chosen),
        }

    def record(self) -> RewardBench:
        return score_reward_bench(self.rows, self.rewards)

    def path_beside(self, out: Path) -> Path:
        """rewards.jsonl -> rewards.reward_bench.json"""
        return out.with_name(f"{out.stem}.reward_bench.json")

    def __str__(self) -> str:
        return f"RewardBench 2\n{self.record()}"
