"""Which record each file of a run folder holds: the table that `docs/run-folder.md` is written from."""

from __future__ import annotations

from collections.abc import Mapping

from posttrain.runs.records.base import Record
from posttrain.runs.records.budget import BudgetCurves, SolutionLine
from posttrain.runs.records.evaluation import (
    AnswerLine,
    BaselineAnswer,
    PairedChanges,
    PassAtKChanges,
    PassAtKCounts,
    SuiteIdentities,
    SuiteMeanings,
    SuiteScores,
)
from posttrain.runs.records.lm_eval import LmEvalResults
from posttrain.runs.records.logs import (
    Alarm,
    AnsweredLine,
    CorrectedPair,
    DroppedRow,
    HeldOutRow,
    MetricsLine,
    WatchedRow,
    YieldLine,
)
from posttrain.runs.records.merging import MergeComparison, MergedSkills, SearchRecord
from posttrain.runs.records.preflight import HeartbeatRecord, PreflightRecord
from posttrain.runs.records.queue import QueuedGroup
from posttrain.runs.records.ratings import BallotLine, GameLine, RunRatings
from posttrain.runs.records.reward import CrossScores, PairRewards, RewardEvaluation, StepEvaluation, StepRewards
from posttrain.runs.records.run import RunRecord, Summary
from posttrain.runs.records.sampled import ExaminationLine, RolloutLine
from posttrain.runs.records.selection import RejectedRow, SelectionManifest
from posttrain.runs.records.stage import StageRecord
from posttrain.runs.records.tracking import StageTracking
from posttrain.runs.records.twins import TwinComparisons

RUN_FILES: Mapping[str, type[Record]] = {
    "run.json": RunRecord,
    "summary.json": Summary,
    "cross_scores.json": CrossScores,
    "ratings.json": RunRatings,
    "pass_at_k.json": PassAtKChanges,
    "paired.json": PairedChanges,
    "merges.json": MergedSkills,
    "twins.json": TwinComparisons,
}
"""Files of a run's folder and what they hold."""

STAGE_FILES: Mapping[str, type[Record]] = {
    "stage.json": StageRecord,
    "preflight.json": PreflightRecord,
    "heartbeat.json": HeartbeatRecord,
    "metrics.jsonl": MetricsLine,
    "samples.jsonl": WatchedRow,
    "alarms.jsonl": Alarm,
    "pairs.jsonl": HeldOutRow,
    "dropped.jsonl": DroppedRow,
    "rejected.jsonl": RejectedRow,
    "manifest.json": SelectionManifest,
    "yields.jsonl": YieldLine,
    "asked.jsonl": AnsweredLine,
    "data.jsonl": CorrectedPair,
    "trees.jsonl": SolutionLine,
    "rollouts.jsonl": RolloutLine,
    "examinations.jsonl": ExaminationLine,
    "queue/<ask>.json": QueuedGroup,
    "evaluation.json": SuiteScores,
    "evaluations/<suite>.jsonl": AnswerLine,
    "evaluations/<suite>.counts.json": PassAtKCounts,
    "evaluations/<suite>.budget.json": BudgetCurves,
    "evaluations/<suite>.lm_eval.json": LmEvalResults,
    "evaluations/<suite>.trees.jsonl": SolutionLine,
    "evaluations/<suite>.games.jsonl": GameLine,
    "evaluations/<suite>.ballot.jsonl": BallotLine,
    "evaluations/identity.json": SuiteIdentities,
    "evaluations/metrics.json": SuiteMeanings,
    "baseline/<suite>.jsonl": BaselineAnswer,
    "reward_evaluation.json": RewardEvaluation,
    "reward_scores.jsonl": PairRewards,
    "step_evaluation.json": StepEvaluation,
    "step_scores.jsonl": StepRewards,
    "merge.json": MergeComparison,
    "search.json": SearchRecord,
    "tracking.json": StageTracking,
}
"""Files of a stage's folder and what they, or each of their lines, hold."""
