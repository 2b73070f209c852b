"""RewardBench 2 (Malik et al. 2025, arXiv:2506.01937) in its layout, for any reward model.

    rows = read_reward_bench("reward-bench-2.jsonl")   # {"id", "prompt", "chosen": [...], "rejected": [...], "subset"}
    print(score_reward_bench(rows, rewards))           # best of 4 by domain, Ties apart, their mean

A row counts 1 where a right answer has the highest reward, and 1 / m where m answers share it, one of them right.
Ties is scored over prompts: `tied:7` has several right answers, `ref:7` one right answer to a like question, and

    score = 0.3 tied + 0.3 ref + 0.2 preferred + 0.2 preferred_hard + 0.01 margin
    tied, ref       every right answer has a higher reward than every wrong one
    preferred       in `tied`, worst right - best wrong  >  best right - worst right
    preferred_hard  the same for the smaller of that gap in `tied` and in `ref`
    margin          tanh(smaller gap / (best right - worst right) - 1)

as `allenai/reward-bench` computes it. Deviation: it prints no intervals; here domains have Wilson's, Ties is
bootstrapped by prompt, and the average's is made of theirs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from posttrain.data.given import as_messages
from posttrain.data.sources.files import open_sources
from posttrain.data.sources.source import Broken
from posttrain.errors import DataError, EmptyDatasetError, PosttrainError, RowError
from posttrain.intervals import Score, average, mean_of, refitted
from posttrain.runs.records.evaluation import Figure, figures_of
from posttrain.runs.records.reward_bench import RewardBench
from posttrain.types import Comparison, Message, RowRef

SCHEMA = 1
TIES = "ties"
"""The subset of this name, in any letters, has a score of its own."""
WEIGHTS = {"tied": 0.30, "ref": 0.30, "preferred": 0.20, "preferred_hard": 0.20, "margin": 0.01}
"""Of the score of Ties."""


@dataclass(frozen=True, slots=True)
class BenchRow:
    """BenchRow((Message("user", "2 + 2?"),), ("4",), ("5", "3", "22"), "Math", "12", RowRef("bench.jsonl", 1))"""

    prompt: tuple[Message, ...]
    chosen: tuple[str, ...]
    rejected: tuple[str, ...]
    subset: str
    id: str
    row: RowRef

    @property
    def is_tie(self) -> bool:
        return self.subset.lower() == TIES

    def comparison(self) -> Comparison:
        """What a reward model scores: the right answers first."""
        texts = (*self.chosen, *self.rejected)
        return Comparison(self.prompt, tuple((Message("assistant", text),) for text in texts), 0, self.row)


# ---------------------------------------------------------------- rows


def is_reward_bench(row: Any) -> bool:
    """Whether a row has the layout: `chosen` and `rejected` as lists of texts, and a `subset`."""
    if not isinstance(row, Mapping) or "subset" not in row:
        return False
    sides = (row.get("chosen"), row.get("rejected"))
    return all(isinstance(side, list) and side and isinstance(side[0], str) for side in sides)


def looks_like_reward_bench(data: Any) -> bool:
    """The same of the first row of what `read` takes."""
    first = next((value for source in open_sources(data) for _, value, _ in source.rows()), None)
    return is_reward_bench(first)


def read_reward_bench(data: Any, limit: int | None = None) -> list[BenchRow]:
    """The rows of RewardBench 2.

    Args:
        data: what `read` takes: a path, a hub id, rows, or a list of these.
        limit: only the first so many rows.

    Raises:
        SourceError: the file cannot be read.
        RowError: a row is not of the layout.
        EmptyDatasetError: there is no row.
    """
    rows: list[BenchRow] = []
    for source in open_sources(data):
        for number, value, _ in source.rows():
            if limit is not None and len(rows) == limit:
                return rows
            if isinstance(value, Broken):
                raise value.error
            rows.append(_row(value, RowRef(source.name, number)))
    if not rows:
        raise EmptyDatasetError("there is no row to score", remedy="name a file with rows of RewardBench 2")
    return rows


def _row(value: Any, ref: RowRef) -> BenchRow:
    if not is_reward_bench(value):
        keys = f"the keys {', '.join(map(str, list(value)[:12]))}" if isinstance(value, Mapping) else repr(value)[:80]
        raise _bad(
            "the row is not of RewardBench 2",
            ref,
            keys,
            "`prompt`, `chosen` and `rejected` as lists of texts, `subset`",
        )
    for side in ("chosen", "rejected"):
        for text in value[side]:
            if not isinstance(text, str):
                raise _bad(f"`{side}` holds what is no text", ref, repr(text)[:80], "a list of texts")
    if not isinstance(value["subset"], str) or not value["subset"]:
        raise _bad("`subset` is no name", ref, repr(value["subset"])[:80], "the domain's name")
    if value.get("num_correct") not in (None, len(value["chosen"])):
        raise _bad("`num_correct` is not the number of `chosen`", ref, value["num_correct"], len(value["chosen"]))
    try:
        prompt = as_messages(value.get("prompt"))
    except PosttrainError as error:
        raise _bad("`prompt` is no prompt", ref, error.problem, "a text, or turns") from error
    row = BenchRow(prompt, tuple(value["chosen"]), tuple(value["rejected"]), value["subset"], str(value.get("id")), ref)
    if row.is_tie:
        kind, _ = _tie(row)
        if kind == "tied" and len(row.chosen) < 2:
            raise _bad("a tied row has one right answer", ref, len(row.chosen), "two or more in `chosen`")
    return row


def _tie(row: BenchRow) -> tuple[str, str]:
    """("tied", "7") of the id "tied:7"."""
    kind, _, number = row.id.partition(":")
    if kind not in ("tied", "ref") or not number:
        raise _bad("the `id` of a row of Ties has another form", row.row, repr(row.id), "`tied:N` or `ref:N`")
    return kind, number


def _bad(problem: str, ref: RowRef, found: object, expected: object) -> RowError:
    return RowError(
        problem,
        reason="wrong_shape",
        where=ref,
        found=found,
        expected=expected,
        remedy="correct the row, or fetch the file anew (`allenai/reward-bench-2` on the hub)",
    )


# ---------------------------------------------------------------- figures


def score_reward_bench(rows: Sequence[BenchRow], rewards: Iterable[Sequence[float]]) -> RewardBench:
    """The figures of a reward model.

    Args:
        rewards: of each row's answers, the chosen ones first.

    Raises:
        DataError: a reward that is not finite, or another number of them; it names the row.
    """
    given = [np.asarray(own, dtype=float) for own in rewards]
    assert len(given) == len(rows), "one list of rewards per row"
    for row, own in zip(rows, given, strict=True):
        if len(own) != len(row.chosen) + len(row.rejected) or not np.isfinite(own).all():
            raise DataError(
                "the rewards of a row cannot be ranked",
                where=row.row,
                found=str(own.tolist())[:120],
                expected=f"{len(row.chosen) + len(row.rejected)} finite numbers",
                remedy="train with a lower learning rate or in fp32; the model that gave these scores is unusable",
            )
    best: dict[str, list[float]] = {}
    chance: dict[str, list[float]] = {}
    for row, own in zip(rows, given, strict=True):
        if not row.is_tie:
            best.setdefault(row.subset, []).append(_best_of(row, own))
            chance.setdefault(row.subset, []).append(len(row.chosen) / len(own))
    ties = _tie_values([pair for pair in zip(rows, given, strict=True) if pair[0].is_tie])
    domains = {name: average(np.array(values)) for name, values in best.items()}
    parts: dict[str, Score] = {}
    if ties is not None:
        score, *scores = refitted(len(ties), lambda times: _tie_scores(times, ties))
        domains["Ties"] = score
        parts = {name: part for name, part in zip(WEIGHTS, scores, strict=True) if not np.isnan(part.value)}
    return RewardBench(
        schema=SCHEMA,
        prompts=len(rows),
        domains=figures_of(domains),
        average=Figure.of(mean_of(list(domains.values()))),
        chance={name: float(np.mean(values)) for name, values in chance.items()},
        ties=figures_of(parts),
    )


def _best_of(row: BenchRow, rewards: np.ndarray) -> float:
    """How often a right answer is taken where chance chooses among those with the highest reward."""
    highest = rewards == rewards.max()
    return float(highest[: len(row.chosen)].sum() / highest.sum())


def _tie_values(pairs: Sequence[tuple[BenchRow, np.ndarray]]) -> np.ndarray | None:
    """[prompts, 5]: tied, ref, preferred, preferred_hard and margin of each number; NaN where it lacks the row."""
    gaps: dict[str, dict[str, tuple[float, float]]] = {}
    for row, rewards in pairs:
        right, wrong = rewards[: len(row.chosen)], rewards[len(row.chosen) :]
        kind, number = _tie(row)
        gaps.setdefault(number, {})[kind] = (float(right.min() - wrong.max()), float(right.max() - right.min()))
    if not gaps:
        return None
    values = np.full((len(gaps), len(WEIGHTS)), np.nan)
    for place, own in enumerate(gaps.values()):
        if "tied" in own:
            values[place, 0] = own["tied"][0] > 0
        if "ref" in own:
            values[place, 1] = own["ref"][0] > 0
        if len(own) == 2:
            gap, spread = own["tied"]
            smaller = min(gap, own["ref"][0])
            values[place, 2:] = gap > spread, smaller > spread, _margin(smaller, spread)
    return values


def _margin(gap: float, spread: float) -> float:
    """tanh(gap / spread - 1); where all right answers have one reward, what it tends to, and 0 for 0 / 0."""
    if spread > 0:
        return float(np.tanh(gap / spread - 1))
    return float(np.sign(gap))


def _tie_scores(times_RC: np.ndarray, values_CK: np.ndarray) -> np.ndarray:
    """[R, 6]: the score, then its parts; a part that no prompt has is 0, as there."""
    known_CK = ~np.isnan(values_CK)
    sums_RK = times_RC @ np.where(known_CK, values_CK, 0.0)
    counts_RK = times_RC @ known_CK.astype(float)
    parts_RK = np.divide(sums_RK, counts_RK, out=np.zeros_like(sums_RK), where=counts_RK > 0)
    score_R1 = parts_RK @ np.array([[weight] for weight in WEIGHTS.values()])
    return np.concatenate([score_R1, parts_RK], axis=1)
