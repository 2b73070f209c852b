"""`budget`: strategies of test-time compute, measured against the tokens that they spend on a prompt.

One pool of answers to each prompt serves the oracle, majority and best-of-n at every n (`posttrain.evaluate.budget`);
other strategies are run as they are, with the same seed, so that their draws are the pool's first ones. Writes

    evaluations/<suite>.jsonl          the pool's answers
    evaluations/<suite>.budget.json    curves, choices and findings
    evaluations/<suite>.trees.jsonl    what the strategies tried
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from posttrain.config.budget import BudgetSuite, MeasuredStrategy
from posttrain.config.functions import source_fingerprint
from posttrain.config.nested import FILE_KEYS, changed_within, model_keys, records_within, scorers_of
from posttrain.config.strategies import PREFIX_TOKENS
from posttrain.config.strategies.base import LogProbScorer
from posttrain.config.values import Settings
from posttrain.data.questions import as_task, question
from posttrain.data.write import write_jsonl
from posttrain.errors import ConfigError
from posttrain.evaluate.asking import Figures, SuiteRun, general_figures
from posttrain.evaluate.budget.curves import Curve, CurveKind, CurvePoint, PoolTable, ScorerTable, pool_curves
from posttrain.evaluate.budget.findings import choices, difficulty_of, findings
from posttrain.evaluate.budget.selection import MOST_SUBSETS
from posttrain.evaluate.rightness import Given, Rightness
from posttrain.inference.lines import in_order, write_trees
from posttrain.inference.pool import Pools, draw_pools, score_pools
from posttrain.inference.run import solve_all
from posttrain.inference.scorers import Scorers
from posttrain.inference.solution import Node, Solution
from posttrain.inference.solving import Asked
from posttrain.inference.strategies.best_of_n import weights
from posttrain.intervals import average, mean
from posttrain.models.folders.named import named_content
from posttrain.rollout.engine import Completion, FinishReason
from posttrain.rollout.native import NativeEngine
from posttrain.runs.files import write_json
from posttrain.runs.folder import answers_path
from posttrain.runs.records.budget import BudgetCurves
from posttrain.runs.records.evaluation import AnswerLine
from posttrain.sampling import SamplingDistribution
from posttrain.types import Example, Task


@dataclass(frozen=True, slots=True)
class Budget:
    """Budget(settings, tasks, SamplingDistribution(temperature=0.8), Rightness("spent"))"""

    settings: BudgetSuite
    tasks: Sequence[Task]
    sampling: SamplingDistribution
    right: Rightness

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def folder(self) -> Path | None:
        """Where functions are looked for."""
        return self.right.modules

    def ask(self, asking: SuiteRun) -> Figures:
        """
        Raises:
            ConfigError: a scorer that is no trained model yet, or that cannot judge what a strategy gives it.
            PosttrainError: what a scorer or a reward raises.
        """
        require_scorers(self.settings)
        runs = list(self.settings.runs())
        device = next(asking.asked.model.parameters()).device.type
        with Scorers(self.folder, device=device) as scorers:
            encoder = asking.asked.encoder
            # Of its own, since searches go on from what they have just drawn; it goes when the suite has been asked.
            engine = NativeEngine(asking.asked.model, decode=encoder.tokens.decode, prefix_tokens=PREFIX_TOKENS)
            asked = Asked(engine, encoder, scorers, asking.asked.seed, self.folder)
            # All of them before anything is drawn: a pool is dear, and the last strategy's mistake would cost it.
            for settings in self.settings.scorers.values():
                scorers.grader(settings)
            for run in runs:
                scorers.check(run.settings)
            pools = self._pools(asked, asking)
            solved = [self._solved(asked, run, asking) for run in runs]
        return self._measured(asked, pools, runs, solved, asking.out)

    # ------------------------------------------------------------ asking

    def _pools(self, asked: Asked, asking: SuiteRun) -> Pools:
        samples, scorers = self.settings.samples, self.settings.scorers
        raw = any(isinstance(settings, LogProbScorer) for settings in scorers.values())
        total = len(self.tasks) * samples
        with asking.progress.phase(f"{self.name}: answers", total=total, unit="answers") as phase:
            pools = draw_pools(
                asked,
                self.tasks,
                self.sampling,
                samples,
                raw_logprobs=raw,
                on_pool=lambda pool: phase.advance(samples, tokens=sum(len(node.ids) for node in pool.answers)),
            )
        for name, settings in scorers.items():
            with asking.progress.phase(f"{self.name}: {name}", total=total, unit="answers") as phase:
                score_pools(asked, pools, name, settings, on_pool=lambda _: phase.advance(samples))
        return pools

    def _solved(self, asked: Asked, run: MeasuredStrategy, asking: SuiteRun) -> tuple[list[Solution], float]:
        """What the strategy finds, and the seconds of the whole."""
        with asking.progress.phase(f"{self.name}: {run.label}", total=len(self.tasks), unit="prompts") as phase:
            began = time.monotonic()
            solutions = solve_all(
                asked,
                self.tasks,
                run.settings,
                on_solution=lambda _, solution: phase.advance(1, tokens=solution.spent.sampled),
            )
            return solutions, time.monotonic() - began

    # ------------------------------------------------------------ measuring

    def _measured(
        self,
        asked: Asked,
        pools: Pools,
        runs: Sequence[MeasuredStrategy],
        solved: Sequence[tuple[list[Solution], float]],
        out: Path,
    ) -> Figures:
        given = [[_given(node) for node in pool.answers] for pool in pools.prompts]
        rewards = self.right.rewards_of(given, self.tasks)
        table = self._table(asked, pools, rewards)
        curves = pool_curves(table, self.settings.n)
        rights = [self._rights(solutions) for solutions, _ in solved]
        curves += _strategy_curves(runs, solved, rights)
        chosen = choices(table, curves)
        difficulty = difficulty_of(table, self.settings.n, curves)
        self._write_answers(out, pools, rewards)
        left_out = self._write_trees(out, [solutions for solutions, _ in solved], rights)
        record = BudgetCurves(
            self.name,
            self.settings.samples,
            len(self.tasks),
            table.tokens,
            MOST_SUBSETS,
            tuple(curve.record() for curve in curves),
            tuple(chosen),
            difficulty,
            tuple(findings(table, curves, chosen, difficulty)),
            left_out,
        )
        write_json(budget_path(out, self.name), record.to_json())
        groups = [[Completion(node.ids, node.logprobs, node.finish) for node in pool.answers] for pool in pools.prompts]
        texts = [[node.answer for node in pool.answers] for pool in pools.prompts]
        figures = _figures(curves) | general_figures(groups, texts)
        if any(reward is None for group in rewards for reward in group):
            figures["abstained_share"] = mean([[float(reward is None) for reward in group] for group in rewards])
        return figures

    def _table(self, asked: Asked, pools: Pools, rewards: Sequence[Sequence[float | None]]) -> PoolTable:
        equality = asked.equality(self.settings.answers)
        answers = len(pools.prompts) * pools.samples
        scorers = {}
        for name, settings in self.settings.scorers.items():
            scores = [pool.scores[name] for pool in pools.prompts]
            scorers[name] = ScorerTable(
                np.array(scores),
                np.array([weights(group, settings) for group in scores]),
                scored=sum(pool.scoring[name].scored for pool in pools.prompts) / answers,
                sampled=sum(pool.scoring[name].sampled for pool in pools.prompts) / answers,
                seconds=pools.scoring_seconds[name] / answers,
            )
        return PoolTable(
            np.array([[float(self.right.is_right(reward)) for reward in group] for group in rewards]),
            [equality.classes([node.answer for node in pool.answers]) for pool in pools.prompts],
            scorers,
            pools.tokens,
            pools.seconds / answers,
        )

    def _rights(self, solutions: Sequence[Solution]) -> list[bool]:
        """Whether each solution's answer is right."""
        given = [[_answer(solution)] for solution in solutions]
        return [self.right.is_right(reward) for (reward,) in self.right.rewards_of(given, self.tasks)]

    # ------------------------------------------------------------ writing

    def _write_answers(self, out: Path, pools: Pools, rewards: Sequence[Sequence[float | None]]) -> None:
        lines = (
            AnswerLine(
                prompt=asked.text,
                completion=node.answer,
                answer=asked.answer,
                score=float(self.right.is_right(reward)),
                tokens=len(node.ids),
                finish=str(node.finish),
                reward=reward,
            ).to_json()
            for pool, group in zip(pools.prompts, rewards, strict=True)
            for asked in [question(pool.task)]
            for node, reward in zip(pool.answers, group, strict=True)
        )
        write_jsonl(answers_path(out, self.name), lines)

    def _write_trees(self, out: Path, runs: Sequence[Sequence[Solution]], rights: Sequence[Sequence[bool]]) -> int:
        path = trees_path(out, self.name)
        if not runs:
            path.unlink(missing_ok=True)  # of strategies that the recipe had before
            return 0
        by_prompt = [right for prompt in zip(*rights, strict=True) for right in prompt]
        return write_trees(path, in_order(runs), by_prompt)


