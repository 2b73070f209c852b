"""The record of how a model is spoken to: kept whole, refused when torn, and compared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from posttrain.config import load_recipe
from posttrain.config.stages import DPO, SFT
from posttrain.data.encode import Encoder
from posttrain.data.encoder_settings import EncoderSettings
from posttrain.data.speech import SPEECH_FILE, Speech, read_speech, write_speech
from posttrain.errors import ModelError
from posttrain.models.folders.export import ExportSettings, save_model
from posttrain.models.folders.loading import load, resolve
from posttrain.models.folders.manifest import verify_manifest
from posttrain.models.folders.spoken import speech_of
from posttrain.training.stages.speech import date_without_effect, spoken_apart, stage_encoding
from tests.chat_templates import CHATML
from tests.fixtures import byte_tokenizer, tiny_model
from tests.read_back import read_in_process

SPECIALS = ["<|im_start|>", "<|im_end|>"]
MOODY = "{{ mood }}" + CHATML
SPEECH = Speech("file", "{{ mood }}", {"mood": "calm"}, "2026-11-30", (2, 7), ("</s>", "<end>"), {"temperature": 1.0})


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Saves are read back in the test's process."""
    yield from read_in_process(monkeypatch)


def encoder(template: str = MOODY, **settings: object) -> Encoder:
    return Encoder(byte_tokenizer(template, specials=SPECIALS), EncoderSettings(**settings))  # type: ignore[arg-type]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_speech(tmp_path, SPEECH)
    assert read_speech(tmp_path) == SPEECH
    assert SPEECH.settings() == EncoderSettings(
        template_kwargs={"mood": "calm"}, date="2026-11-30", stop_ids=(2, 7)
    )  # a file's text is the folder's own template by now
    assert read_speech(tmp_path / "elsewhere") is None


@pytest.mark.parametrize(
    ("content", "words"),
    [("{", "torn"), ("[]", "torn"), ('{"schema": 1, "tone": "kind"}', "torn"), ('{"schema": 2}', "another layout")],
)
def test_what_is_no_record_is_refused(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / SPEECH_FILE).write_text(content)
    with pytest.raises(ModelError, match=words):
        read_speech(tmp_path)


