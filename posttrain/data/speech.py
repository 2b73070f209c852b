"""How a model is spoken to, as one record: the template and its values, the day it writes, what ends an answer.

It lies beside every model that posttrain writes, as `posttrain_speech.json`, and is read by everything that asks a
model: `generate`, `compare`, the suites, corrections, scores, the next stage of a recipe. A model that is asked
otherwise than it was trained is another model, and nothing in its answers says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.data.encoder_settings import EncoderSettings
from posttrain.errors import ModelError

if TYPE_CHECKING:
    from posttrain.data.encode import Encoder

SPEECH_FILE = "posttrain_speech.json"
SPEECH_SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Speech:
    """Speech("chat", "{% for m in messages %}...", {"enable_thinking": False}, stop_ids=(2,), stop_texts=("</s>",))."""

    template: str = "chat"
    """What the stage called it: `chat`, `chatml`, `raw`, or `file` for one of its own."""
    source: str | Mapping[str, str] | None = None
    """The Jinja text (several by name where the tokenizer has them), with values and day in its header. The folder's
    chat_template.jinja is the same, but under `raw`: the tokenizer may have a template that nobody trained it with."""
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    date: str | None = None
    """The day in its prompts; None if the template writes none."""
    stop_ids: tuple[int, ...] = ()
    """All ids that end an answer: the template's, the tokenizer's eos, those that the start's folder listed."""
    stop_texts: tuple[str, ...] = ()
    """The same as text, for whoever stops at texts."""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """The distribution that `generation_config.json` proposes to whoever serves the folder. No verb of posttrain takes
    it for its own: every field of a rollout is passed explicitly."""
    recorded: bool = field(default=True, compare=False)
    """Whether a folder says so; False is what a foreign model is taken to be."""

    @classmethod
    def of(cls, encoder: Encoder) -> Speech:
        """The record of this encoder: what prompts and stops its rows had."""
        settings, ids = encoder.settings, tuple(sorted(encoder.stop_ids))
        name = settings.template if settings.template in ("chat", "chatml", "raw") else "file"
        texts = tuple(encoder.tokens.decode([number]) for number in ids)
        return cls(name, encoder.chat_template, dict(settings.template_kwargs), settings.date, ids, texts)

    def settings(self) -> EncoderSettings:
        """The settings of an encoder over the folder's own tokenizer."""
        template = "raw" if self.template == "raw" else "chat"  # whatever it was called, it is the folder's own now
        return EncoderSettings(
            template=template,
            template_kwargs=dict(self.template_kwargs),
            date=self.date,
            stop_ids=self.stop_ids,
        )

    def differences(self, other: Speech) -> list[str]:
        """How another model is spoken to otherwise, a phrase each: ["template chat and raw"]; [] if alike."""
        own, others = self.settings().template, other.settings().template
        differences = [] if own == others else [f"template {own} and {others}"]
        for name in sorted({*self.template_kwargs, *other.template_kwargs}):
            values = [speech.template_kwargs for speech in (self, other)]
            pair = [json.dumps(given[name]) if name in given else "unset" for given in values]
            differences += [f"{name} {pair[0]} and {pair[1]}"] if pair[0] != pair[1] else []
        differences += [f"date {self.date} and {other.date}"] if self.date != other.date else []
        # Only where nothing above differs: values and day are part of the text, and would be named twice.
        both = self.source is not None and other.source is not None
        if both and not differences and self.source != other.source:
            differences.append("two texts of the template")
        return differences


def write_speech(folder: Path, speech: Speech) -> None:
    """Writes the record that `read_speech` reads, beside the model."""
    record = {key: value for key, value in asdict(speech).items() if key != "recorded"}
    content = json.dumps({"schema": SPEECH_SCHEMA, **record}, indent=2, ensure_ascii=False)
    (folder / SPEECH_FILE).write_text(content + "\n", encoding="utf-8")


def read_speech(folder: Path) -> Speech | None:
    """The record of a folder that has one.

    Raises:
        ModelError: it is torn, or written by a later version.
    """
    path = folder / SPEECH_FILE
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        schema = record.pop("schema")
        if schema == SPEECH_SCHEMA:
            # Refused, not dropped: an unknown key may be a part of the prompt that this version does not write.
            known = {entry.name for entry in fields(Speech)} - {"recorded"}
            if odd := set(record) - known:
                raise ValueError(f"unknown keys {', '.join(sorted(odd))}")
            lists = {name: tuple(record.get(name, ())) for name in ("stop_ids", "stop_texts")}
            return replace(Speech(**{**record, **lists}), recorded=True)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            "the record of how the model is spoken to is torn", where=path, found=error, remedy="copy the folder again"
        ) from error
    raise ModelError(
        "the record of how the model is spoken to has another layout",
        where=path,
        found=f"schema {schema}",
        expected=f"schema {SPEECH_SCHEMA}",
        remedy="use the version of posttrain that wrote it",
    )
