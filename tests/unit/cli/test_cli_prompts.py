"""`generate`, with a strategy and without, and `compare` ask a row as training does, and write it down whole."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from posttrain.cli.app import app
from posttrain.data.encode import Encoder
from posttrain.data.questions import as_task
from posttrain.data.read import read
from posttrain.rollout.native import NativeEngine
from tests.fixtures import byte_tokenizer, tiny_model

TEMPLATE = """\
{%- if tools %}<|tools|>{% for t in tools %}{{ t['function']['name'] }}{% endfor %}<|end|>{% endif -%}
{%- for m in messages -%}
<|{{ m['role'] }}|>{{ m['content'] or '' }}
{%- for c in m['tool_calls'] or [] %}<|call|>{{ c['function']['name'] }} {{ c['function']['arguments'] | tojson }}
{%- endfor -%}<|end|>
{%- endfor -%}
{%- if add_generation_prompt %}<|assistant|>{% endif -%}"""
SPECIALS = ["<|tools|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|call|>", "<|end|>"]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
CALL = {"type": "function", "id": "c1", "function": {"name": "add", "arguments": {"a": 2, "b": "ü"}}}
TURNS: list[dict[str, Any]] = [
    {"role": "user", "content": "2 + ü?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "5", "tool_call_id": "c1"},
    {"role": "assistant", "content": "5."},
    {"role": "user", "content": "And now?"},
]
ROW = {"prompt": TURNS, "answer": "6", "level": 3, "tools": [TOOL]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("asked")
    tokenizer = byte_tokenizer(TEMPLATE, specials=SPECIALS)
    tiny_model(vocab=len(tokenizer)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "rows.jsonl").write_text(json.dumps(ROW) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The prompts that engines were given."""
    found: list[list[int]] = []
    generate, generate_one = NativeEngine.generate, NativeEngine.generate_one

    def many(self: Any, prompts: Any, *args: Any, **options: Any) -> Any:
        found.extend(list(prompt) for prompt in prompts)
        return generate(self, prompts, *args, **options)

    async def one(self: Any, request: Any) -> Any:
        found.append(list(request.prompt))
        return await generate_one(self, request)

    monkeypatch.setattr(NativeEngine, "generate", many)
    monkeypatch.setattr(NativeEngine, "generate_one", one)
    return found


def called(folder: Path, *command: str) -> list[dict[str, Any]]:
    """The lines of its --out."""
    options = ["--prompts", str(folder / "rows.jsonl"), "--max-new-tokens", "2", "--device", "cpu"]
    result = CliRunner().invoke(app, [*command, *options, "--out", str(folder / "out.jsonl")])
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in (folder / "out.jsonl").read_text(encoding="utf-8").splitlines()]


def training_ids(folder: Path) -> list[int]:
    (task,) = map(as_task, read(folder / "rows.jsonl"))
    tokenizer = byte_tokenizer(TEMPLATE, specials=SPECIALS)
    ids = Encoder(tokenizer).prompt(task.prompt, task.tools)
    assert "<|tools|>add<|end|>" in tokenizer.decode(ids) and "<|call|>add" in tokenizer.decode(ids)
    return ids


@pytest.mark.parametrize("strategy", [[], ["--strategy", "best_of_n", "--set", "n=2", "--set", "scorer=logprob"]])
def test_a_row_with_tools_and_calls_is_asked_as_it_is_trained(
    folder: Path, asked: list[list[int]], strategy: list[str]
) -> None:
    model = str(folder / "model")
    (line,) = called(folder, "generate", model, *strategy)
    assert asked[0] == training_ids(folder)  # an engine's proof of its kept prefixes may come later
    # What was written is the row: read again, it asks the same.
    assert line["tools"] == [TOOL] and line["prompt"] == TURNS
    (again,) = map(as_task, read(folder / "out.jsonl"))
    (task,) = map(as_task, read(folder / "rows.jsonl"))
    assert tuple(replace(turn, train=None) for turn in again.prompt) == task.prompt and again.tools == task.tools


def test_two_models_are_asked_with_the_tools(folder: Path, asked: list[list[int]]) -> None:
    model = str(folder / "model")
    called(folder, "compare", model, model)
    assert asked == [training_ids(folder)] * 2


def level_of(prompt: str, completion: str, task: Any) -> float:
    return float(task.metadata["level"] + task.row.row)


def test_a_function_that_scores_sees_the_columns_of_the_row(folder: Path) -> None:
    scorer = "{kind: rewards, rewards: [{kind: function, function: tests.unit.cli.test_cli_prompts:level_of}]}"
    command = ["--strategy", "best_of_n", "--set", "n=2", "--set", f"scorer={scorer}"]
    (line,) = called(folder, "generate", str(folder / "model"), *command)
    assert line["facts"]["abstained"] == 0
