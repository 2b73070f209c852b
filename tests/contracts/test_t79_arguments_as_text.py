"""T79: templates that take a call's arguments as JSON text, and those that take a mapping.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from posttrain.types import Demonstration, Message, RowRef
from tests.encoding import CALL_TOOL, calling, family_encoder, trained_runs

ARGUMENTS: dict[str, Any] = {"zone": "Ünterwalden", "city": "Oslo", "days": 2}


def trained(family: str, arguments: Any) -> str:
    messages = (
        Message("user", "Weather?"),
        calling(arguments),
        Message("tool", "rain", tool_call_id="call00001"),
        Message("assistant", "Rain."),
    )
    encoder = family_encoder(family)
    trees = encoder.demonstration(Demonstration(messages, RowRef("t.jsonl", 1), tools=(CALL_TOOL,)))
    return trained_runs(encoder, trees[0])[0]


@pytest.mark.parametrize("family", ["DEEPSEEK_V3", "HERMES", "MISTRAL", "QWEN35_THINK"])
def test_the_rows_form_does_not_matter(family: str) -> None:
    assert trained(family, ARGUMENTS) == trained(family, json.dumps(ARGUMENTS))


@pytest.mark.parametrize("family", ["DEEPSEEK_V3", "HERMES"])
def test_arguments_are_json_once_in_the_rows_order(family: str) -> None:
    assert json.dumps(ARGUMENTS, ensure_ascii=False) in trained(family, ARGUMENTS)


PRINTS = (
    "{{ tools | tojson }}{% for m in messages %}<|{{ m.role }}|>{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ FORM }}{% endfor %}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.mark.parametrize(
    ("form", "written"),
    [
        ("c.function.arguments", json.dumps(ARGUMENTS, ensure_ascii=False)),  # a mapping would print as Python's
        ("c.function.arguments | tojson", json.dumps(ARGUMENTS, ensure_ascii=False)),  # a text would be quoted twice
    ],
)
def test_each_template_gets_the_form_that_it_takes(form: str, written: str) -> None:
    source = PRINTS.replace("FORM", form)
    encoder = family_encoder(source, specials=["<|user|>", "<|assistant|>", "<|tool|>"])
    messages = (Message("user", "Weather?"), calling(ARGUMENTS))
    (tree,) = encoder.demonstration(Demonstration(messages, RowRef("t.jsonl", 1), tools=(CALL_TOOL,)))
    assert trained_runs(encoder, tree) == [f"weather{written}</s>"]