def load(settings: BudgetSuite, examples: list[Example], sampling: SamplingDistribution) -> Budget:
    """Raises RowError where the suite would not accept a row's own answer."""
    tasks = [as_task(example) for example in examples]
    modules = None if settings.modules is None else Path(settings.modules)
    right = Rightness(settings.name, settings.rewards, settings.right_from, modules)
    right.require_gold(tasks)
    return Budget(settings, tasks, sampling, right)


def budget_path(folder: Path, suite: str) -> Path:
    return folder / "evaluations" / f"{suite}.budget.json"


def trees_path(folder: Path, suite: str) -> Path:
    return folder / "evaluations" / f"{suite}.trees.jsonl"


def require_scorers(settings: BudgetSuite) -> None:
    """Raises ConfigError for a scorer that names a stage: only the run of its recipe knows where that model lies."""
    for path, scorer in scorers_of(settings):
        if scorer.stage is not None:
            raise ConfigError(
                f"the scorer of the suite `{settings.name}` names the stage `{scorer.stage}`, and no run of a recipe "
                "says where its model is",
                where=".".join(map(str, path)),
                found=f"stage: {scorer.stage}",
                expected="a reward model that is there",
                remedy="write `{model: FOLDER}` with the folder of the trained reward model",
            )


def content(settings: BudgetSuite) -> str:
    """Scorers and strategies by what their models and functions hold, not by where these lie: a reward model that was
    trained anew in the same folder has the suite asked again, a run folder that was moved has not."""

    def without_places(record: Settings, _: object) -> Settings:
        keys = (*model_keys(record), *FILE_KEYS.get(type(record), ()))
        places = {key: None for key in (*keys, "modules") if key in type(record).model_fields}
        return record.model_copy(update=places) if places else record

    functions = [
        source_fingerprint(function, None if folder is None else Path(folder))
        for _, record in records_within(settings)
        if (function := vars(record).get("function")) is not None
        for folder in [vars(record).get("modules") or settings.modules]
    ]
    said = changed_within(settings, without_places).model_dump(
        mode="json", include={"scorers", "strategies", "rewards", "answers"}
    )
    return json.dumps([said, named_content(settings), functions], sort_keys=True)


