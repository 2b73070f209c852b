"""How the model in a folder is spoken to: its record, or what its other files say where it has none.

Every verb that asks a model anything starts here (`loading.load`, evaluation, serving), so that all of them build the
prompts that its training had.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from posttrain.data.speech import Speech, read_speech
from posttrain.errors import ModelError
from posttrain.models.folders.source import ModelSource, base_of
from posttrain.models.folders.tokenizers import has_tokenizer
from posttrain.models.folders.weight_files import GET_AGAIN


def speech_of(source: ModelSource) -> Speech:
    """The record of a model, from its files alone.

    An adapter without a record of its own takes that of the model under it where it also takes its tokenizer. A
    foreign model is spoken to by its tokenizer's template. What a folder lists as the ids that end an answer counts in
    any case.

    Raises:
        ModelError: the record is torn, or the model under an adapter cannot be found.
    """
    folder, stops = source.folder, list(_end_ids(source.folder))
    speech = read_speech(folder)
    if source.layout == "adapter" and (speech is None or not stops):
        base = speech_of(base_of(source))
        stops = stops or list(base.stop_ids)
        # With a tokenizer of its own it has a template of its own, and the base's record describes another one.
        if speech is None and not has_tokenizer(folder):
            speech = base
    if speech is None:
        training = (source.manifest or {}).get("training") or {}  # folders of before the record say raw here
        speech = Speech("raw" if training.get("template") == "raw" else "chat", recorded=False)
    return replace(speech, stop_ids=tuple(sorted({*speech.stop_ids, *stops})))


def _end_ids(folder: Path) -> Iterator[int]:
    """The ids that end an answer by generation_config.json and config.json, one or a list in each."""
    # Both, for they disagree in published models (a base's eos in one, the turn's end in the other), and an answer that
    # runs past its end fills the rest of its length with the next speaker's turn.
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        if not path.is_file():
            continue
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
            for part in (config, config.get("text_config") or {}):
                yield from _ids(part.get("eos_token_id"))
        except (ValueError, AttributeError) as error:
            raise ModelError("the file cannot be read", where=path, found=error, remedy=GET_AGAIN) from error


def _ids(value: Any) -> Iterator[int]:
    """_ids(7) and _ids([7]) -> 7; null, and what is no id, give none."""
    for number in value if isinstance(value, list) else [value]:
        if type(number) is int and number >= 0:
            yield number
