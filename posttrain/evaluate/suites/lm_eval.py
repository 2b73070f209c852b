"""`lm_eval`: tasks of EleutherAI's harness, answered by posttrain's engine; see `posttrain.evaluate.lm_eval`."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from posttrain.config.text_suites import LmEvalSuite
from posttrain.data.write import write_jsonl
from posttrain.evaluate.asking import Figures, SuiteRun
from posttrain.evaluate.lm_eval.results import SHARES, Measured, meanings, measured
from posttrain.evaluate.lm_eval.tasks import (
    fingerprint_of_tasks,
    load_tasks,
    quiet,
    require_answers,
    require_lm_eval,
    set_examples,
)
from posttrain.runs.files import read_json, write_json
from posttrain.runs.folder import answers_path
from posttrain.runs.records.evaluation import Meaning
from posttrain.runs.records.lm_eval import LmEvalResults
from posttrain.sampling import SamplingDistribution
from posttrain.types import Example


@dataclass(frozen=True, slots=True)
class Harness:
    """Harness(LmEvalSuite(name="harness", kind="lm_eval", tasks=("arc_easy",)), {"arc_easy": 2376})"""

    settings: LmEvalSuite
    documents: Mapping[str, int]
    """{task: how many documents it asks}, of tasks that have a share."""

    @property
    def name(self) -> str:
        return self.settings.name

    def ask(self, asking: SuiteRun) -> Figures:
        found = self.measured(asking)
        write_jsonl(answers_path(asking.out, self.name), (line.to_json() for line in found.lines))
        write_json(results_path(asking.out, self.name), found.record.to_json())
        return found.figures

    def measured(self, asking: SuiteRun) -> Measured:
        """What lm-eval measured, in our words.

        Raises:
            ConfigError, SourceError: see `load_tasks`.
        """
        import lm_eval

        from posttrain.evaluate.lm_eval.bridge import bridge_lm

        settings = self.settings
        # As lm-eval's command does: some tasks draw what they show. `undisturbed` is around every evaluation.
        random.seed(settings.seed)
        np.random.seed(settings.seed)
        torch.manual_seed(settings.seed)
        # Tasks are built anew for each model: lm-eval keeps requests and answers in them.
        loaded = load_tasks(settings.tasks)
        set_examples(loaded, settings.num_fewshot, settings.seed)
        with quiet():
            results = lm_eval.evaluate(
                lm=bridge_lm(asking.asked, asking.progress),
                task_dict=loaded,
                limit=settings.limit,
                bootstrap_iters=BOOTSTRAPS,
                log_samples=True,
                system_instruction=settings.system_instruction,
                apply_chat_template=settings.apply_chat_template,
                fewshot_as_multiturn=settings.apply_chat_template and settings.fewshot_as_multiturn,
            )
        assert results is not None, "lm-eval gives results on the one rank that asks"
        version = str(lm_eval.__version__)
        return measured(results, version=version, chat_template=settings.apply_chat_template, seed=settings.seed)


BOOTSTRAPS = 1_000
"""Resamples of lm-eval's own standard errors, of metrics that are no mean."""


def load(settings: LmEvalSuite, _: list[Example], __: SamplingDistribution) -> Harness:
    """Raises MissingExtraError, ConfigError and SourceError: see `load_tasks`, `require_answers`."""
    # Now and not after training: data that cannot be read would end the run when its models are there.
    tasks = load_tasks(settings.tasks)["tasks"]
    limit = settings.limit
    for name, task in tasks.items():
        require_answers(name, task, limit)
    counts = {name: len(task.eval_docs) for name, task in tasks.items() if SHARES & set(task.aggregation())}
    return Harness(settings, {name: min(count, limit or count) for name, count in counts.items()})


def items(suite: Harness) -> Mapping[str, int]:
    return suite.documents


def content(settings: LmEvalSuite) -> str:
    """The files of tasks, and lm-eval's version for those that come with it."""
    require_lm_eval()
    from importlib.metadata import version

    return f"{version('lm-eval')} {fingerprint_of_tasks(settings.tasks)}"


def results_path(folder: Path, suite: str) -> Path:
    return folder / "evaluations" / f"{suite}.lm_eval.json"


def described(suite: str, folder: Path) -> Mapping[str, Meaning]:
    """How the figures are called that the suite measured in a stage's folder."""
    path = results_path(folder, suite)
    return meanings(LmEvalResults.from_json(read_json(path))) if path.exists() else {}
