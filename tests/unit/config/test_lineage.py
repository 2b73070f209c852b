"""`starts_from`: siblings, their ancestors, and what is refused."""

from __future__ import annotations

import pytest

import posttrain as pt
from posttrain.config import parse_recipe
from posttrain.config.chain import continued, spoken_before
from posttrain.config.lineage import ancestors, started_from
from posttrain.errors import ConfigError

CHAIN = """
schema: 1
name: two
model: embedded
stages:
  - {name: sums, method: sft, data: "package://demonstrations.jsonl", encoding: {template: chatml}}
  - {name: tone, method: sft, data: "package://demonstrations.jsonl", starts_from: start}
  - {name: judge, method: reward, data: "package://preferences.jsonl", starts_from: sums}
  - {name: more, method: dpo, data: "package://preferences.jsonl"}
  - {name: other, method: dpo, data: "package://preferences.jsonl", starts_from: sums}
"""


def recipe(text: str = CHAIN) -> pt.Recipe:
    return parse_recipe(text)


def names(found):
    return [stage.name for stage in found]


def test_a_stage_starts_from_the_policy_before_it_or_the_one_that_it_names():
    stages = recipe().stages
    above = [started_from(stages, stage) for stage in stages]
    assert [stage and stage.name for stage in above] == [None, None, "sums", "tone", "sums"]
    assert names(ancestors(stages, stages[3])) == ["tone"]
    assert names(ancestors(stages, stages[4])) == ["sums"]
    assert names(ancestors(stages, stages[1])) == []


@pytest.mark.parametrize("name", ["tones", "judge", "more", "other"])
def test_what_is_no_earlier_policy_is_refused_with_the_nearest(name):
    with pytest.raises(ConfigError) as caught:
        recipe(CHAIN.replace("starts_from: sums}\n  - {name: more", f"starts_from: {name}}}\n  - {{name: more"))
    assert f"`judge` starts from `{name}`" in str(caught.value) and "sums" in str(caught.value)


def test_adapters_and_words_come_down_the_own_line():
    text = CHAIN.replace("encoding: {template", "adapter: lora, export: {merge: false}, encoding: {template")
    with pytest.raises(ConfigError, match=r"the stage starts from the adapter that `sums` exports alone"):
        recipe(text)
    at = text.rindex("starts_from: sums")
    stages = recipe(text[:at] + "adapter: continue, " + text[at:]).stages
    assert continued(stages, "other").kind == "lora"
    assert continued(stages, "more") is None
    assert spoken_before(stages, stages[4]).encoding.template == "chatml"
    assert spoken_before(stages, stages[3]).encoding.template == "auto"


def test_in_python_the_model_says_it():
    with pytest.raises(ConfigError, match="second argument of train"):
        pt.train(pt.SFT(starts_from="sums"), "embedded", [], out="runs/x")
