"""How a stage speaks to the model that it trains: as it was trained before, unless the recipe says otherwise.

settings, notes = stage_encoding(stage, start.speech, run_date(folder))    # EncoderSettings, for prompts
prompts_of(examples, encoder)                                              # real prompts for the export's proof
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.config import StageSettings, TrainingStage
from posttrain.config.settings import PromptEncoding
from posttrain.data.encode import Encoder
from posttrain.data.encoder_settings import EncoderSettings
from posttrain.data.speech import Speech
from posttrain.data.templates.clock import TODAY, today
from posttrain.errors import EncodingError
from posttrain.models.folders.export_files import SpokenPrompt
from posttrain.models.folders.loading import LoadedModel, resolve
from posttrain.models.folders.spoken import speech_of
from posttrain.runs.folder import RunFolder, StageFolder
from posttrain.training.checks.preflight import Check
from posttrain.types import Demonstration, Example, Message, TokenTree

LOOKED_AT = 1000
"""Rows whose answers are searched for ids that end one."""
PROVEN_PROMPTS = 4
"""Prompts of the run that plain `transformers` must build from the exported folder."""


def stage_encoding(stage: TrainingStage, start: Speech, run: str) -> tuple[EncoderSettings, tuple[str, ...]]:
    """What prompts of this stage depend on, and where the recipe contradicts how the start was trained.

    Template `auto` is the start's. Its values come along with it, and with any way of naming the same template; the
    stage's own win, name by name. The day is the stage's, else the start's, else the run's.

    Args:
        run: the day on which the run began.
    """
    encoding: PromptEncoding = stage.encoding  # type: ignore[attr-defined]
    spoken = start.settings()
    template = spoken.template if encoding.template == "auto" else encoding.template
    # Values belong to a template: those of another one would set what its text never asks.
    same = template in (spoken.template, start.template)
    date = run if encoding.date == TODAY else encoding.date
    settings = EncoderSettings(
        template=template,
        template_kwargs={**(spoken.template_kwargs if same else {}), **encoding.template_kwargs},
        date=date or start.date or run,
        stop_ids=start.stop_ids,
        lossy=encoding.lossy,
    )
    return settings, tuple(_contradictions(start, encoding.template, settings)) if start.recorded else ()


@dataclass(frozen=True, slots=True)
class AnswerSettings:
    """How a model is asked: AnswerSettings(EncoderSettings(template="raw"), device="auto").

    A model is spoken to as the stage that trained it does; the start, as the first stage that will train it does.
    """

    encoding: EncoderSettings
    device: str


def first_trained(stages: Sequence[StageSettings]) -> TrainingStage | None:
    """The stage in whose words the start is asked: the first that trains; None where none does."""
    return next((stage for stage in stages if isinstance(stage, TrainingStage)), None)


def answer_settings(stage: TrainingStage | None, start: LoadedModel | str | Path, run: str) -> AnswerSettings:
    """How a stage speaks to its model, given what it starts from; without a stage, as the start was trained.

    Args:
        run: the day on which the run began.
    """
    spoken = start.speech if isinstance(start, LoadedModel) else speech_of(resolve(start))
    if stage is None:
        return AnswerSettings(spoken.settings(), "auto")
    return AnswerSettings(stage_encoding(stage, spoken, run)[0], stage.compute.device)


def _contradictions(start: Speech, named: str, settings: EncoderSettings) -> Iterator[str]:
    """What the recipe names otherwise than the start's record. Under its own template the start's values stand in the
    template's header, and the encoder notes what differs from them."""
    spoken = start.settings()
    if settings.template not in (spoken.template, start.template):
        yield (
            f"the start was trained under `template: {start.template}`, and this stage trains it under `template: "
            f"{settings.template}`"
        )
    elif named not in ("auto", "chat"):
        for name, value in settings.template_kwargs.items():
            before = start.template_kwargs.get(name, value)
            if json.dumps(before) != json.dumps(value):
                yield f"the start was trained with `{name}: {json.dumps(before)}`, this stage with {json.dumps(value)}"


