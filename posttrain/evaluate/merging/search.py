"""Numbers of a merge that are chosen on one half of a suite's prompts and reported on the other.

    settings = searched(merge, WeightSearch(suite="sums"), suites, folder, identity="9f2c...")

The prompts that choose say too much of what was chosen: of twenty equal merges the luckiest looks best. So the other
half reports, with its interval, and the difference of the two is named (`optimism`). Each candidate is merged in
memory, into the one model that is asked. Every score goes into search.json as it comes, and counts in the next attempt.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np

from posttrain.config.merge_measures import WeightSearch
from posttrain.config.merging import MergeSettings
from posttrain.config.suites import SuiteSettings
from posttrain.data.encoder_settings import EncoderSettings
from posttrain.errors import ConfigError
from posttrain.evaluate.asking import EvaluatedModel, SampledAnswers, undisturbed
from posttrain.evaluate.merging.candidates import Tried, Values, search
from posttrain.evaluate.merging.memory import InMemory
from posttrain.evaluate.suites import AnswerSuite, load_suite
from posttrain.evaluate.words import in_points, percent
from posttrain.intervals import Score, average, paired_difference, unbounded
from posttrain.models.merging.run import planned
from posttrain.runs.folder import StageFolder
from posttrain.runs.layout import model_label
from posttrain.runs.progress import Progress
from posttrain.runs.records.evaluation import Figure
from posttrain.runs.records.merging import SearchRecord

FEWEST = 2
"""Prompts of a suite: one that chooses and one that reports."""


# ---------------------------------------------------------------- the two halves


@dataclass(frozen=True, slots=True)
class Halves:
    """Suites that a search may ask, each in two parts: Halves(choosing=(suite, ...), reporting=(suite, ...))."""

    choosing: tuple[AnswerSuite, ...]
    reporting: tuple[AnswerSuite, ...]


def halves_of(suites: Sequence[SuiteSettings], share: float, seed: int) -> Halves:
    """Every suite's prompts drawn into two parts, alike for every candidate and every attempt.

    Raises:
        ConfigError: a suite whose answers have no score each, or with a single prompt.
    """
    parts: tuple[list[AnswerSuite], list[AnswerSuite]] = ([], [])
    for settings in suites:
        suite = load_suite(settings)
        if not isinstance(suite, AnswerSuite):
            raise ConfigError(
                f"the suite `{settings.name}` gives no score to each answer, so it cannot choose between merges",
                where="search.suite",
                found=f"kind: {vars(settings).get('kind')}",
                expected="a suite of kind match, exact or number",
                remedy="name another suite",
            )
        count = len(suite.questions)
        if count < FEWEST:
            raise ConfigError(
                f"the suite `{settings.name}` has too few prompts to choose on some and report on others",
                where="search.suite",
                found=f"{count} prompt",
                expected=f"at least {FEWEST}; some hundred say something",
                remedy="name a suite with more prompts, or raise its `limit`",
            )
        order = list(range(count))
        random.Random(f"{seed}/{settings.name}").shuffle(order)
        first = min(max(1, round(share * count)), count - 1)
        for part, chosen in zip(parts, (order[:first], order[first:]), strict=True):
            part.append(replace(suite, questions=[suite.questions[index] for index in sorted(chosen)]))
    return Halves(tuple(parts[0]), tuple(parts[1]))


def prompt_scores(asked: EvaluatedModel, suites: Sequence[AnswerSuite], progress: Progress) -> list[list[float]]:
    """Of each suite one score a prompt, the larger the better."""
    answers = SampledAnswers(asked, progress)
    found = []
    for suite in suites:
        _, texts = answers.to(suite.name, suite.questions, suite.sampling, suite.samples_per_prompt)
        scores = [
            fmean(float(suite.judge(text, question)) for text in own)
            for question, own in zip(suite.questions, texts, strict=True)
        ]
        found.append([1.0 - score for score in scores] if suite.metric == "unwanted_match" else scores)
    return found


def over_suites(scores: Sequence[Sequence[float]]) -> Score:
    """The mean of the suites' means with its interval; each suite counts alike, however many prompts it has."""
    if len(scores) == 1:
        return average(scores[0])
    return unbounded(_weighted(scores))


def _weighted(scores: Sequence[Sequence[float]]) -> np.ndarray:
    total = sum(len(own) for own in scores)
    return np.concatenate([np.asarray(own) * (total / (len(scores) * len(own))) for own in scores])


# ---------------------------------------------------------------- the numbers


