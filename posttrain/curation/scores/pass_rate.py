"""The score `pass_rate`: the share of the policy's own answers to a task that are right.

    pass_rate = right / judged,     right: the answer has ended, and its rewards together are at least `passes`

Tasks that are never or always solved have no gradient in group-relative methods (DAPO, Yu et al. 2025,
arXiv:2503.14476, section 3.2): `keep: {least: 0.1, most: 0.9}`.

A draw depends on the seed, the prompt and its number alone, so a run that was killed goes on with the same answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from posttrain.config.model_scores import PassRateScore
from posttrain.curation.rows import Pool, Tools
from posttrain.curation.said import Said, content_key
from posttrain.curation.scores.asked import asked_model
from posttrain.curation.scores.scored import Scored
from posttrain.data.formats.table import KIND_NAMES
from posttrain.errors import ConfigError
from posttrain.rewards.registry import rubric_of
from posttrain.rewards.rubric import Rubric
from posttrain.rewards.scorer import Sampled
from posttrain.rollout.engine import Completion, FinishReason
from posttrain.rollout.native import NativeEngine
from posttrain.rollout.text import completion_text
from posttrain.sampling import SamplingDistribution
from posttrain.types import Task

AT_ONCE = 256
"""Answers that are sampled together: what a kill costs."""
NOBODY = "no reward judged an answer"
NO_ROOM = "the prompt leaves no room for an answer"
ENDED = (FinishReason.STOP_TOKEN, FinishReason.STOP_STRING)


def pass_rate_score(settings: PassRateScore, pool: Pool, tools: Tools) -> Scored:
    """Raises:
    ConfigError: the rows are no tasks; no model is known; a reward cannot be made.
    ModelError: the model cannot be loaded. EncodingError: a prompt cannot be encoded; it names the row.
    RewardError: a reward failed; names it and the row.
    """
    if pool.rows.kind is not Task:
        raise ConfigError(
            "a pass rate is of tasks, whose answers can be checked",
            where=f"score {settings.label}",
            found=KIND_NAMES[pool.rows.kind],
            expected="rows with a prompt and an `answer`",
            remedy="give tasks, or take another score, such as `ifd`",
        )
    folder = tools.modules if settings.modules is None else Path(settings.modules)
    score_R = np.full(len(pool.rows), np.nan)
    missing: dict[int, str] = {}
    cut = sampled = 0
    with rubric_of(settings.rewards, folder=folder) as rubric:
        attempts = _Attempts(settings, rubric, tools)
        key = f"pass rate 1 {attempts.asked.fingerprint} {tools.seed} {settings.model_dump_json()}"
        with Said(tools.cache, key) as said:
            known = sum(said.get(content_key(pool.rows.line(row))) is not None for row in pool.kept.tolist())
            _say_cost(settings, len(pool) - known, known, tools)
            left = iter(pool.kept.tolist())
            with tools.progress.phase(f"score {settings.label}", total=len(pool), unit="tasks") as phase:
                while block := list(islice(left, max(1, AT_ONCE // settings.samples))):
                    keys = {row: content_key(pool.rows.line(row)) for row in block}
                    new = {keys[row]: row for row in block if said.get(keys[row]) is None}
                    tokens = attempts.judge(new, pool, said)
                    for row in block:
                        judged, right, ended, drawn = _read(said, keys[row])
                        cut, sampled = cut + drawn - ended, sampled + drawn
                        if judged:
                            score_R[row] = right / judged
                        else:
                            missing[row] = NOBODY if drawn else NO_ROOM
                    phase.advance(len(block), tokens=tokens)
    notes: tuple[str, ...] = ()
    if cut:
        limit = f"{settings.sampling.max_new_tokens:,} tokens, or the model's last position"
        notes = (f"{cut:,} of {sampled:,} answers were cut at {limit}, and count as wrong",)
    return Scored(score_R, missing, notes)


class _Attempts:
    """The policy, its rewards, and how its answers are drawn."""

    def __init__(self, settings: PassRateScore, rubric: Rubric, tools: Tools):
        self.settings, self.rubric = settings, rubric
        self.asked = asked_model(settings.model, settings.label, tools)
        encoder = self.asked.encoder
        self.engine = NativeEngine(self.asked.model, decode=encoder.tokens.decode)
        self.sampling = SamplingDistribution(
            **settings.sampling.model_dump(), stop_ids=encoder.stop_ids, seed=tools.seed
        )

    def judge(self, rows: dict[str, int], pool: Pool, said: Said) -> int:
        """Store (judged, right, ended, drawn) of each row by its key. Returns the tokens that were sampled."""
        tasks = {key: pool.rows.example(row) for key, row in rows.items()}
        prompts: dict[str, tuple[int, ...]] = {}
        for key, task in tasks.items():
            assert isinstance(task, Task)
            ids = tuple(self.asked.encoder.prompt(task.prompt, task.tools))
            # With less room than `max_new_tokens` an answer is cut at the last position, and counted as cut.
            if self.asked.context is None or len(ids) < self.asked.context:
                prompts[key] = ids
            else:
                said.put(key, [0, 0, 0, 0])
        # Each different prompt once: an engine numbers equal ones, and what a row is given must not depend on which
        # rows happen to be asked beside it.
        different = list(dict.fromkeys(prompts.values()))
        drawn = self.engine.generate(different, self.sampling, completions_per_prompt=self.settings.samples)
        answers = dict(zip(different, drawn, strict=True))
        for group, (key, ids) in enumerate(prompts.items()):
            task = tasks[key]
            assert isinstance(task, Task)
            said.put(key, self._judged(task, answers[ids], group))
        return sum(len(one.ids) for own in drawn for one in own)

    def _judged(self, task: Task, answers: Sequence[Completion], group: int) -> list[float]:
        decode = self.asked.encoder.tokens.decode
        items = [
            Sampled(task.prompt, completion_text(one, decode), task, one.finish, len(one.ids), group) for one in answers
        ]
        totals = [scored.total for scored in self.rubric.score(items)]
        ended = [one.finish in ENDED for one in answers]
        # A verifier may find the right number in an answer that was cut on its way to another one.
        right = [
            total is not None and total >= self.settings.passes and whole
            for total, whole in zip(totals, ended, strict=True)
        ]
        return [sum(total is not None for total in totals), sum(right), sum(ended), len(answers)]


def _read(said: Said, key: str) -> tuple[int, int, int, int]:
    found = said.get(key)
    assert found is not None  # judged with its block
    judged, right, ended, drawn = (int(number) for number in found)
    return judged, right, ended, drawn


def _say_cost(settings: PassRateScore, tasks: int, known: int, tools: Tools) -> None:
    """Before the first token: who asked for 200,000 answers by a slip should not wait to find out."""
    most = settings.sampling.max_new_tokens
    before = f"; {known:,} tasks were answered before" if known else ""
    tools.progress.say(
        f"score {settings.label}: {tasks:,} tasks x {settings.samples} answers of up to {most:,} tokens, at most "
        f"{tasks * settings.samples * most:,} tokens{before}"
    )