def spoken_apart(teacher: str | None, encoder: Encoder) -> list[str]:
    """What to say where a teacher was trained to be spoken to otherwise than the policy whose tokens it rates."""
    speech = speech_of(resolve(teacher)) if teacher is not None else None
    apart = speech.differences(Speech.of(encoder)) if speech is not None and speech.recorded else []
    if not apart:
        return []
    return [
        f"the teacher was trained to be spoken to otherwise than this stage does ({'; '.join(apart)}): it rates "
        "answers to prompts of a kind that it was not trained on"
    ]


def date_without_effect(stage: TrainingStage, encoder: Encoder) -> list[str]:
    """What to say where the recipe names a day and the template writes none."""
    encoding: PromptEncoding = stage.encoding  # type: ignore[attr-defined]
    if encoding.date is None or encoder.settings.date is not None:
        return []
    return [f"the chat template writes no date, so `encoding: {{date: {encoding.date}}}` changes nothing"]


def run_date(folder: StageFolder) -> str:
    """The day on which the stage's run began: what run.json says, or stage.json of a stage without a run, else today.

    A run that goes on after midnight keeps its day: half of its rows would have another prompt than the rest.
    """
    own = folder.stage().date if folder.exists else None
    run = RunFolder(folder.path.parent)
    return own or (run.run().date if run.exists else None) or today()


def prompts_of(rows: Iterable[Example], encoder: Encoder) -> tuple[SpokenPrompt, ...]:
    """The prompts of the first rows that have one, as templates read them, with the encoder's ids."""
    prompts = []
    for row in islice(rows, 4 * PROVEN_PROMPTS):
        messages = _asked(row)
        if not messages:  # bare text, which answers nothing
            continue
        try:
            ids = encoder.prompt(messages, row.tools)
        except EncodingError:  # counted, or refused by name, where rows are encoded
            continue
        plain = [encoder.template.plain(message) for message in messages]
        prompts.append(SpokenPrompt(_copied(plain), _copied(row.tools), tuple(ids)))
        if len(prompts) == PROVEN_PROMPTS:
            break
    return tuple(prompts)


def stops_in_answers(rows: Sequence[TokenTree], encoder: Encoder) -> tuple[Check, ...]:
    """Answers that go on after an id which the start's folder lists as an end: no rollout could ever give them."""
    own = {stop.id for stop in encoder.template.stops} | {encoder.tokens.eos_id}
    further = np.array(sorted(encoder.stop_ids - own), dtype=np.int32)
    if not len(further):
        return ()
    looked, beyond, seen = 0, [], set[int]()
    for tree in islice(rows, LOOKED_AT):
        for branch in tree.branches:
            looked += 1
            goes_on = branch.loss_mask[:-1] & branch.loss_mask[1:] & np.isin(branch.ids[:-1], further)
            if goes_on.any():
                beyond.append(str(tree.row))
                seen.update(branch.ids[:-1][goes_on].tolist())
    if not beyond:
        return ()
    named = ", ".join(f"{encoder.tokens.decode([number])!r} ({number})" for number in sorted(seen))
    return (
        Check(
            "stops",
            "ends inside answers",
            "warn",
            f"{len(beyond):,} of {looked:,} answers go on after {named}, which the start's folder lists as an end: a "
            f"rollout stops there; first in {beyond[0]}",
            {"answers": looked, "found": len(beyond), "ids": sorted(seen)},
            "if it is no end of an answer, take it out of `eos_token_id` in the start's generation_config.json (and "
            "config.json); else look at these rows",
        ),
    )


def _asked(row: Example) -> Sequence[Message]:
    """The messages before a row's (last) answer."""
    if not isinstance(row, Demonstration):
        return row.prompt
    # The prompt is what a user would send: everything up to the answer that trains last.
    last = max((index for index, turn in enumerate(row.messages) if turn.role == "assistant"), default=None)
    return row.messages[:last]


def _copied(value: Any) -> Any:
    """Plain lists and dicts, as they will be read from JSON in another process."""
    return json.loads(json.dumps(value, default=_plain))


def _plain(value: Any) -> Any:
    return dict(value) if hasattr(value, "keys") else list(value)
