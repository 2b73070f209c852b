"""T93: the ids that a model's folder lists as ends of an answer end a rollout everywhere, and are exported.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

import posttrain as pt
from posttrain.cli.speaker import Speaker
from posttrain.config.online import GRPO
from posttrain.config.stages import SFT
from posttrain.data.encode import Encoder
from posttrain.data.encoder_settings import EncoderSettings
from posttrain.models.adapters.combine import merge_adapters
from posttrain.models.folders.loading import load, resolve
from posttrain.models.folders.spoken import speech_of
from posttrain.rollout.engine import FinishReason
from posttrain.rollout.native import NativeEngine
from posttrain.rollout.vllm_served import ServedEngine
from posttrain.runs.progress import Progress
from posttrain.sampling import SamplingDistribution
from posttrain.training.stages.speech import stops_in_answers
from posttrain.types import Comparison, Message, RowRef
from tests.chat_templates import TURN_END
from tests.fake_vllm import FakeServer
from tests.fixtures import byte_tokenizer, chat, demonstration, tiny_model
from tests.online import tasks_of
from tests.read_back import read_in_process

PLACES = {"<turn>": 6, "<call_end>": 7, "<turn_end>": 8, "</s>": 9, "<mark>": 10}
SMALL: dict[str, Any] = {"steps": 1, "held_out": 0}


def save(folder: Path, eos: Any, likeliest: int | None = None, template: str = TURN_END) -> Path:
    """A folder that lists `eos`; after any token, `likeliest` is said."""
    tokenizer = byte_tokenizer(template, ids=PLACES, specials=list(PLACES))
    model = tiny_model(vocab=len(tokenizer), attention_bias=False)
    if likeliest is not None:
        with torch.no_grad():
            model.model.norm.weight.zero_()
            model.model.embed_tokens.weight.zero_()
        model.model.norm.weight.data.fill_(1.0)
        model.model.embed_tokens.weight.data.fill_(1.0)
        model.lm_head.weight.data.zero_()
        model.lm_head.weight.data[likeliest] = 1.0
    model.generation_config = GenerationConfig(eos_token_id=eos)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Saves are read back in the test's process."""
    yield from read_in_process(monkeypatch)


@pytest.mark.parametrize("said", [7, 9, 8])
def test_each_of_them_ends_an_answer(tmp_path: Path, said: int) -> None:
    """7 and 9 are the folder's, 8 is what the template writes."""
    folder = save(tmp_path / "m", [7, 9], likeliest=said)
    loaded = load(folder)
    encoder = Encoder(loaded.tokenizer, loaded.speech.settings())
    assert encoder.stop_ids == {7, 8, 9}
    sampling = SamplingDistribution(temperature=0.0, max_new_tokens=4, stop_ids=encoder.stop_ids)
    prompt = encoder.prompt(chat("Hi"))
    native = NativeEngine(loaded.model).generate([prompt], sampling)[0][0]
    with FakeServer(folder) as server:
        served = ServedEngine(server.url).generate([prompt], sampling)[0][0]
    for one in (native, served):
        assert (one.ids, one.finish) == ((said,), FinishReason.EMPTY)
    answer = next(Speaker(str(folder), device="cpu", temperature=0.0, max_new_tokens=4).answers([chat("Hi")]))[0]
    assert answer.tokens == 1


def test_a_rollout_and_the_export_have_them_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start, asked = save(tmp_path / "m", [7, 9]), []
    generate = NativeEngine.generate

    def recording(self: Any, prompts: Any, sampling: Any, **options: Any) -> Any:
        asked.append(set(sampling.stop_ids))
        return generate(self, prompts, sampling, **options)

    monkeypatch.setattr(NativeEngine, "generate", recording)
    stage = GRPO(
        prompts_per_step=2,
        completions_per_prompt=2,
        sampling={"max_new_tokens": 3},
        **{**SMALL, "held_out": 0.25},
    )
    reward = lambda prompt, completion, task: float(len(completion))  # noqa: E731
    model = pt.train(stage, start, tasks_of(), out=tmp_path / "run", rewards=[reward]).model
    assert asked and all(stops == {7, 8, 9} for stops in asked)  # steps, checks and examinations
    assert json.loads((model / "generation_config.json").read_text())["eos_token_id"] == [7, 8, 9]
    assert json.loads((model / "config.json").read_text())["eos_token_id"] == [7, 8, 9]
    record = json.loads((model / "posttrain_speech.json").read_text())
    assert record["stop_ids"] == [7, 8, 9] and record["stop_texts"] == ["<call_end>", "<turn_end>", "</s>"]


