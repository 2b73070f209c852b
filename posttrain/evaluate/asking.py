"""How a model is asked: what it answers, what is worth knowing about any answers, and where they are written.

A kind of suite gets an `SuiteRun` and returns its figures; see `posttrain.evaluate.suites`.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from posttrain.data.encode import Encoder
from posttrain.data.encoder_settings import EncoderSettings
from posttrain.data.questions import Question
from posttrain.data.write import write_jsonl
from posttrain.evaluate.figures import distinct
from posttrain.intervals import Score, mean, unbounded
from posttrain.rollout.engine import Completion, Engine, FinishReason
from posttrain.rollout.native import NativeEngine
from posttrain.rollout.shared import SharedEngine
from posttrain.rollout.text import completion_text
from posttrain.runs.folder import answers_path
from posttrain.runs.progress import Progress
from posttrain.runs.records.evaluation import AnswerLine
from posttrain.sampling import SamplingDistribution
from posttrain.types import Task

Figures = dict[str, Score]
"""{metric: Score} of one suite."""
CompletionGroups = list[list[Completion]]
"""Completions by prompt."""
Texts = list[list[str]]
"""Their texts, without the stop token, and cut before a stop string."""


@dataclass(frozen=True, slots=True)
class EvaluatedModel:
    """A model and all that is needed to ask it."""

    model: nn.Module
    encoder: Encoder
    engine: Engine
    seed: int = 0

    @classmethod
    def of(
        cls, model: nn.Module, tokenizer: Any, seed: int = 0, encoding: EncoderSettings | None = None
    ) -> EvaluatedModel:
        """A causal LM in memory with the native engine.

        Args:
            encoding: how prompts become ids: `LoadedModel.speech.settings()`; the tokenizer's own template, with the
                values that its export wrote into it, if not given.
        """
        encoder = Encoder(tokenizer, encoding)
        # Strategies end steps with strings, which an engine finds in the text of what it has drawn.
        return cls(model, encoder, SharedEngine(NativeEngine(model, decode=encoder.tokens.decode)), seed)


class SampledAnswers:
    """What the model answers. Suites that ask the same prompts in the same way share one answer."""

    def __init__(self, asked: EvaluatedModel, progress: Progress):
        self._asked, self._progress = asked, progress
        self._given: dict[Hashable, tuple[CompletionGroups, Texts]] = {}

    def to(
        self, name: str, prompts: Sequence[Question | Task], sampling: SamplingDistribution, per_prompt: int
    ) -> tuple[CompletionGroups, Texts]:
        """`per_prompt` answers to each prompt, and their texts; a prompt is computed once for all of its answers."""
        encoder = self._asked.encoder
        # Ids and not texts are the key: two templates may write the same words differently, and the model sees ids.
        ids = [tuple(encoder.prompt(prompt.prompt, prompt.tools)) for prompt in prompts]
        # Stops and seed are the evaluation's own: a suite that set them would answer differently from its neighbours.
        drawn = replace(sampling, stop_ids=encoder.stop_ids, seed=self._asked.seed)
        key = (tuple(ids), drawn, per_prompt)
        if key not in self._given:
            with self._progress.phase(f"{name}: answers", total=len(ids) * per_prompt, unit="answers") as phase:
                groups = self._asked.engine.generate(
                    ids,
                    drawn,
                    completions_per_prompt=per_prompt,
                    on_finish=lambda _, __, completion: phase.advance(1, tokens=len(completion.ids)),
                )
            texts = [[completion_text(completion, encoder.tokens.decode) for completion in group] for group in groups]
            self._given[key] = groups, texts
        return self._given[key]


@dataclass(frozen=True, slots=True)
class SuiteRun:
    """What a suite needs to ask a model and to write what it said."""

    asked: EvaluatedModel
    answers: SampledAnswers
    out: Path
    """The folder of the stage that is evaluated."""
    baseline: Path
    """The start's folder, where the answers are kept that later models are compared with."""
    progress: Progress

    @property
    def is_start(self) -> bool:
        return self.out.resolve() == self.baseline.resolve()


class Suite(Protocol):
    """A suite whose questions are read: what a kind's `load` returns."""

    @property
    def name(self) -> str: ...

    def ask(self, asking: SuiteRun) -> Figures:
        """Ask the model, write `evaluations/<name>.jsonl` under `asking.out`, and return the figures."""
        ...


# ---------------------------------------------------------------- what is written and said of any answers


def baseline_path(folder: Path, suite: str) -> Path:
    """Where the start keeps what later models are measured by."""
    return folder / "baseline" / f"{suite}.jsonl"


def write_answers(
    folder: Path,
    suite: str,
    questions: Sequence[Question],
    groups: Sequence[Sequence[Completion]],
    texts: Sequence[Sequence[str]],
    scores: Sequence[Sequence[float | None]],
    parts: Sequence[Sequence[Mapping[str, tuple[float, ...]] | None]] | None = None,
) -> None:
    """A line per answer, in the questions' order; a score of None is judged later.

    Args:
        parts: what each answer adds to each figure, of suites with several figures or such as are no mean.
    """
    records = [
        AnswerLine(
            question.text,
            text,
            question.answer,
            score,
            len(completion.answer_ids),
            str(completion.finish),
            by_metric=own,
        )
        for question, *answers in zip(
            questions, groups, texts, scores, parts or [[None] * len(group) for group in groups], strict=True
        )
        for completion, text, score, own in zip(*answers, strict=True)
    ]
    write_jsonl(answers_path(folder, suite), (record.to_json() for record in records))


def general_figures(groups: Sequence[Sequence[Completion]], texts: Sequence[Sequence[str]]) -> dict[str, Score]:
    """What is worth knowing about any answers.

    length: mean tokens, the stop token not counted. cut_share: ended by the length limit. empty_share: no text.
    distinct_1, distinct_2: see `distinct`.
    """
    return {
        "length": unbounded([fmean(len(completion.answer_ids) for completion in group) for group in groups]),
        "cut_share": mean(
            [[float(completion.finish is FinishReason.LENGTH) for completion in group] for group in groups]
        ),
        "empty_share": mean([[float(not text.strip()) for text in answers] for answers in texts]),
        "distinct_1": distinct(texts, 1),
        "distinct_2": distinct(texts, 2),
    }


# ---------------------------------------------------------------- as if nobody had asked


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Afterwards the global random streams and the mode of every module are what they were before."""
    # Evaluation in the middle of training must leave no trace: a resumed run, which skips it, has to be bitwise equal.
    modes = [(module, module.training) for module in model.modules()]
    python, arrays, host = random.getstate(), np.random.get_state(), torch.get_rng_state()
    devices = [torch.cuda.get_rng_state(index) for index in range(torch.cuda.device_count())]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        random.setstate(python)
        np.random.set_state(arrays)
        torch.set_rng_state(host)
        for index, state in enumerate(devices):
            torch.cuda.set_rng_state(state, index)