BESIDE = ("modules", "scorers", "strategies", "rewards", "answers")
"""Counted by `content`."""


# ---------------------------------------------------------------- figures


def _figures(curves: Sequence[Curve]) -> Figures:
    """pass_at_1, oracle_at_N, majority_at_N, best_of_N_<scorer>, weighted_of_N_<scorer>, solved_by_<strategy>."""
    names = {
        CurveKind.ORACLE: "oracle_at_{n}",
        CurveKind.MAJORITY: "majority_at_{n}",
        CurveKind.BEST: "best_of_{n}_{scorer}",
        CurveKind.WEIGHTED: "weighted_of_{n}_{scorer}",
    }
    figures: Figures = {}
    for curve in curves:
        if not curve.of_pool:
            figures |= {f"solved_by_{point.label}": average(point.values_P) for point in curve.points}
            continue
        if curve.kind is CurveKind.ORACLE and curve.points[0].n == 1:
            figures["pass_at_1"] = average(curve.points[0].values_P)
        last = curve.points[-1]
        figures[names[curve.kind].format(n=last.n, scorer=curve.scorer)] = average(last.values_P)
    return figures


def _strategy_curves(
    runs: Sequence[MeasuredStrategy],
    solved: Sequence[tuple[list[Solution], float]],
    rights: Sequence[Sequence[bool]],
) -> list[Curve]:
    points: dict[str, list[CurvePoint]] = {}
    for run, (solutions, seconds), right in zip(runs, solved, rights, strict=True):
        stopped = Counter(str(solution.stopped) for solution in solutions)
        points.setdefault(run.curve, []).append(
            CurvePoint(
                run.label,
                None,
                np.array(right, dtype=float),
                tokens=float(np.mean([solution.spent.sampled for solution in solutions])),
                scored=float(np.mean([solution.spent.scored for solution in solutions])),
                seconds=seconds / len(solutions),
                stopped=dict(sorted(stopped.items())),
            )
        )
    return [
        Curve(name, CurveKind.STRATEGY, sorted(own, key=lambda point: point.tokens)) for name, own in points.items()
    ]


def _given(node: Node) -> Given:
    return Given(node.answer, node.finish, len(node.ids))


def _answer(solution: Solution) -> Given:
    """The answer that was found; one that the strategy wrote itself was ended by it."""
    if solution.chosen is None:
        return Given(solution.answer, FinishReason.STOP_TOKEN, 0)
    node = solution.nodes[solution.chosen]
    return Given(solution.answer, node.finish, len(node.path_ids))
