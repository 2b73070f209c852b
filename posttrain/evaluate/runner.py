"""Asks a model the suites, writes what it said, and leaves everything else as it was.

    evaluate_model("runs/mine/dpo/model", recipe.evaluate.suites, folder, baseline=Path("runs/mine/start"))

Evaluation has random streams of its own, restores the global ones, the model's mode and its gradients' state:
training goes on bit for bit as if nobody had asked. Writes

    evaluation.json            the figures of every suite
    evaluations/<suite>.jsonl  every answer
    evaluations/<suite>.counts.json    of a suite of kind pass_at_k: how many answers to each prompt are right
    evaluations/identity.json  what each suite was measured on: a suite is not asked again while that is the same
    baseline/<suite>.jsonl     at the start only: the answers whose perplexity later models are measured by
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import nn

from posttrain.config.suites import SuiteSettings
from posttrain.data.encode import Encoder
from posttrain.data.encoder_settings import EncoderSettings
from posttrain.data.sources.files import combined_fingerprint, open_sources
from posttrain.data.write import write_jsonl
from posttrain.evaluate.pass_at_k_suite import judge_samples
from posttrain.evaluate.perplexity import (
    FixedAnswer,
    Scorer,
    baseline_path,
    given_answers,
    keep_baseline,
    own_answers,
    questions_key,
    read_baseline,
)
from posttrain.evaluate.scores import distinct, perplexity, perplexity_change
from posttrain.evaluate.suites import (
    AnswerSuite,
    PassAtKSuite,
    PerplexitySuite,
    Question,
    Suite,
    WinRateSuite,
    load_suite,
)
from posttrain.evaluate.win_rate import WIN_RATE_METRICS, judge_answers
from posttrain.intervals import Score, mean, unbounded
from posttrain.models.devices import device_of
from posttrain.models.folders.fingerprint import weights_fingerprint
from posttrain.models.folders.loading import load, resolve
from posttrain.models.folders.manifest import folder_fingerprint, read_manifest, sha256_of
from posttrain.models.folders.spoken import speech_of
from posttrain.rewards.gym import SOURCE as GYM
from posttrain.rollout.engine import Completion, Engine, FinishReason
from posttrain.rollout.native import NativeEngine
from posttrain.runs.files import read_json, write_json
from posttrain.runs.folder import StageFolder, answers_path
from posttrain.runs.progress import Progress
from posttrain.runs.records.evaluation import AnswerLine, Figure, SuiteIdentities, SuiteScores, figures_of
from posttrain.sampling import SamplingDistribution
from posttrain.types import Task

SuiteFigures = dict[str, Mapping[str, Figure]]
"""{suite: {metric: figure}}"""


@dataclass(frozen=True, slots=True)
class Asked:
    """A model and all that is needed to ask it."""

    model: nn.Module
    encoder: Encoder
    engine: Engine
    seed: int = 0

    @classmethod
    def of(cls, model: nn.Module, tokenizer: Any, seed: int = 0, encoding: EncoderSettings | None = None) -> Asked:
        """A causal LM in memory with the native engine.

        Args:
            encoding: how prompts become ids: `LoadedModel.speech.settings()`; the tokenizer's own template, with the
                values that its export wrote into it, if not given.
        """
        return cls(model, Encoder(tokenizer, encoding), NativeEngine(model), seed)


def evaluate_model(
    model: str | Path | nn.Module,
    suites: Sequence[SuiteSettings],
    folder: StageFolder,
    *,
    baseline: Path,
    seed: int = 0,
    progress: Progress | None = None,
    tokenizer: Any = None,
    encoding: EncoderSettings | None = None,
    device: str = "auto",
) -> SuiteFigures:
    """Ask a model the suites of a recipe; what is there already, from the same model and questions, stays.

    Args:
        model: what `load` loads, or a causal LM that is in memory; then its `tokenizer` is needed too.
        baseline: the start's folder. If it is `folder` itself, this is the start.
        encoding: how prompts become ids, which has to be how the model was (or will be) trained; if not given, a
            model by its name is asked as its folder says.
        device: where a model that is not in memory yet is put; see `device_of`.

    Raises:
        DataError: the questions cannot be read, or a row lacks its answer.
        TemplateError: the tokenizer has no chat template, and `encoding` names none.
        ResumeError: the start was asked other questions.
    """
    progress = progress or Progress()
    if encoding is None:
        encoding = EncoderSettings() if isinstance(model, nn.Module) else speech_of(resolve(model)).settings()
    identities = _identities(model, suites, seed, folder, baseline, encoding)
    known = _known(folder, identities)
    known |= _judged_again(suites, known, folder.path, baseline, device, progress)
    missing = [suite for suite in suites if suite.name not in known]
    if missing:
        loaded_suites = [load_suite(settings) for settings in missing]
        if isinstance(model, nn.Module):
            asked = Asked.of(model, tokenizer, seed, encoding)
        else:
            loaded = load(model, device=device_of(device), say=progress.say)
            asked = Asked.of(loaded.model, loaded.tokenizer, seed, encoding)
        known |= evaluate_suites(asked, loaded_suites, folder.path, baseline=baseline, progress=progress)
    evaluation = {suite.name: known[suite.name] for suite in suites}
    folder.write(SuiteScores(evaluation))
    write_json(_identities_path(folder.path), SuiteIdentities(identities).to_json())
    return evaluation


def evaluate_suites(
    asked: Asked,
    suites: Sequence[Suite],
    out: Path,
    *,
    baseline: Path | None = None,
    progress: Progress | None = None,
) -> SuiteFigures:
    """Ask the suites in their order and write `evaluations/<suite>.jsonl` under `out`.

    Args:
        baseline: where the start's answers are kept. None or `out`: this is the start, and they are kept here.
    """
    progress = progress or Progress()
    baseline = out if baseline is None else baseline
    evaluation: SuiteFigures = {}
    answers = _Answers(asked, progress)
    with undisturbed(asked.model):
        for suite in suites:
            if isinstance(suite, WinRateSuite):
                figures = _ask(answers, suite, out)
                figures = judge_answers(suite, out, baseline, progress=progress) | figures
            elif isinstance(suite, AnswerSuite):
                figures = _ask(answers, suite, out)
            elif isinstance(suite, PassAtKSuite):
                groups, texts = answers.to(suite.name, suite.tasks, suite.sampling, suite.samples)
                figures = judge_samples(suite, groups, texts, out) | general_figures(groups, texts)
            else:
                figures = _score_fixed(asked, suite, out, baseline, progress)
            evaluation[suite.name] = figures_of(figures)
    return evaluation


# ---------------------------------------------------------------- answers that a judge scores


Groups = list[list[Completion]]
"""Completions by prompt."""
Texts = list[list[str]]


class _Answers:
    """What the model answers. Suites that ask the same prompts in the same way share one answer."""

    def __init__(self, asked: Asked, progress: Progress):
        self._asked, self._progress = asked, progress
        self._given: dict[Hashable, tuple[Groups, Texts]] = {}

    def to(
        self, name: str, prompts: Sequence[Question | Task], sampling: SamplingDistribution, per_prompt: int
    ) -> tuple[Groups, Texts]:
        """`per_prompt` answers to each prompt, and their texts; a prompt is computed once for all of its answers."""
        encoder = self._asked.encoder
        ids = [tuple(encoder.prompt(one.prompt, one.tools)) for one in prompts]
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
            texts = [[encoder.tokens.decode(one.answer_ids) for one in group] for group in groups]
            self._given[key] = groups, texts
        return self._given[key]


def _ask(given: _Answers, suite: AnswerSuite | WinRateSuite, out: Path) -> dict[str, Score]:
    groups, texts = given.to(suite.name, suite.questions, suite.sampling, suite.samples_per_prompt)
    # A reward model judges all answers later, when it is there.
    judged: list[list[float | None]] = [
        [float(suite.judge(text, one)) if isinstance(suite, AnswerSuite) else None for text in answers]
        for one, answers in zip(suite.questions, texts, strict=True)
    ]
    records = [
        AnswerLine(one.text, text, one.answer, score, len(completion.answer_ids), str(completion.finish))
        for one, group, answers, points in zip(suite.questions, groups, texts, judged, strict=True)
        for completion, text, score in zip(group, answers, points, strict=True)
    ]
    write_jsonl(answers_path(out, suite.name), (record.to_json() for record in records))
    described = general_figures(groups, texts)
    if isinstance(suite, WinRateSuite):
        return described
    points = [[score for score in group if score is not None] for group in judged]
    return {suite.metric: mean(points), **described}


def general_figures(groups: Sequence[Sequence[Completion]], texts: Sequence[Sequence[str]]) -> dict[str, Score]:
    """What is worth knowing about any answers.

    length: mean tokens, the stop token not counted. cut_share: ended by the length limit. empty_share: no text.
    distinct_1, distinct_2: see `distinct`.
    """
    return {
        "length": unbounded([fmean(len(one.answer_ids) for one in group) for group in groups]),
        "cut_share": mean([[float(one.finish is FinishReason.LENGTH) for one in group] for group in groups]),
        "empty_share": mean([[float(not text.strip()) for text in answers] for answers in texts]),
        "distinct_1": distinct(texts, 1),
        "distinct_2": distinct(texts, 2),
    }


# ---------------------------------------------------------------- answers that are fixed


def _score_fixed(
    asked: Asked, suite: PerplexitySuite, out: Path, baseline: Path, progress: Progress
) -> dict[str, Score]:
    key = questions_key(suite, asked.encoder)
    scorer = Scorer(asked.model)
    with progress.phase(f"{suite.name}: perplexity", total=len(suite.questions), unit="answers") as phase:
        if out.resolve() == baseline.resolve():
            fixed = _fixed_answers(asked, suite)
            before = nats = scorer.nats(fixed)
            keep_baseline(baseline, suite.name, key, fixed, nats)
        else:
            fixed, before = read_baseline(baseline, suite.name, key)
            nats = scorer.nats(fixed)
        lengths = [len(answer.ids) for answer in fixed]
        phase.advance(len(fixed), tokens=sum(lengths))
    records = [
        AnswerLine(
            prompt=one.text,
            completion=asked.encoder.tokens.decode(answer.ids),
            answer=one.answer,
            score=total / len(answer.ids),
            tokens=len(answer.ids),
            finish=answer.finish,
        )
        for one, answer, total in zip(suite.questions, fixed, nats, strict=True)
    ]
    write_jsonl(answers_path(out, suite.name), (record.to_json() for record in records))
    return {
        "perplexity": perplexity(nats, lengths),
        "perplexity_change": perplexity_change(nats, before, lengths),
    }


def _fixed_answers(asked: Asked, suite: PerplexitySuite) -> list[FixedAnswer]:
    if suite.answers == "given":
        return given_answers(suite, asked.encoder)
    sampling = replace(suite.sampling, stop_ids=asked.encoder.stop_ids, seed=asked.seed)
    return own_answers(suite, asked.engine, sampling, asked.encoder)


# ---------------------------------------------------------------- asked before


def _identities_path(out: Path) -> Path:
    return out / "evaluations" / "identity.json"


def _identities(
    model: str | Path | nn.Module,
    suites: Sequence[SuiteSettings],
    seed: int,
    folder: StageFolder,
    baseline: Path,
    encoding: EncoderSettings,
) -> dict[str, str]:
    """For each suite a hash of all that its figures depend on: weights, questions, settings, the start's answers."""
    weights = weights_fingerprint(model) if isinstance(model, nn.Module) else _weights_of(resolve(model).folder)
    is_start = folder.path.resolve() == baseline.resolve()
    identities = {}
    for suite in suites:
        questions = _content_of(suite.prompts)
        kept = baseline_path(baseline, suite.name)
        answers = sha256_of(kept) if kept.exists() and not is_start else None
        # Who judges changes no answer (see `judge_answers`), and no more does where the recipe lies.
        asking = suite.model_dump(exclude={"reward_model", "modules"})
        asked = [weights, asking, questions, seed, answers, encoding.template_identity]
        content = json.dumps(asked, sort_keys=True, default=repr)
        identities[suite.name] = hashlib.sha256(content.encode()).hexdigest()
    return identities


