"""Asks a model the suites, writes what it said, and leaves everything else as it was.

    evaluate_model("runs/mine/dpo/model", recipe.evaluate.suites, folder, baseline=Path("runs/mine/start"))

Evaluation has random streams of its own, restores the global ones, the model's mode and its gradients' state:
training goes on bit for bit as if nobody had asked. Writes

    evaluation.json            the figures of every suite
    evaluations/<suite>.jsonl  every answer
    evaluations/<suite>.counts.json    of a suite of kind pass_at_k: how many answers to each prompt are right
    evaluations/metrics.json   of kinds with figures of their own: how the report calls and judges them
    evaluations/identity.json  what each suite was measured on: a suite is not asked again while that is the same
    baseline/<suite>.jsonl     at the start only: the answers whose perplexity later models are measured by
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from posttrain.config.suite_settings import without_empty_stop
from posttrain.config.suites import PromptSuite, SampledSuite, SuiteSettings
from posttrain.data.encoder_settings import EncoderSettings
from posttrain.data.sources.files import combined_fingerprint, open_sources
from posttrain.diagnostics.suite_metrics import meaning
from posttrain.evaluate.asking import (
    EvaluatedModel,
    SampledAnswers,
    Suite,
    SuiteRun,
    baseline_path,
    undisturbed,
)
from posttrain.evaluate.detectable import detectable
from posttrain.evaluate.suites import SUITES, load_suite
from posttrain.models.devices import device_of
from posttrain.models.folders.fingerprint import weights_fingerprint
from posttrain.models.folders.loading import load, resolve
from posttrain.models.folders.manifest import folder_fingerprint, read_manifest, sha256_of
from posttrain.models.folders.spoken import speech_of
from posttrain.parallel.calls import OfMain, driven, everywhere
from posttrain.rewards.gym import SOURCE as GYM
from posttrain.runs.files import read_json, write_json
from posttrain.runs.folder import StageFolder, answers_path
from posttrain.runs.progress import Progress
from posttrain.runs.records.evaluation import Figure, Meaning, SuiteIdentities, SuiteMeanings, SuiteScores, figures_of

SuiteFigures = dict[str, Mapping[str, Figure]]
"""{suite: {metric: figure}}"""


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
    # Before anything is loaded: if every suite was asked before, no weights are read at all.
    identities = _identities(model, suites, seed, folder, baseline, encoding)
    known = _known(folder, identities)
    # A judge may be trained after the models that it judges, so what is known is judged again and not asked again.
    known |= _judged_again(suites, known, folder.path, baseline, device, progress)
    missing = [suite for suite in suites if suite.name not in known]
    if missing:
        loaded_suites = [load_suite(settings) for settings in missing]
        if folder.path.resolve() == baseline.resolve():  # once, and not again for every stage
            for settings, suite in zip(missing, loaded_suites, strict=True):
                for said in what_it_can_show(settings, suite):
                    progress.say(said)

        def ask(asked: EvaluatedModel) -> SuiteFigures:
            return evaluate_suites(asked, loaded_suites, folder.path, baseline=baseline, progress=progress)

        known |= everywhere(_asked, model, tokenizer, seed, encoding, device, progress, OfMain(ask))
    evaluation = {suite.name: known[suite.name] for suite in suites}
    folder.write(SuiteScores(evaluation))
    _write_meanings(suites, evaluation, folder.path)
    write_json(_identities_path(folder.path), SuiteIdentities(identities).to_json())
    return evaluation


def _asked(
    model: str | Path | nn.Module,
    tokenizer: Any,
    seed: int,
    encoding: EncoderSettings,
    device: str,
    progress: Progress,
    ask: OfMain[Callable[[EvaluatedModel], SuiteFigures]],
) -> SuiteFigures:
    """Every rank holds the model; rank 0 asks the suites and writes, and the engine answers on all of them."""
    if isinstance(model, nn.Module):
        asked = EvaluatedModel.of(model, tokenizer, seed, encoding)
    else:
        loaded = load(model, device=device_of(device), say=progress.say)
        asked = EvaluatedModel.of(loaded.model, loaded.tokenizer, seed, encoding)
    with undisturbed(asked.model):
        return driven(lambda: _of_main(ask)(asked), own=(asked.engine, asked.model))


def _of_main(ask: OfMain[Callable[[EvaluatedModel], SuiteFigures]]) -> Callable[[EvaluatedModel], SuiteFigures]:
    assert ask.value is not None
    return ask.value


def evaluate_suites(
    asked: EvaluatedModel,
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
    asking = SuiteRun(asked, SampledAnswers(asked, progress), out, out if baseline is None else baseline, progress)
    evaluation: SuiteFigures = {}
    with undisturbed(asked.model):
        for suite in suites:
            figures = suite.ask(asking)
            evaluation[suite.name] = figures_of(figures)
    return evaluation


def _write_meanings(suites: Sequence[SuiteSettings], evaluation: SuiteFigures, out: Path) -> None:
    """evaluations/metrics.json, if a kind has figures of its own, or a suite a goal: how the report calls and judges
    them."""
    meanings = {suite.name: metrics for suite in suites if (metrics := _metrics_of(suite, out))}
    for suite in suites:
        if isinstance(suite, SampledSuite) and suite.goal is not None:
            own = meanings.get(suite.name, {})
            asked = {name: own.get(name) or meaning(name) for name in evaluation[suite.name]}
            goals = {name: replace(said, goal=suite.goal) for name, said in asked.items() if said.primary}
            meanings[suite.name] = {**own, **goals}
    path = out / "evaluations" / "metrics.json"
    if meanings:
        write_json(path, SuiteMeanings(meanings).to_json())
    else:
        # A goal that was taken out of the recipe since must not be missed for ever.
        path.unlink(missing_ok=True)


def _metrics_of(suite: SuiteSettings, out: Path) -> Mapping[str, Meaning]:
    kind = SUITES[type(suite)]
    return kind.metrics if kind.described is None else kind.described(suite.name, out)


def what_it_can_show(settings: SuiteSettings, suite: Suite) -> list[str]:
    """The smallest change that a suite detects, a sentence for each figure; see `posttrain.evaluate.detectable`."""
    items = SUITES[type(settings)].items
    return [] if items is None else detectable(settings.name, items(suite))


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
    # The weights and not the folder's name: a stage that was trained anew under the same name is asked again.
    weights = weights_fingerprint(model) if isinstance(model, nn.Module) else _weights_of(resolve(model).folder)
    is_start = folder.path.resolve() == baseline.resolve()
    identities = {}
    for suite in suites:
        questions = content_of_suite(suite)
        kept = baseline_path(baseline, suite.name)
        # What later models are compared with is part of the question; for the start it is part of the answer.
        answers = sha256_of(kept) if kept.exists() and not is_start else None
        kind = SUITES[type(suite)]
        # A goal changes no answer: a recipe that gets one is not asked everything anew.
        asking = suite.model_dump(exclude={*kind.beside, "goal"})
        if "sampling" in asking:
            asking["sampling"] = without_empty_stop(asking["sampling"])
        asked = [weights, asking, questions, seed, answers, encoding.template_identity]
        # Only where a kind has some: figures of older runs keep their hash.
        asked += [kind.content(suite)] if kind.content is not None and isinstance(suite, PromptSuite) else []
        content = json.dumps(asked, sort_keys=True, default=repr)
        identities[suite.name] = hashlib.sha256(content.encode()).hexdigest()
    return identities


def content_of_suite(suite: SuiteSettings) -> str:
    """A hash of the rows of a suite; a kind without prompts says itself what its figures depend on."""
    if not isinstance(suite, PromptSuite):
        kind = SUITES[type(suite)]
        return "" if kind.content is None else kind.content(suite)
    return content_of(suite.prompts)


def content_of(prompts: str) -> str:
    """A hash of the rows of a file; an address that makes tasks is its own content."""
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
    """The figures of suites that judge what was answered before, as their judges see it now."""
    again: SuiteFigures = {}
    for settings in suites:
        rejudge = SUITES[type(settings)].rejudge
        if settings.name in known and rejudge is not None:
            suite = load_suite(settings)
            again[settings.name] = rejudge(suite, known[settings.name], out, baseline, device, progress)
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
