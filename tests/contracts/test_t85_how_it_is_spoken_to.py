"""T85: a model is asked with the prompt ids of its training, by every verb and every path (LLaMA-Factory#9765,
ms-swift#4276): trained with `template_kwargs: {enable_thinking: false}`, then used without a word about it.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer
from typer.testing import CliRunner

import posttrain as pt
from posttrain.cli.app import app
from posttrain.config import Recipe
from posttrain.config.load import parse_recipe
from posttrain.config.stages import DPO, SFT, Reward
from posttrain.data.encode import Encoder
from posttrain.data.speech import SPEECH_FILE
from posttrain.errors import ExportError
from posttrain.models.adapters.combine import merge_adapters
from posttrain.models.folders.loading import load
from posttrain.models.folders.manifest import read_manifest
from posttrain.rollout.native import NativeEngine
from posttrain.runs.progress import Progress
from posttrain.serve.loading import load_served
from posttrain.training.pipeline import check_recipe, run_recipe
from tests.fake_vllm import FakeServer
from tests.fixtures import byte_tokenizer, chat, tiny_model
from tests.read_back import read_in_process
from tests.unit.serve.kit import client_of

TEMPLATE = """\
{%- for m in messages -%}
{%- set silent = enable_thinking is defined and enable_thinking is false and m['role'] == 'assistant' and loop.last -%}
{{ '<|' + m['role'] + '|>' }}{{ '<think></think>' if silent }}{{ m['content'] }}{{ '<|end|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|assistant|>' }}{%- if enable_thinking is defined and enable_thinking is false -%}<think></think>{%- endif -%}
{%- endif -%}"""
SPECIALS = ["<|user|>", "<|assistant|>", "<|end|>", "<think>", "</think>"]
TEXT = "<|user|>Hi<|end|><|assistant|><think></think>"
SILENT = {"template_kwargs": {"enable_thinking": False}}
HI: list[dict[str, str]] = [{"role": "user", "content": "Hi"}]
SMALL: dict[str, Any] = {"steps": 1, "rows_per_step": 2, "held_out": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model and rows; nothing is trained yet."""
    folder = tmp_path_factory.mktemp("speech")
    tokenizer = byte_tokenizer(TEMPLATE, specials=SPECIALS)
    tiny_model(vocab=len(tokenizer)).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    chats = [{"prompt": f"Is it {n}?", "completion": f"No, {n + 1}."} for n in range(4)]
    pairs = [{"prompt": f"Is it {n}?", "chosen": f"No, {n + 1}.", "rejected": "Yes."} for n in range(4)]
    for name, rows in (("chats", chats), ("pairs", pairs), ("asked", [{"prompt": "Hi", "answer": "Hi"}])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[Any]:
    """Saves are read back in the test's process."""
    with pytest.MonkeyPatch.context() as patch:
        yield from read_in_process(patch)


@pytest.fixture(scope="module")
def ids(folder: Path) -> list[int]:
    """The prompt of training, made of the text by nothing but the tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    return list(tokenizer(TEXT, add_special_tokens=False)["input_ids"])


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    """The model of a stage that was trained without thoughts."""
    return pt.train(SFT(encoding=SILENT, **SMALL), folder / "base", folder / "chats.jsonl", out=folder / "run").model


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The prompts that engines were given, in the test's course."""
    found: list[list[int]] = []
    generate = NativeEngine.generate

    def recording(self: Any, prompts: Any, *args: Any, **options: Any) -> Any:
        found.extend([list(prompt) for prompt in prompts])
        return generate(self, prompts, *args, **options)

    monkeypatch.setattr(NativeEngine, "generate", recording)
    return found


def recipe_of(name: str, model: Path, folder: Path, first: dict[str, Any]) -> Recipe:
    """A suite of one question, a first stage on chats, and a DPO stage that says nothing of how the model is asked."""
    suite = {"name": "hi", "kind": "match", "prompts": str(folder / "asked.jsonl"), "pattern": "Hi"}
    text = {
        "schema": 1,
        "name": name,
        "model": str(model),
        "out": str(folder / "runs"),
        "evaluate": {"every_stage": True, "suites": [{**suite, "sampling": {"max_new_tokens": 2}}]},
        "stages": [
            {**first, "data": str(folder / "chats.jsonl"), **SMALL},
            {"name": "dpo", "method": "dpo", "data": str(folder / "pairs.jsonl"), **SMALL},
        ],
    }
    return parse_recipe(json.dumps(text), folder=folder)


def plain(model: Path, **values: Any) -> list[int]:
    """The prompt that plain `transformers` builds from a folder."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    return list(
        tokenizer.apply_chat_template(HI, add_generation_prompt=True, tokenize=True, return_dict=False, **values)
    )


def test_generate_and_compare(folder: Path, trained: Path, ids: list[int], asked: list[list[int]]) -> None:
    options = ["--max-new-tokens", "2", "--device", "cpu"]
    prompts = ["--prompts", str(folder / "asked.jsonl")]
    for command in (["generate", str(trained), *prompts], ["compare", str(trained), str(trained), *prompts]):
        result = CliRunner().invoke(app, [*command, *options])
        assert result.exit_code == 0, result.output
    assert asked == [ids] * 3


def test_a_suite(folder: Path, ids: list[int], asked: list[list[int]]) -> None:
    """The start is asked as it will be trained, the model as it was; a second stage that says nothing keeps it."""
    recipe = recipe_of("suite", folder / "base", folder, {"name": "sft", "method": "sft", "encoding": SILENT})
    run = run_recipe(recipe)
    assert asked == [ids] * 3
    assert plain(run.folder / "dpo" / "model") == ids
    header = (run.folder / "dpo" / "model" / "chat_template.jinja").read_text()
    assert header.count("posttrain-speech-end") == 1


def test_plain_transformers_and_a_served_folder(trained: Path, ids: list[int]) -> None:
    assert plain(trained) == ids
    assert plain(trained, enable_thinking=True) != ids  # a caller who says otherwise is heard
    with FakeServer(trained) as server:
        body = json.dumps({"messages": HI}).encode()
        request = urllib.request.Request(f"{server.url}/tokenize", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            assert json.load(answer)["tokens"] == ids


def test_posttrain_serve(folder: Path, trained: Path, ids: list[int]) -> None:
    """Of a model that is whole and of an adapter beside its base, which is asked as it was itself: with thoughts."""
    lora = SFT(encoding=SILENT, **SMALL, adapter={"kind": "lora", "rank": 2}, export={"merge": False})
    adapter = pt.train(lora, folder / "base", folder / "chats.jsonl", out=folder / "served-lora").model
    base = AutoTokenizer.from_pretrained(folder / "base")
    loud = list(base(TEXT.removesuffix("<think></think>"), add_special_tokens=False)["input_ids"])
    whole = load_served(str(trained), name="whole")
    both = load_served(str(folder / "base"), name="base", adapters={"silent": str(adapter)})
    for served, expected in ((whole, {"whole": ids}), (both, {"base": loud, "silent": ids})):
        with client_of(served) as client:
            for name, prompt in expected.items():
                body = {"model": name, "messages": HI, "max_tokens": 1, "return_token_ids": True}
                answer = client.post("/v1/chat/completions", json=body).json()
                assert answer["prompt_token_ids"] == prompt
                assert client.post("/tokenize", json={"model": name, "messages": HI}).json()["tokens"] == prompt
                # a caller who says otherwise is heard
                said = body | {"chat_template_kwargs": {"enable_thinking": False}}
                assert client.post("/v1/chat/completions", json=said).json()["prompt_token_ids"] == ids
                said = body | {"chat_template_kwargs": {"enable_thinking": True}}
                assert client.post("/v1/chat/completions", json=said).json()["prompt_token_ids"] == loud


def test_python(trained: Path, ids: list[int]) -> None:
    loaded = pt.load(trained)
    assert loaded.speech.template_kwargs == {"enable_thinking": False}
    assert Encoder(loaded.tokenizer, loaded.speech.settings()).prompt(chat("Hi")) == ids
    assert Encoder(loaded.tokenizer).prompt(chat("Hi")) == ids  # the tokenizer alone knows it too


def test_every_kind_of_model_has_the_record(folder: Path, trained: Path, ids: list[int]) -> None:
    """An adapter alone, a merged one, what `posttrain merge` makes of it, a reward model."""
    lora: dict[str, Any] = {"adapter": {"kind": "lora", "rank": 2}, "export": {"merge": False}}
    adapter = pt.train(
        SFT(encoding=SILENT, **SMALL, **lora), folder / "base", folder / "chats.jsonl", out=folder / "lora"
    ).model
    merge_adapters(adapter, folder / "merged")
    reward = pt.train(
        Reward(encoding=SILENT, **SMALL), folder / "base", folder / "pairs.jsonl", out=folder / "rm"
    ).model
    for model in (trained, adapter, folder / "merged", reward):
        record = json.loads((model / SPEECH_FILE).read_text())
        assert record["template_kwargs"] == {"enable_thinking": False}
        assert SPEECH_FILE in (read_manifest(model) or {})["files"]
        assert plain(model) == ids
    scorer = pt.load_reward(reward)
    assert scorer.encoder.prompt(chat("Hi")) == ids


def test_a_stage_that_says_otherwise_is_heard_and_told(folder: Path, trained: Path, ids: list[int]) -> None:
    said: list[str] = []
    progress = Progress()
    progress.say = said.append  # type: ignore[method-assign]
    loud = DPO(encoding={"template_kwargs": {"enable_thinking": True}}, **SMALL)
    model = pt.train(loud, trained, folder / "pairs.jsonl", out=folder / "loud", progress=progress).model
    assert plain(model) != ids and plain(model, enable_thinking=False) == ids
    assert any("`enable_thinking: false`" in line and "`enable_thinking: true`" in line for line in said)


def test_a_folder_whose_prompts_are_others_is_not_saved(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The export proves it on the run's own rows: here the header is lost on the way."""
    save = AutoTokenizer.from_pretrained(folder / "base").__class__.save_pretrained

    def losing(self: Any, target: Any, *args: Any, **options: Any) -> Any:
        result = save(self, target, *args, **options)
        Path(target, "chat_template.jinja").write_text(TEMPLATE)
        return result

    monkeypatch.setattr(AutoTokenizer.from_pretrained(folder / "base").__class__, "save_pretrained", losing)
    with pytest.raises(ExportError, match="plain `transformers` builds other prompts"):
        # The probe that every save has is silenced, as it is of a template whose values show in other prompts only.
        monkeypatch.setattr("posttrain.models.folders.readback.tokenizer_ids", lambda *args: [5, 6])
        pt.train(SFT(encoding=SILENT, **SMALL), folder / "base", folder / "chats.jsonl", out=tmp_path / "run")


def test_bare_text_is_handed_on_too(folder: Path, tmp_path: Path, asked: list[list[int]]) -> None:
    """A base model without a template: what stands in the first stage holds for checks, suites and the next stage."""
    tokenizer = byte_tokenizer(None)
    tiny_model(vocab=len(tokenizer)).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    first = {"name": "sft", "method": "sft", "encoding": {"template": "raw"}}
    recipe = recipe_of("raw", tmp_path / "base", folder, first)
    check_recipe(recipe)
    asked.clear()
    run = run_recipe(recipe)
    raw = tokenizer("Hi", add_special_tokens=False)["input_ids"]
    assert asked and all(prompt == raw for prompt in asked)
    loaded = load(run.folder / "dpo" / "model")
    assert loaded.speech.template == "raw" and loaded.speech.recorded
    # In memory, too: the model that a stage has trained is the start of the next.
    policy = load(tmp_path / "base")
    pt.train(SFT(encoding={"template": "raw"}, **SMALL), policy, folder / "chats.jsonl", out=tmp_path / "a")
    again = pt.train(DPO(**SMALL), policy, folder / "pairs.jsonl", out=tmp_path / "b").model
    assert load(again).speech.template == "raw"