def _content_of(prompts: str) -> str:
    """An address that makes tasks is its own content."""
    return prompts if prompts.startswith(GYM) else combined_fingerprint(open_sources(prompts))


def _weights_of(folder: Path) -> str:
    """The weights that a stage trained and saved here, else the folder's content.

    A stage asks the model that it holds, its adapter not yet merged; the folder that it saved must count as the same.
    """
    manifest = read_manifest(folder)
    trained = manifest and manifest.get("weights_fingerprint")
    return str(trained) if trained else folder_fingerprint(folder)


def _judged_again(
    suites: Sequence[SuiteSettings], known: SuiteFigures, out: Path, baseline: Path, device: str, progress: Progress
) -> SuiteFigures:
    """The win rates of answers that were given before: their judge may have been trained, or trained anew, since."""
    again: SuiteFigures = {}
    for settings in suites:
        if settings.name in known and isinstance(suite := load_suite(settings), WinRateSuite):
            judged = judge_answers(suite, out, baseline, device=device, progress=progress)
            described = {name: score for name, score in known[suite.name].items() if name not in WIN_RATE_METRICS}
            again[suite.name] = figures_of(judged) | described
    return again


def _known(folder: StageFolder, identities: dict[str, str]) -> SuiteFigures:
    """The figures of suites that were asked before, and whose files are still there."""
    path, evaluation = _identities_path(folder.path), folder.document(SuiteScores)
    if evaluation is None or not path.exists():
        return {}
    before, figures = SuiteIdentities.from_json(read_json(path)).suites, evaluation.suites
    return {
        name: figures[name]
        for name, identity in identities.items()
        if before.get(name) == identity and name in figures and answers_path(folder.path, name).exists()
    }


# ---------------------------------------------------------------- as if nobody had asked


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Afterwards the global random streams and the mode of every module are what they were before."""
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