def test_an_altered_record_is_found_by_the_manifest(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(MOODY, specials=SPECIALS)
    settings = ExportSettings(speech=Speech.of(encoder(template_kwargs={"mood": "calm"})))
    save_model(tiny_model(vocab=len(tokenizer)), tokenizer, tmp_path / "m", settings)
    assert load(tmp_path / "m").speech.template_kwargs == {"mood": "calm"}
    path = tmp_path / "m" / SPEECH_FILE
    path.write_text(path.read_text().replace("calm", "wild"))
    with pytest.raises(ModelError, match=SPEECH_FILE):
        verify_manifest(tmp_path / "m")


def test_differences_are_named() -> None:
    other = replace(SPEECH, template="raw", template_kwargs={"mood": "wild", "tone": None}, date=None)
    assert SPEECH.differences(other) == [
        "template chat and raw",
        'mood "calm" and "wild"',
        "tone unset and null",
        "date 2026-11-30 and None",
    ]
    assert SPEECH.differences(replace(SPEECH, template="chatml", stop_ids=(2,))) == []
    assert SPEECH.differences(replace(SPEECH, source="another")) == ["two texts of the template"]


def test_a_stage_takes_over_what_it_says_nothing_of() -> None:
    start = Speech("chatml", CHATML, {"mood": "calm"}, "2026-11-30", (7,))

    def settled(**encoding: object) -> tuple[str, dict[str, object], str | None]:
        settings, _ = stage_encoding(DPO(data="a", encoding=encoding), start, "2027-01-01")
        assert settings.stop_ids == (7,)
        return settings.template, dict(settings.template_kwargs), settings.date

    assert settled() == ("chat", {"mood": "calm"}, "2026-11-30")
    assert settled(template_kwargs={"tone": 1}) == ("chat", {"mood": "calm", "tone": 1}, "2026-11-30")
    assert settled(template_kwargs={"mood": None}) == ("chat", {"mood": None}, "2026-11-30")
    assert settled(template="chatml") == ("chatml", {"mood": "calm"}, "2026-11-30")
    assert settled(template="raw") == ("raw", {}, "2026-11-30")  # values of another template mean nothing there
    assert settled(date="today")[2] == "2027-01-01"
    assert settled(date="2028-02-29")[2] == "2028-02-29"


def test_a_day_that_the_template_does_not_write_is_said() -> None:
    def said(template: str, date: str | None) -> list[str]:
        stage = SFT(data="a", encoding={"date": date})
        settings, _ = stage_encoding(stage, Speech(template, template), "2027-01-01")
        tokenizer = byte_tokenizer(template, specials=("<|im_start|>", "<|im_end|>"))
        return date_without_effect(stage, Encoder(tokenizer, settings))

    assert said(CHATML, "2026-01-02") == [
        "the chat template writes no date, so `encoding: {date: 2026-01-02}` changes nothing"
    ]
    assert said(CHATML, None) == [], "the run's own day is no setting"
    assert said("{{ strftime_now('%d %B %Y') }}" + CHATML, "2026-01-02") == []


def test_what_the_recipe_contradicts_is_said() -> None:
    start = Speech("raw", recorded=True)
    said = {
        template: stage_encoding(SFT(data="a", encoding={"template": template}), start, "2027-01-01")[1]
        for template in ("auto", "raw", "chat")
    }
    assert said["auto"] == said["raw"] == ()
    assert "`template: raw`" in said["chat"][0] and "`template: chat`" in said["chat"][0]
    known = Speech("chatml", template_kwargs={"mood": "calm"})
    stage = SFT(data="a", encoding={"template": "chatml", "template_kwargs": {"mood": "wild"}})
    assert '"calm"' in stage_encoding(stage, known, "2027-01-01")[1][0]
    assert stage_encoding(stage, replace(known, recorded=False), "2027-01-01")[1] == ()


def test_a_teacher_that_is_spoken_to_otherwise_is_said(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(MOODY, specials=SPECIALS)
    calm = encoder(template_kwargs={"mood": "calm"})
    save_model(tiny_model(vocab=len(tokenizer)), tokenizer, tmp_path / "t", ExportSettings(speech=Speech.of(calm)))
    assert spoken_apart(str(tmp_path / "t"), calm) == []
    assert spoken_apart(None, calm) == []
    (line,) = spoken_apart(str(tmp_path / "t"), encoder(template_kwargs={"mood": "wild"}))
    assert 'mood "calm" and "wild"' in line


def test_a_save_without_a_stage_says_what_the_tokenizer_says(tmp_path: Path) -> None:
    """The values and the day of a header count, too."""
    tokenizer = byte_tokenizer("{{ strftime_now('%Y') }}" + MOODY, specials=SPECIALS)
    made = Encoder(tokenizer, EncoderSettings(template_kwargs={"mood": "calm"}, date="2026-11-30"))
    tokenizer.chat_template = made.chat_template
    save_model(tiny_model(vocab=len(tokenizer)), tokenizer, tmp_path / "m")
    speech = speech_of(resolve(tmp_path / "m"))
    assert (speech.template_kwargs, speech.date, speech.source) == ({"mood": "calm"}, "2026-11-30", made.chat_template)
    bare = byte_tokenizer(None)
    save_model(tiny_model(vocab=len(bare)), bare, tmp_path / "bare")
    assert speech_of(resolve(tmp_path / "bare")).source is None


@pytest.mark.parametrize("method", ["sft", "reward", "grpo"])
def test_a_template_file_lies_beside_its_recipe(tmp_path: Path, method: str) -> None:
    (tmp_path / "mine.jinja").write_text(CHATML)
    (tmp_path / "rows.jsonl").write_text("{}\n")
    more = ", rewards: [{kind: math}]" if method == "grpo" else ""
    stage = f"{{name: one, method: {method}, data: rows.jsonl, encoding: {{template: mine.jinja}}{more}}}"
    (tmp_path / "r.yaml").write_text(f"schema: 1\nname: r\nmodel: embedded\nstages:\n  - {stage}\n")
    read = load_recipe(tmp_path / "r.yaml").stages[0]
    assert read.encoding.template == str((tmp_path / "mine.jinja").resolve())  # type: ignore[attr-defined]