@pytest.mark.parametrize("place", ["generation_config.json", "config.json", "text_config"])
def test_wherever_the_folder_lists_them(tmp_path: Path, place: str) -> None:
    folder = save(tmp_path / "m", None)
    path = folder / ("config.json" if place == "text_config" else place)
    config = json.loads(path.read_text())
    (config.setdefault("text_config", {}) if place == "text_config" else config)["eos_token_id"] = [7, 9]
    path.write_text(json.dumps(config))
    assert speech_of(resolve(folder)).stop_ids == (7, 9)


def test_an_adapter_and_what_is_merged_of_it_keep_them(tmp_path: Path) -> None:
    start = save(tmp_path / "m", [7, 9])
    rows = [{"prompt": f"{n}?", "completion": f"{n}."} for n in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = SFT(adapter={"kind": "lora", "rank": 2}, export={"merge": False}, rows_per_step=2, **SMALL)
    adapter = pt.train(stage, start, tmp_path / "rows.jsonl", out=tmp_path / "run").model
    merge_adapters(adapter, tmp_path / "merged")
    for folder in (adapter, tmp_path / "merged"):
        assert speech_of(resolve(folder)).stop_ids == (7, 8, 9)
        assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [7, 8, 9]


def test_the_trained_stop_stays_the_one_that_the_template_writes(tmp_path: Path) -> None:
    loaded = load(save(tmp_path / "m", [7, 9]))
    tree = Encoder(loaded.tokenizer, loaded.speech.settings()).demonstration(demonstration("Hi", "Hello."))[0]
    assert tree.branches[0].ids[-1] == 8


def test_an_id_that_the_template_writes_inside_an_answer_is_no_stop(tmp_path: Path) -> None:
    marked = TURN_END.replace("{{ m['content'] }}", "{{ ('<mark>' if m['role'] == 'assistant') }}{{ m['content'] }}", 1)
    loaded = load(save(tmp_path / "m", [7, 10], template=marked))
    encoder = Encoder(loaded.tokenizer, loaded.speech.settings())
    assert encoder.stop_ids == {7, 8, 9}
    assert "'<mark>' (10)" in encoder.notes[0] and "in the middle" in encoder.notes[0]


def test_rows_that_go_on_after_such_an_id_are_named() -> None:
    tokenizer = byte_tokenizer(TURN_END, ids=PLACES, specials=list(PLACES))
    encoder = Encoder(tokenizer, EncoderSettings(stop_ids=(7,)))
    sides = tuple((Message("assistant", text),) for text in ("fine", "one<call_end>two"))
    well = ((Message("assistant", "well"),), sides[0])
    good = encoder.comparison(Comparison(chat("Hi"), well, 0, RowRef("a.jsonl", 1)))
    bad = encoder.comparison(Comparison(chat("Hi"), sides, 0, RowRef("a.jsonl", 2)))
    assert stops_in_answers([good], encoder) == ()
    (check,) = stops_in_answers([good, bad], encoder)
    assert (check.status, check.evidence["found"], check.evidence["ids"]) == ("warn", 1, [7])
    assert "a.jsonl, row 2" in check.detail


def test_an_id_that_no_token_has_is_left_out() -> None:
    tokenizer = byte_tokenizer(TURN_END, ids=PLACES, specials=list(PLACES))
    assert Encoder(tokenizer, EncoderSettings(stop_ids=(7, 50256))).stop_ids == {7, 8, 9}


def test_sampling_fields_of_the_folder_still_change_nothing(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", [7, 9])
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "temperature": 0.1, "top_k": 1, "do_sample": True}))
    speaker = Speaker(str(folder), device="cpu", say=Progress().say)
    assert (speaker.sampling.temperature, speaker.sampling.top_k) == (1.0, None)
    assert speaker.sampling.stop_ids == {7, 8, 9}
