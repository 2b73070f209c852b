"""What one run of a sweep measured, read from its folder: figures by name, and scores by prompt.

figure = By.parse("sums.accuracy")           # of the last stage that was asked `sums`; "dpo:sums.accuracy" of `dpo`
figure.of(RunFolder("runs/mine-sweep/dpo.beta-0.05_seed-0"))     # 0.62
"""

from __future__ import annotations

from dataclasses import dataclass

from posttrain.config import Recipe
from posttrain.diagnostics.paired import ByPrompt, scores_by_prompt
from posttrain.diagnostics.suite_metrics import meaning
from posttrain.errors import ConfigError, unknown
from posttrain.evaluate.suites import SUITES
from posttrain.evaluate.twins import meaning_of
from posttrain.runs.folder import EARLIER, RunFolder
from posttrain.runs.read import HELD_OUT
from posttrain.runs.records.evaluation import Direction, Figure, Meaning, SuiteScores

HIGHER, LOWER = "higher", "lower"
START = "start"
OWN_FIGURES = (HELD_OUT, "trained", "untrained")
"""What summary.json has of stages that no suite was asked of: a score of held-out tasks, figures of reward models."""


@dataclass(frozen=True, slots=True)
class By:
    """A figure by its name: By("sums", "accuracy"), of the last stage that has it; By("sums", "accuracy", "dpo")."""

    suite: str
    metric: str
    stage: str | None = None

    @classmethod
    def parse(cls, text: str, *, option: str = "--by") -> By:
        """Raises ConfigError for what names no figure."""
        stage, colon, key = text.rpartition(":")
        suite, dot, metric = key.rpartition(".")
        if not (dot and suite and metric) or (colon and not stage):
            raise ConfigError(
                "this names no figure",
                where=option,
                found=text,
                expected="SUITE.METRIC, or STAGE:SUITE.METRIC",
                example=f"{option} sums.accuracy",
                remedy="write the suite's name, a point and one of its metrics (docs/evaluation.md)",
            )
        return cls(suite, metric, stage or None)

    @property
    def key(self) -> str:
        """As summary.json has it."""
        return f"{self.suite}.{self.metric}"

    def __str__(self) -> str:
        return self.key if self.stage is None else f"{self.stage}:{self.key}"

    def stage_of(self, run: RunFolder) -> str | None:
        """The stage that the figure is of; None where the run does not have it."""
        found = run.summary()
        if self.stage is not None:
            return self.stage if self.key in found.get(self.stage, {}) else None
        # In the recipe's order; what an earlier setting of a stage measured (`dpo.1`) is another run's figure.
        having = [
            name for name, row in found.items() if self.key in row and name != START and not EARLIER.fullmatch(name)
        ]
        return having[-1] if having else None

    def of(self, run: RunFolder) -> float | None:
        stage = self.stage_of(run)
        return None if stage is None else run.summary()[stage].get(self.key)

    def by_prompt(self, run: RunFolder) -> ByPrompt | None:
        """The scores that the figure is the mean of; None where it is the mean of none that were kept."""
        stage, value = self.stage_of(run), self.of(run)
        if stage is None or value is None:
            return None
        return scores_by_prompt(run.stage(stage).answers(self.suite), Figure(value))

    def meaning(self, run: RunFolder) -> Meaning:
        stage = self.stage_of(run)
        return meaning(self.metric) if stage is None else meaning_of(run.stage(stage), self.suite, self.metric)

    def direction(self, recipe: Recipe, better: str | None) -> str:
        """higher or lower, as it was asked for, else as the suite's kind says; known before anything runs.

        Raises:
            UnknownKeyError: the recipe has no such suite or stage.
            ConfigError: nothing says which way is better.
        """
        suites = {suite.name: suite for suite in recipe.evaluate.suites}
        stages = [stage.name for stage in recipe.stages]
        if self.stage is not None and self.stage not in stages:
            raise unknown("stage", self.stage, stages, where=f"--by {self}")
        if self.suite not in suites and self.suite not in OWN_FIGURES:
            known = list(suites)
            raise unknown("suite", self.suite, known or OWN_FIGURES, where=f"--by {self}")
        if better is not None:
            return better
        if self.suite == HELD_OUT:
            return HIGHER
        own = SUITES[type(suites[self.suite])].metrics if self.suite in suites else {}
        wanted = (own.get(self.metric) or meaning(self.metric)).wanted
        if wanted not in (Direction.UP, Direction.DOWN):
            raise ConfigError(
                f"nothing says whether more or less of `{self}` is better",
                where=f"--by {self}",
                found=wanted.value or "a figure without a direction",
                remedy="say it with `--better higher` or `--better lower` (from Python: better=)",
            )
        return HIGHER if wanted is Direction.UP else LOWER


def figure_names(run: RunFolder) -> list[str]:
    """Every figure of the run's stages, once."""
    rows = [row for name, row in run.summary().items() if name != START and not EARLIER.fullmatch(name)]
    return list(dict.fromkeys(key for row in rows for key in row))


def shown_figures(run: RunFolder) -> list[By]:
    """What a table of runs like this one shows: what the suites are asked for, of the last stage that was asked; where
    there are none, what stages measured of themselves."""
    asked = [folder for folder in run.stages() if folder.document(SuiteScores) is not None]
    if asked:
        scores = asked[-1].document(SuiteScores)
        assert scores is not None
        found = [By(suite, metric) for suite, metrics in scores.suites.items() for metric in metrics]
        return [one for one in found if meaning_of(asked[-1], one.suite, one.metric).primary]
    return [By.parse(name) for name in figure_names(run) if name.rpartition(".")[0] in ("held_out", "trained")]
