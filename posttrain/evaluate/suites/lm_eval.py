"""`lm_eval`: tasks of EleutherAI's harness, answered by posttrain's engine; see `posttrain.evaluate.lm_eval`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.config.text_suites import LmEvalSuite
from posttrain.data.write import write_jsonl
from posttrain.evaluate.asking import Figures, SuiteRun
from posttrain.evaluate.lm_eval.results import Measured, meanings, measured
from posttrain.evaluate.lm_eval.tasks import fingerprint_of_tasks, load_tasks, require_lm_eval
from posttrain.runs.files import read_json, write_json
from posttrain.runs.folder import answers_path
from posttrain.runs.records.evaluation import Meaning
from posttrain.runs.records.lm_eval import LmEvalResults
from posttrain.sampling import SamplingDistribution
from posttrain.types import Example


@dataclass(frozen=True, slots=True)
class Harness:
    """Harness(LmEvalSuite(name="harness", kind="lm_eval", tasks=("arc_easy",)))"""

    settings: LmEvalSuite

    @property
    def name(self) -> str:
        return self.settings.name

    def ask(self, asking: SuiteRun) -> Figures:
        found, _ = self.measured(asking)
        write_jsonl(answers_path(asking.out, self.name), (line.to_json() for line in found.lines))
        write_json(results_path(asking.out, self.name), found.record.to_json())
        return found.figures

    def measured(self, asking: SuiteRun) -> tuple[Measured, Mapping[str, Any]]:
        """What lm-eval measured in our words, and in its own.

        Raises:
            ConfigError, SourceError: see `load_tasks`.
        """
        # Tasks are built anew for each model: lm-eval keeps requests and answers in them.
        loaded = load_tasks(self.settings.tasks)
        import lm_eval

        from posttrain.evaluate.lm_eval.bridge import BridgeLM

        settings = self.settings
        results = lm_eval.simple_evaluate(
            model=BridgeLM(asking.asked, asking.progress),
            tasks=[*loaded["groups"].values(), *_alone(loaded)],
            num_fewshot=settings.num_fewshot,
            limit=settings.limit,
            apply_chat_template=settings.apply_chat_template,
            fewshot_as_multiturn=settings.apply_chat_template and settings.fewshot_as_multiturn,
            system_instruction=settings.system_instruction,
            log_samples=True,
            bootstrap_iters=BOOTSTRAPS,
            random_seed=settings.seed,
            numpy_random_seed=settings.seed,
            torch_random_seed=settings.seed,
            fewshot_random_seed=settings.seed,
        )
        assert results is not None, "lm-eval gives results on the one rank that asks"
        version = str(lm_eval.__version__)
        said = measured(results, version=version, chat_template=settings.apply_chat_template, seed=settings.seed)
        return said, results


BOOTSTRAPS = 1_000
"""Resamples of lm-eval's own standard errors, of metrics that are no mean."""


def _alone(loaded: Mapping[str, Any]) -> list[Any]:
    """The tasks that stand in no group."""
    within = {name for children in loaded["group_map"].values() for name in children}
    return [task for name, task in loaded["tasks"].items() if name not in within]


def load(settings: LmEvalSuite, _: list[Example], __: SamplingDistribution) -> Harness:
    """Raises MissingExtraError, ConfigError and SourceError: see `load_tasks`."""
    # Now and not after training: data that cannot be read would end the run when its models are there.
    load_tasks(settings.tasks)
    return Harness(settings)


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
