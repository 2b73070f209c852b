"""The records inside a record: who scores, and which files are named, wherever it stands among the keys.

    list(scorers_of(suite))                       # [(("scorers", "reward"), RewardModelScorer(stage="reward"))]
    with_scorers(suite, lambda scorer: ...)       # the same suite with other scorers

Strategies come from a table, and a suite or stage holds any of them; so what is to be found in them is found by its
type and not by the names of their keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from posttrain.config.embeddings import PolicyEmbedding, SentenceEmbedding
from posttrain.config.merge_measures import BarrierSettings
from posttrain.config.merging import MODEL_RECORDS, MergeSource
from posttrain.config.model_scores import (
    IFDScore,
    LogProbScore,
    PassRateScore,
    PerplexityScore,
    RDSScore,
    RewardModelScore,
)
from posttrain.config.pairs import Critique
from posttrain.config.prompts import NewPrompts, Personas
from posttrain.config.rewards import ModelReward
from posttrain.config.select import Decontaminate, Select, SelectSettings
from posttrain.config.strategies import CritiqueBy, Retrieval
from posttrain.config.strategies.base import RewardModelScorer
from posttrain.config.strategies.demonstrations import Demonstrations, EmbeddingSimilarity
from posttrain.config.teacher import LocalTeacher
from posttrain.config.values import Settings
from posttrain.data.sources.shipped import is_evaluation_set

KeyPath = tuple[str | int, ...]
S = TypeVar("S", bound=Settings)

MODEL_KEYS: Mapping[type[Settings], tuple[str, ...]] = {
    RewardModelScorer: ("model",),
    ModelReward: ("model",),
    CritiqueBy: ("critic",),
    PolicyEmbedding: ("model",),
    **dict.fromkeys((IFDScore, LogProbScore, PerplexityScore, PassRateScore, RDSScore, RewardModelScore), ("model",)),
    **dict.fromkeys((MergeSource, *MODEL_RECORDS.values()), ("model",)),
    SelectSettings: ("tokenizer",),
    Select: ("tokenizer",),
    LocalTeacher: ("model",),
}
"""Keys that name a model: a catalogue name, a folder or a hub id. A record that has one has a row here."""
FILE_KEYS: Mapping[type[Settings], tuple[str, ...]] = {
    Retrieval: ("documents",),
    Demonstrations: ("path",),
    EmbeddingSimilarity: ("model",),
    SentenceEmbedding: ("model",),
    Decontaminate: ("against",),
    Critique: ("principles_file",),
    RDSScore: ("targets",),
    NewPrompts: ("against",),
    Personas: ("personas_file",),
    BarrierSettings: ("data",),
}
"""Keys that hold the path of a file or folder, in a recipe relative to it; or a list of these and of evaluation sets
that come along."""


def records_within(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Settings]]:
    """Every record inside of `value` with its path, itself first."""
    if isinstance(value, Settings):
        yield path, value
        for name in type(value).model_fields:
            yield from records_within(getattr(value, name), (*path, name))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from records_within(item, (*path, str(key)))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from records_within(item, (*path, index))


def changed_within(record: S, change: Callable[[Settings, KeyPath], Settings], path: KeyPath = ()) -> S:
    """A copy in which every record was given to `change`, the inner ones first; equal parts stay the same objects."""

    def of(value: Any, at: KeyPath) -> Any:
        if isinstance(value, Settings):
            return changed_within(value, change, at)
        if isinstance(value, Mapping):
            return {key: of(item, (*at, str(key))) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return tuple(of(item, (*at, index)) for index, item in enumerate(value))
        return value

    changes = {}
    for name in type(record).model_fields:
        before = getattr(record, name)
        after = of(before, (*path, name))
        # Only what differs: `model_copy` marks what it is given as set, and what is unset follows other keys.
        if after is not before and after != before:
            changes[name] = after
    changed: Any = change(record.model_copy(update=changes) if changes else record, path)
    return changed


def models_within(record: Settings) -> Iterator[tuple[KeyPath, str]]:
    """Every model that is named in it, with the key's path: of scorers, rewards and strategies."""
    for path, found in records_within(record):
        for key in model_keys(found):
            if isinstance(name := getattr(found, key), str):
                yield (*path, key), name


def files_within(record: Settings) -> Iterator[tuple[KeyPath, str]]:
    """Every file and folder that its strategies name, with the key's path."""
    for path, found in records_within(record):
        for key in FILE_KEYS.get(type(found), ()):
            value = getattr(found, key)
            if isinstance(value, tuple):
                # A list may name evaluation sets that come along: what those hold changes with the version alone.
                yield from (((*path, key, at), name) for at, name in enumerate(value) if not is_evaluation_set(name))
            elif value is not None:
                yield (*path, key), value


def model_keys(record: Settings) -> tuple[str, ...]:
    """The keys of this very record that name a model."""
    return MODEL_KEYS.get(type(record), ())


def scorers_of(record: Settings) -> Iterator[tuple[KeyPath, RewardModelScorer]]:
    """The reward models that score in it, with their paths."""
    for path, found in records_within(record):
        if isinstance(found, RewardModelScorer):
            yield path, found


def teachers_of(record: Settings) -> Iterator[tuple[KeyPath, LocalTeacher]]:
    """The models of this machine that are asked to write rows for it, with their paths."""
    for path, found in records_within(record):
        if isinstance(found, LocalTeacher):
            yield path, found


def with_teachers(record: S, change: Callable[[LocalTeacher], LocalTeacher]) -> S:
    """The record with the settings of its local teachers changed."""
    return changed_within(record, lambda found, _: change(found) if isinstance(found, LocalTeacher) else found)


def with_scorers(record: S, change: Callable[[RewardModelScorer], RewardModelScorer]) -> S:
    """The record with its reward models' settings changed."""
    return changed_within(record, lambda found, _: change(found) if isinstance(found, RewardModelScorer) else found)
