"""Keys of other tools are answered with posttrain's own, and never with a near name that means something else."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.config import SFT, STAGES, load_recipe, parse_recipe
from posttrain.config.explain import fields_of, records_in
from posttrain.config.other_tools import METHOD_OF_LOSS, NOT_HERE, OTHER_TOOLS, OTHER_TOOLS_ONLINE
from posttrain.config.schema import Recipe
from posttrain.config.yaml_text import parse_value
from posttrain.errors import ConfigError

RECIPE = """
schema: 1
model: embedded
{top}
stages:
- method: sft
  data: package://preferences.jsonl
  {sft}
- method: dpo
  data: package://preferences.jsonl
  {dpo}
- method: grpo
  data: reasoning_gym:chain_sum
  rewards: [{{kind: math}}]
  {grpo}
"""


def refused(*overrides: str, **keys: str) -> str:
    written = {"top": "", "sft": "name: sft", "dpo": "name: dpo", "grpo": "name: grpo", **keys}
    with pytest.raises(ConfigError) as caught:
        parse_recipe(RECIPE.format(**written), overrides)
    return str(caught.value)


def has(record: type, path: str) -> bool:
    head, _, rest = path.partition(".")
    option = fields_of(record).get(head)
    return option is not None and (not rest or any(has(inner, rest) for inner in records_in(option.annotation)))


@pytest.mark.parametrize("table", [OTHER_TOOLS, OTHER_TOOLS_ONLINE], ids=["all", "online"])
def test_every_key_that_is_proposed_exists(table: dict[str, str]) -> None:
    for name, words in table.items():
        key = words.partition(",")[0]
        assert has(Recipe, key) or any(has(stage, key) for stage in STAGES.values()), (name, key)
    assert set(METHOD_OF_LOSS.values()) <= set(STAGES)


def test_the_table_is_broad_and_says_one_thing_of_each_name() -> None:
    assert len({*OTHER_TOOLS, *OTHER_TOOLS_ONLINE, *NOT_HERE}) > 250
    assert not NOT_HERE.keys() & {*OTHER_TOOLS, *OTHER_TOOLS_ONLINE}
    # A name that every stage has already is never refused, so its row could not be seen.
    assert not {*OTHER_TOOLS, *NOT_HERE} & fields_of(SFT).keys()


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"sft": "eval_steps: 10"}, "write `log.held_out_every`"),
        ({"grpo": "eval_steps: 10"}, "write `examine.every_steps`"),
        ({"sft": "save_steps: 10"}, "write `checkpoint.every_steps`"),
        ({"sft": "report_to: wandb"}, "write `log.to`, a list such as [tensorboard, wandb]"),
        ({"sft": "plot_loss: true"}, "posttrain has no `plot_loss`; metrics are in `metrics.jsonl`"),
        ({"sft": "checkpoint: {save_steps: 3}"}, "write `checkpoint.every_steps` in the stage, beside `method: sft`"),
        ({"sft": "optimizer: {learning_rate: 3}"}, "write `learning_rate` in the stage, beside `method: sft`"),
        ({"sft": "seed: 3"}, "write `seed` at the left margin of the recipe"),
        ({"sft": "output_dir: x"}, "write `out` at the left margin of the recipe"),
        ({"dpo": "loss_type: sigmoid"}, "remove it, and write `method: dpo`"),
        ({"dpo": "loss_type: ipo"}, "write `method: ipo`"),
        ({"grpo": "beta: 0.1"}, "write `kl_beta`"),
        ({"grpo": "num_generations: 8"}, "write `completions_per_prompt`"),
        ({"top": "lora_r: 8"}, "it belongs in a stage: `stages: [{method: sft, adapter: {rank: 8}}]`"),
        ({"top": "learning_rate: 2e-5"}, "it belongs in a stage: `stages: [{method: sft, learning_rate: 2e-05}]`"),
        ({"top": "bf16: true"}, "write `compute.precision` in the stage, beside `method: sft`"),
        ({"top": "use_peft: true"}, "write `adapter` in the stage, beside `method: sft`"),
        ({"top": "optimizer: adamw_8bit"}, "write `optimizer` in the stage, beside `method: sft`"),
        ({"top": "adapter: lora"}, "it belongs in a stage: `stages: [{method: sft, adapter: lora}]`"),
        ({"top": "adapter: {rank: 3}"}, "write `adapter` in the stage, beside `method: sft`"),
        ({"top": "gradient_accumulation_steps: 8"}, "write `rows_per_step`, the rows of a whole step"),
        ({"top": "datasets: [{path: x}]"}, "write `data` in the stage"),
        ({"top": "load_in_8bit: true"}, "write `adapter.kind`, with `qlora`, and its `bits` in the stage"),
        ({"top": "base_model: x"}, "write `model`"),
        ({"top": "wandb_project: x"}, "write `log.to`, with the tracker's own keys: [{kind: wandb, project: mine}]"),
        ({"top": "wandb_watch: x"}, "posttrain has no `wandb_watch`"),
        ({"top": "beta: 0.1"}, "is not a key"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_pasted_key_is_answered_with_its_place(keys: dict[str, str], said: str) -> None:
    shown = refused(**keys)
    assert said in shown and "did you mean" not in shown


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("sft.save_steps=10", "write `checkpoint.every_steps`"),
        ("save_steps=10", "write `sft.checkpoint.every_steps`"),
        ("learning_rate=1e-5", "write `sft.learning_rate=1e-5`"),
        ("rewards=[]", "write `grpo.rewards=[]`"),
        ("push_to_hub=true", "posttrain has no `push_to_hub`"),
        ("beta=0.2", "write `dpo.beta=0.2`"),
    ],
)
def test_so_is_an_override(override: str, said: str) -> None:
    shown = refused(override)
    assert said in shown and "did you mean" not in shown


@pytest.mark.parametrize("method", ["sft", "dpo", "grpo"])
def test_no_foreign_key_is_taken_for_a_misspelt_one(method: str) -> None:
    foreign = {*OTHER_TOOLS, *OTHER_TOOLS_ONLINE, *NOT_HERE} - fields_of(STAGES[method]).keys()
    with pytest.raises(ConfigError) as caught:
        STAGES[method](**{"data": "package://preferences.jsonl", **dict.fromkeys(foreign, 1)})
    assert str(caught.value).count("remedy:") == len(foreign) + 1 and "did you mean" not in str(caught.value)


def test_a_rate_in_any_spelling_is_a_number(tmp_path: Path) -> None:
    for text in ("2e-5", "2.0e-5", "0.00002", "2E-5"):
        path = tmp_path / "mine.yaml"
        path.write_text(
            f"schema: 1\nmodel: embedded\nstages:\n- {{method: sft, learning_rate: {text}, "
            "data: 'package://preferences.jsonl'}\n"
        )
        assert load_recipe(path).stages[0].learning_rate == 2e-5  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("written", "expected", "remedy"),
    [
        ("optimizer: {betas: [0.9, 0.99, 0.999]}", "at most 2 items, not 3", "`betas: [0.9, 0.95]`"),
        ("learning_rate: fast", "a number", "`learning_rate: 2e-5`"),
        ("steps: many", "a whole number", "`steps: 100`"),
        ("name: a b", "Letters, digits", "`name: mine`"),
        ("compute: 3", "a group of keys", "`compute: {tokens_per_microbatch: auto}`"),
        ("adapter: [1]", "a group of keys", "`adapter: {rank: 16}`"),
    ],
)
def test_a_remedy_is_something_that_can_be_written(written: str, expected: str, remedy: str) -> None:
    shown = refused(sft=written)
    assert f"expected: {expected}" in shown and f"write {remedy}, say" in shown
    assert "..." not in shown and "Tuple" not in shown


@pytest.mark.parametrize(
    ("written", "remedy"),
    [
        ("export: off", "`export: none`"),
        ("preflight: false", "`preflight: off`"),
        ("adapter: none", "`adapter: null`"),
        ("adapter: false", "`adapter: null`"),
        ("schedule: none", "`schedule: {kind: constant, warmup_ratio: 0}`"),
    ],
)
def test_who_writes_off_is_not_told_to_switch_it_on(written: str, remedy: str) -> None:
    """`export: off` was answered with "write `export: {save: true}`"."""
    assert f"to be without it, write {remedy}" in refused(sft=written)
    key, _, value = remedy.strip("`").partition(": ")
    assert SFT(**{key: parse_value(value, "test")}).method == "sft"
