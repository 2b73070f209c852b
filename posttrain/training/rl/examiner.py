"""What the policy is worth on tasks that it does not train on, when to stop for it, and which weights were the best.

examinations.jsonl has every answer; best/step-00000012.safetensors the weights of the best examination. It is named by
its step, and stays while a checkpoint refers to it: a run that goes on from there may find another best on its way.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from torch import nn

from posttrain.config.online import SamplingStage
from posttrain.models.sharding.one_file import read_one_file, write_one_file
from posttrain.outputs import Mean, Metric
from posttrain.parallel.world import world
from posttrain.rewards.rubric import Rubric
from posttrain.rewards.scorer import Sampled
from posttrain.rollout.engine import FinishReason
from posttrain.runs.folder import StageFolder
from posttrain.runs.progress import Progress
from posttrain.runs.records.sampled import ExaminationLine
from posttrain.runs.records.stage import BestExamination
from posttrain.sampling import SamplingDistribution
from posttrain.training.rl.rollouts import Group, Prompt, Response

SOLVED = 1.0
"""The score of a right answer, by the custom of verifiers."""

Ask = Callable[[Sequence[Prompt], SamplingDistribution, int], list[Group]]
"""(prompts, sampling, completions of each) -> completions, with texts and without scores."""


class Examiner:
    """Asks the held-out tasks and keeps the score.

    Args:
        ask: the policy as it is now.
        sampling: every examination draws from the same stream, so that scores differ by the policy alone.
    """

    def __init__(
        self,
        stage: SamplingStage,
        prompts: Sequence[Prompt],
        ask: Ask,
        rubric: Rubric,
        model: nn.Module,
        folder: StageFolder,
        progress: Progress,
        sampling: SamplingDistribution,
    ):
        self.stage = stage
        self.prompts = prompts[: stage.examine.limit]
        self._ask, self._rubric, self._model = ask, rubric, model
        self._folder, self._progress = folder, progress
        self._sampling = sampling
        self.best: tuple[int, float] | None = None
        """(step, score) of the best examination, the later of two equal ones."""
        self._best_hash: str | None = None
        self._last: int | None = None
        self._since = 0
        self._stopped: str | None = None

    def due(self, step: int, steps: int) -> bool:
        return bool(self.prompts) and (step % self.stage.examine.every_steps == 0 or step == steps)

    def examine(self, step: int) -> Mapping[str, Metric]:
        """Ask, score, write examinations.jsonl, and keep the weights if they are the best so far."""
        # The same seed each time: two examinations of one policy give one score, so a change is the policy's.
        title = f"{self._folder.name}: held-out tasks"
        with self._progress.phase(title, total=len(self.prompts), unit="tasks") as phase:
            with self._progress.doing("generate"):
                groups = self._ask(self.prompts, self._sampling, self.stage.examine.completions_per_prompt)
            with self._progress.doing("score"):
                score_groups(self._rubric, groups)
            phase.advance(len(groups))
        for group in groups:
            for one in group.responses:
                self._folder.append(
                    ExaminationLine(
                        step=step,
                        row=str(group.prompt.task.row),
                        prompt=group.prompt.task.prompt[-1].content or "",
                        answer=group.prompt.task.answer,
                        completion=one.text,
                        finish=str(one.completion.finish),
                        tokens=len(one.completion.ids),
                        score=one.reward,
                        parts=one.scored.parts,
                    )
                )
        metrics = examined(groups)
        self._judge(step, metrics["score"].value)
        return metrics

    def stop(self) -> str | None:
        return self._stopped

    def finish(self) -> None:
        """Put the best weights back, where the stage asks for the best.

        Where they are gone the stage ends with the last ones and says so: it has trained to its end, and an error here
        would take all of it.
        """
        # Rewards of the examination may have processes of their own (a sandbox), which would outlive the run.
        self._rubric.close()
        self._folder.write_stage(examine_keep=self.stage.examine.keep, best=None, best_lost=None)
        if self.best is None or self.stage.examine.keep != "best":
            return
        step, score = self.best
        path = self._path(step)
        # By content: a file of that name may be of another attempt that went on from the same checkpoint.
        is_kept = step == self._last or world().agreed(lambda: path.exists() and _hash(path) == self._best_hash)
        if not is_kept:
            self._lost(step, score, path)
            return
        self._folder.write_stage(best=BestExamination(step, score))
        if step == self._last:
            return
        trainable = {name: p.detach() for name, p in self._model.named_parameters() if p.requires_grad}
        read_one_file(trainable, path, world())
        self._progress.say(f"{self._folder.name}: ends with the weights of step {step}, held-out score {score:.3f}")

    def state_dict(self) -> dict[str, Any]:
        return {
            "best": list(self.best) if self.best else None,
            "best_hash": self._best_hash,
            "last": self._last,
            "since": self._since,
            "stopped": self._stopped,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best = (int(state["best"][0]), float(state["best"][1])) if state["best"] else None
        self._best_hash, self._last = state["best_hash"], state["last"]
        self._since, self._stopped = state["since"], state["stopped"]

    # ------------------------------------------------------------ small parts

    def _path(self, step: int) -> Path:
        return self._folder.path / "best" / f"step-{step:08d}.safetensors"

    def _lost(self, step: int, score: float, path: Path) -> None:
        """In stage.json, from where it is said again at the end of the run."""
        last = f"step {self._last}" if self._last is not None else "the last step"
        what = (
            f"the weights of the best examination (step {step}, score {score:.3f}) are not in "
            f"{path.parent.name}/{path.name} as they were saved, so the stage ends with those of {last}"
        )
        self._folder.write_stage(best_lost=what)
        self._progress.say(f"{self._folder.name}: WARNING: {what}")

    def _judge(self, step: int, score: float) -> None:
        stop = self.stage.stop
        self._last = step
        if math.isnan(score):  # every reward abstained: neither better nor worse than any other
            return
        # The later of two equal ones: it has trained longer, and other tasks than these may show it.
        if self.best is None or score >= self.best[1]:
            # Patience counts examinations without a better score; an equal one is none.
            better = self.best is None or score > self.best[1]
            self._since = 0 if better else self._since + 1
            self.best = (step, score)
            if self.stage.examine.keep == "best":
                self._keep(step)
        else:
            self._since += 1
        if stop.target_score is not None and score >= stop.target_score:
            self._stopped = f"the held-out score is {score:.3f}, and {stop.target_score:g} was wanted"
        elif stop.patience is not None and self._since >= stop.patience:
            self._stopped = f"no better held-out score in {self._since} examinations; the best is {self.best[1]:.3f}"

    def _keep(self, step: int) -> None:
        """Under a temporary name, then renamed: a kill leaves the file whole or not at all."""
        here, path = world(), self._path(step)
        draft = path.with_name(f".writing-{path.name}")
        with here.together("keeping the best weights"):
            path.parent.mkdir(parents=True, exist_ok=True)
        trainable = {name: p.detach() for name, p in self._model.named_parameters() if p.requires_grad}
        write_one_file(trainable, draft, here)
        self._best_hash = here.agreed(lambda: self._rename(draft, path))

    def _rename(self, draft: Path, path: Path) -> str:
        digest = _hash(draft)
        os.replace(draft, path)
        # A run that resumes from an older checkpoint must find the best weights that this checkpoint names.
        wanted = {path, *(self._path(number) for number in self._of_checkpoints())}
        for old in set(path.parent.glob("step-*.safetensors")) - wanted:
            old.unlink()
        return digest

    def _of_checkpoints(self) -> list[int]:
        """Steps whose weights a checkpoint refers to as its best."""
        steps = []
        for file in self._folder.checkpoints.glob("step-*/state.json"):
            state = json.loads(file.read_text(encoding="utf-8")).get("source", {}).get("examiner", {})
            if state.get("best"):
                steps.append(int(state["best"][0]))
        return steps


def score_groups(rubric: Rubric, groups: Sequence[Group]) -> None:
    """Fill in what the rubric says of each response; one that was aborted is no answer, and nobody judges it."""
    finished: list[Response] = []
    items: list[Sampled] = []
    for number, group in enumerate(groups):
        for response in group.responses:
            if response.completion.finish is not FinishReason.ABORTED:
                finished.append(response)
                items.append(response.sampled(group.prompt.task, number))
    for response, scored in zip(finished, rubric.score(items), strict=True):
        response.scored, response.reward = scored, scored.total


def examined(groups: Sequence[Group]) -> dict[str, Metric]:
    """Means over all answers; those that nobody judged are in none but `abstained_share`."""
    responses = [response for group in groups for response in group.responses]
    rewards = [response.reward for response in responses if response.reward is not None]
    lengths = [response.completion.num_sampled for response in responses]
    metrics: dict[str, Metric] = {
        "score": Mean(sum(rewards), len(rewards)),
        "score_error": Mean(_standard_error(groups), 1),
        "solved_share": Mean(sum(reward >= SOLVED for reward in rewards), len(rewards)),
        "length_generated": Mean(sum(lengths), len(responses)),
        "truncated_share": Mean(sum(response.truncated for response in responses), len(responses)),
        "abstained_share": Mean(len(responses) - len(rewards), len(responses)),
    }
    return metrics


def _standard_error(groups: Sequence[Group]) -> float:
    """Of the mean score over tasks; answers to one task are not independent, so their mean counts as one."""
    judged = [[answer.reward for answer in group.responses if answer.reward is not None] for group in groups]
    tasks = [fmean(rewards) for rewards in judged if rewards]
    return stdev(tasks) / math.sqrt(len(tasks)) if len(tasks) > 1 else 0.0


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