def values_of(settings: MergeSettings, over: str) -> Values:
    """What is searched, as the recipe has it; numbers alone, as the settings' validation holds."""
    if over == "t":
        return (float(settings.common("t")),)  # type: ignore[arg-type]
    key = {"weights": "weight"}.get(over, over)
    return tuple(float(settings.value_of(index, key)) for index in range(len(settings.models)))  # type: ignore[arg-type]


def with_values(settings: MergeSettings, over: str, values: Values) -> MergeSettings:
    """The merge with other numbers."""
    if over == "t":
        return settings.model_copy(update={"t": values[0]})
    key = {"weights": "weight"}.get(over, over)
    models = tuple(model.model_copy(update={key: value}) for model, value in zip(settings.models, values, strict=True))
    return settings.model_copy(update={"models": models})


# ---------------------------------------------------------------- the search


def searched(
    settings: MergeSettings,
    chosen_by: WeightSearch,
    suites: Sequence[SuiteSettings],
    folder: StageFolder,
    *,
    identity: str,
    seed: int = 0,
    split_seed: int = 0,
    encoding: EncoderSettings | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> MergeSettings:
    """The merge with the numbers that were chosen; search.json says all that was tried.

    Args:
        suites: those that `chosen_by` names.
        identity: of everything that the scores depend on; scores of an earlier attempt count if it is the same.
        seed: of the merge's draws and of the answers'.

    Raises:
        ConfigError: a suite that cannot choose, or a merge that cannot be made in memory.
    """
    progress = progress or Progress()
    halves = halves_of(suites, chosen_by.chosen_on, split_seed)
    before = folder.document(SearchRecord)
    record = SearchRecord(
        identity,
        chosen_by.over,
        chosen_by.method,
        chosen_by.suite,
        chosen_by.budget,
        sum(len(suite.questions) for suite in halves.choosing),
        sum(len(suite.questions) for suite in halves.reporting),
        candidates=(),
    )
    known = {}
    if before is not None and before.identity == identity:
        known = {
            tuple(float(v) for v in one.values if v is not None): one.score
            for one in before.candidates
            if one.score is not None
        }
    names = ["t"] if chosen_by.over == "t" else [model_label(source.label) for source in settings.models]
    start = values_of(settings, chosen_by.over)
    with planned(settings, folder.model) as plan:
        place = InMemory.of(plan, device, "search")
        speech = encoding or plan.models[0].speech.settings()

        def scores(values: Values, half: Sequence[AnswerSuite]) -> list[list[float]]:
            place.put_merge(with_values(settings, chosen_by.over, values), seed)
            asked = EvaluatedModel.of(place.loaded.model, place.loaded.tokenizer, seed, speech)
            with undisturbed(place.loaded.model):
                return prompt_scores(asked, half, progress)

        tried = Tried(
            lambda values: over_suites(scores(values, halves.choosing)).value,
            chosen_by.budget,
            known,
            lambda candidates: folder.write(replace(record, candidates=candidates)),
        )
        chosen = search(start, chosen_by, names, tried)
        values = tuple(float(value) for value in chosen.values if value is not None)
        reported = scores(values, halves.reporting)
        written = reported if values == start else scores(start, halves.reporting)
    there, own = over_suites(reported), over_suites(written)
    gain = paired_difference(_weighted(written), _weighted(reported))
    optimism = (chosen.score or 0.0) - there.value
    record = replace(
        record,
        candidates=tuple(tried.candidates.values()),
        chosen=chosen,
        reported=Figure.of(there),
        as_written=Figure.of(own),
        gain=Figure.of(gain),
        optimism=optimism,
        said=_sentence(record, names, chosen.what, values, chosen.score or 0.0, there, own, len(tried.candidates)),
    )
    folder.write(record)
    progress.say(f"{folder.name}: {record.said}")
    return with_values(settings, chosen_by.over, values)


def _sentence(
    record: SearchRecord,
    names: Sequence[str],
    what: str,
    values: Values,
    score: float,
    there: Score,
    written: Score,
    tried: int,
) -> str:
    numbers = ", ".join(f"{name} {value:g}" for name, value in zip(names, values, strict=True))
    return (
        f"of {tried} merges, {what} ({numbers}) was best on the {record.choosing} prompts that choose: "
        f"{percent(score)} %. On the {record.reporting} others it has {percent(there.value)} % "
        f"[{percent(there.low)}, {percent(there.high)}], as written {percent(written.value)} % "
        f"[{percent(written.low)}, {percent(written.high)}]; choosing lends {in_points(score - there.value)} points"
    )
