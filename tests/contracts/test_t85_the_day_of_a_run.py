"""T85: a template that writes today's date writes one day in a whole run, in its export, and wherever that is used.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

import datetime
import json
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

import posttrain as pt
from posttrain.cli.speaker import Speaker
from posttrain.config.online import GRPO
from posttrain.config.stages import DPO, SFT
from posttrain.rollout.native import NativeEngine
from posttrain.training import checkpoint
from posttrain.types import Task
from tests.chat_templates import CHATML
from tests.fixtures import byte_tokenizer, chat, tiny_model
from tests.online import tasks_of
from tests.read_back import read_in_process

DATED = "{%- set today = strftime_now('%Y-%m-%d') -%}<{{ today }}>" + CHATML
HI: list[dict[str, str]] = [{"role": "user", "content": "Hi"}]
MONDAY, TUESDAY = datetime.datetime(2026, 11, 30, 23, 59), datetime.datetime(2026, 12, 1, 0, 1)
SMALL: dict[str, Any] = {"rows_per_step": 2, "held_out": 0, "steps": 3, "checkpoint": {"every_steps": 1, "keep": 2}}
Clock = Callable[[datetime.datetime], None]


class Killed(BaseException):
    """As sudden as `kill -9`: nothing in the package catches it."""


@pytest.fixture
def it_is(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Sets the clock of posttrain and of `transformers`."""

    def turned(moment: datetime.datetime) -> None:
        class Date(datetime.date):
            @classmethod
            def today(cls) -> datetime.date:  # type: ignore[override]
                return moment.date()

        class Moment(datetime.datetime):
            @classmethod
            def now(cls, tz: Any = None) -> datetime.datetime:  # type: ignore[override]
                return moment

        ours = types.SimpleNamespace(date=Date, datetime=Moment, time=datetime.time)
        monkeypatch.setattr("posttrain.data.templates.clock.datetime", ours)
        monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Moment)

    return turned


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Saves are read back in the test's process."""
    yield from read_in_process(monkeypatch)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tokenizer = byte_tokenizer(DATED, specials=["<|im_start|>", "<|im_end|>"])
    tiny_model(vocab=len(tokenizer)).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    rows = [{"prompt": f"{n}?", "completion": f"{n}."} for n in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = [{"prompt": f"{n}?", "chosen": f"{n}.", "rejected": "No."} for n in range(6)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    return tmp_path / "base"


def sft(base: Path, out: str, **options: Any) -> Path:
    return pt.train(SFT(**SMALL, **options), base, base.parent / "rows.jsonl", out=base.parent / out).model


def day_of(model: Path) -> str:
    """The day in the prompt that plain `transformers` builds from a folder, and that posttrain builds."""
    text = str(AutoTokenizer.from_pretrained(model).apply_chat_template(HI, tokenize=False, add_generation_prompt=True))
    speaker = Speaker(str(model), device="cpu")
    assert speaker.encoder.tokens.decode(speaker.encoder.prompt(chat("Hi"))) == text
    return text[1:11]


def test_a_model_is_asked_on_tuesday_as_it_was_trained_on_monday(base: Path, it_is: Clock) -> None:
    it_is(MONDAY)
    model = sft(base, "run")
    it_is(TUESDAY)
    assert day_of(base) == "2026-12-01"
    assert day_of(model) == "2026-11-30"
    assert json.loads((model / "posttrain_speech.json").read_text())["date"] == "2026-11-30"


def test_the_next_stage_keeps_the_day_and_can_name_another(base: Path, it_is: Clock) -> None:
    it_is(MONDAY)
    model = sft(base, "run")
    it_is(TUESDAY)
    pairs = base.parent / "pairs.jsonl"
    kept = pt.train(DPO(**SMALL), model, pairs, out=base.parent / "kept").model
    named = pt.train(DPO(**SMALL, encoding={"date": "2027-05-06"}), model, pairs, out=base.parent / "named").model
    today = pt.train(DPO(**SMALL, encoding={"date": "today"}), model, pairs, out=base.parent / "today").model
    assert [day_of(folder) for folder in (kept, named, today)] == ["2026-11-30", "2027-05-06", "2026-12-01"]


def killed_after(monkeypatch: pytest.MonkeyPatch, steps: int, train: Callable[[], Any]) -> None:
    """Die when `steps` steps are taken and saved."""
    save, taken = checkpoint.save, [0]

    def dying(*args: Any, **options: Any) -> Any:
        result = save(*args, **options)
        taken[0] += 1
        if taken[0] == steps:
            raise Killed
        return result

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", dying)
        with pytest.raises(Killed):
            train()


def test_a_run_that_goes_on_after_midnight_keeps_its_day(base: Path, it_is: Clock, monkeypatch: Any) -> None:
    """The rows that are left are those of the run, and the weights those of a run that nobody killed."""
    it_is(MONDAY)
    whole = load_file(sft(base, "whole") / "model.safetensors")
    killed_after(monkeypatch, 2, lambda: sft(base, "killed"))
    it_is(TUESDAY)
    model = sft(base, "killed")
    resumed = load_file(model / "model.safetensors")
    assert day_of(model) == "2026-11-30"
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert len(list((base.parent / "killed" / "sft" / "encoded").glob("encoded-*"))) == 1


def test_prompts_of_rollouts_keep_the_day_too(base: Path, it_is: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = GRPO(
        prompts_per_step=2,
        completions_per_prompt=2,
        steps=3,
        sampling={"max_new_tokens": 3},
        checkpoint={"every_steps": 1, "keep": 2},
    )

    def longer(prompt: Any, completion: str, task: Task) -> float:
        return float(len(completion))

    def train() -> Any:
        return pt.train(stage, base, tasks_of(), out=base.parent / "run", rewards=[longer])

    asked: set[str] = set()
    generate, tokenizer = NativeEngine.generate, AutoTokenizer.from_pretrained(base)

    def recording(self: Any, prompts: Any, *args: Any, **options: Any) -> Any:
        asked.update(tokenizer.decode(list(prompt))[:12] for prompt in prompts)
        return generate(self, prompts, *args, **options)

    monkeypatch.setattr(NativeEngine, "generate", recording)
    it_is(MONDAY)
    killed_after(monkeypatch, 2, train)
    it_is(TUESDAY)
    assert day_of(train().model) == "2026-11-30"
    assert asked == {"<2026-11-30>"}


def test_a_run_begun_anew_has_todays_date(base: Path, it_is: Clock) -> None:
    it_is(MONDAY)
    sft(base, "run")
    it_is(TUESDAY)
    assert day_of(sft(base, "other")) == "2026-12-01"
