"""Tasks drawn by their measured pass rate: more of those that the policy sometimes passes.

curriculum = Curriculum(PassRateCurriculum(aim=0.5), tasks=1000, prompts_per_step=8, seed=0)
drawn = curriculum.at(3)                   # eight different tasks: a function of the seed, the step and what was seen
curriculum.observe(3, 12, passed=2, of=8)  # task 12 was passed twice in eight completions

The estimate of a task is the mean of a Beta posterior over discounted counts,

    p = (passed + prior * aim) / (tried + prior),      both counts halved every `half_life` steps,

so that an unseen task, and in time a forgotten one, counts as one at the aim. Its weight is p^k (1 - p) with
k = aim / (1 - aim), scaled to 1 at p = aim: at an aim of 0.5 it is 4 p (1 - p), four times the variance of success,
which Foster et al. 2025 (arXiv:2502.12272) call learnability, after Rutherford et al. 2024 (arXiv:2408.15099). A share
`floor` of the probability is spread over all tasks alike.

Deviations from Foster et al.: they estimate p from fresh rollouts of a large batch of candidates and train on the most
learnable; here the rollouts that train are the estimate, and tasks are drawn by weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from posttrain.config.curriculum import PassRateCurriculum
from posttrain.training.order import stream


class Curriculum:
    """See the module's docstring."""

    def __init__(self, settings: PassRateCurriculum, tasks: int, prompts_per_step: int, seed: int):
        self.settings, self.tasks, self.prompts_per_step, self.seed = settings, tasks, prompts_per_step, seed
        self._tried = np.zeros(tasks)
        self._passed = np.zeros(tasks)
        self._last = np.full(tasks, -1, dtype=np.int64)
        """Step in which a task's counts were brought up to date; -1: never asked."""

    # ------------------------------------------------------------ what is known

    def pass_rates(self, step: int) -> np.ndarray:
        """Estimates for all tasks at the beginning of `step`."""
        kept = self._kept(step, self._last)
        own = self.settings
        return (self._passed * kept + own.prior * own.aim) / (self._tried * kept + own.prior)

    def probabilities(self, step: int) -> np.ndarray:
        """Of drawing each task first; none is below floor / tasks."""
        aim, floor = self.settings.aim, self.settings.floor
        power = aim / (1 - aim)
        rates = self.pass_rates(step)
        # The largest value, at p = aim, is 1, so that `floor` means the same for every aim.
        weights = rates**power * (1 - rates) / (aim**power * (1 - aim))
        total = weights.sum()
        if total <= 0:  # every task is passed always or never, as sure as doubles can be
            return np.full(self.tasks, 1 / self.tasks)
        probabilities = floor / self.tasks + (1 - floor) * weights / total
        return probabilities / probabilities.sum()

    def observe(self, step: int, task: int, *, passed: int, of: int) -> None:
        """What became of a task's completions in `step`; `of` leaves out those that nobody judged."""
        kept = self._kept(step, self._last[task])
        self._tried[task] = self._tried[task] * kept + of
        self._passed[task] = self._passed[task] * kept + passed
        self._last[task] = step

    def metrics(self, step: int, drawn: Sequence[int]) -> dict[str, float]:
        """Of the tasks that are about to be asked."""
        rates, seen = self.pass_rates(step)[list(drawn)], self._last[list(drawn)] >= 0
        return {
            "curriculum_pass_rate": float(rates[seen].mean()) if seen.any() else float("nan"),
            "curriculum_unseen_share": float(1 - seen.mean()),
        }

    # ------------------------------------------------------------ drawing

    def at(self, step: int) -> list[int]:
        """Tasks of `step`, each different while there are enough; steps are counted from 0."""
        drawn: list[int] = []
        while len(drawn) < self.prompts_per_step:
            count = min(self.prompts_per_step - len(drawn), self.tasks)
            drawn += self._draw(step, len(drawn), count, ())
        return drawn

    def more(self, step: int, round_number: int, count: int, used: Sequence[int]) -> list[int]:
        """Others for the same step, none of them in `used` while there are others."""
        # With no task left, one that was asked before is better than a step of fewer prompts.
        left = self.tasks - len(set(used))
        avoided = used if left else ()
        return self._draw(step, self.prompts_per_step + round_number, min(count, left or self.tasks), avoided)

    def _draw(self, step: int, number: int, count: int, used: Sequence[int]) -> list[int]:
        """`count` different tasks by successive sampling: the largest of log p + Gumbel noise (Efraimidis and Spirakis
        2006 in the form of Gumbel-top-k)."""
        keys = np.log(self.probabilities(step)) + stream(self.seed, "curriculum", step, number).gumbel(size=self.tasks)
        # Not removed but put last: the draw of the others is then the same whatever was used.
        keys[list(used)] = -np.inf
        return np.argsort(-keys, kind="stable")[:count].tolist()

    # ------------------------------------------------------------ what a checkpoint keeps

    def state_dict(self) -> dict[str, Any]:
        """The tasks that were asked, as plain JSON; a double survives it to the last bit."""
        seen = np.flatnonzero(self._last >= 0)
        counts = {"tried": self._tried, "passed": self._passed, "last": self._last}
        return {"task": seen.tolist(), **{name: values[seen].tolist() for name, values in counts.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        seen = np.asarray(state["task"], dtype=np.int64)
        self._tried[:], self._passed[:], self._last[:] = 0.0, 0.0, -1
        self._tried[seen], self._passed[seen], self._last[seen] = state["tried"], state["passed"], state["last"]

    def _kept(self, step: int, last: Any) -> Any:
        """How much of a count is left; of a task that was never asked there is none."""
        return 0.5 ** (np.maximum(0, step - last) / self.settings.half_life)
