"""The recipes in recipes/ can be read, and what they measure on is nowhere in what they train on."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from posttrain.config import Correction, Data, Recipe, TrainingStage, data_of, load_recipe
from posttrain.config.stages import SFT, PreferenceStage
from posttrain.config.suites import MatchSuite
from posttrain.data import read
from posttrain.data.questions import question, questions
from posttrain.evaluate.suites.match import matches
from posttrain.types import Demonstration, Task

RECIPES = Path(__file__).parents[3] / "recipes"
DATA = RECIPES / "data"
NAMES = ("identity", "identity_displaced", "sft_sharegpt")
EMBEDDED = (
    "grpo_arithmetic",
    "iterated_dpo",
    "kto_feedback",
    "merge_specialists",
    "orpo",
    "rejection_sampling_rounds",
    "reward_hacking",
    "select_vs_random",
    "simpo",
)
"""Recipes on the model that ships with posttrain; see test_recipes_offline.py and test_recipes_online.py."""
FROM_THE_HUB = ("reward_align_anything",)
"""Recipes for those who have the data and the model; test_config.py reads them."""
SMOLLM2 = (
    "grpo_arithmetic_smollm2",
    "ppo_arithmetic_smollm2",
    "rejection_sampling_smollm2",
    "test_time_compute_smollm2",
)
"""On a real model; see test_recipes_online.py, and below."""
SHARED_WORDS = 4
"""A held-out prompt that has so many words in a row from a training prompt would be its template, not a paraphrase."""
SHARED_SHARE = 0.6
"""Of the words of both: "tell me your name" and "please tell me your name" share 0.8."""


def recipe(name: str) -> Recipe:
    return load_recipe(RECIPES / f"{name}.yaml")


def words(text: str) -> tuple[str, ...]:
    """words("What's your name?") == ("what's", "your", "name")"""
    return tuple(re.findall(r"[a-z0-9]+(?:'[a-z]+)?", text.lower()))


def runs_of(prompt: tuple[str, ...], length: int) -> set[tuple[str, ...]]:
    return {prompt[start : start + length] for start in range(len(prompt) - length + 1)}


def likeness(one: tuple[str, ...], other: tuple[str, ...]) -> float:
    return len(set(one) & set(other)) / len(set(one) | set(other))


def prompts(file: str) -> list[tuple[str, ...]]:
    return [words(asked.text) for asked in questions(read(DATA / file))]


def trained_prompts() -> list[tuple[str, ...]]:
    sources = data_of(recipe("identity").stages[0]).values()
    return [prompt for data in sources for path in data.path for prompt in prompts(Path(path).name)]


def paraphrase_faults(held_out: list[tuple[str, ...]], trained: list[tuple[str, ...]]) -> list[str]:
    """Held-out prompts that a training prompt gives away, each with that prompt."""
    templates = {run: prompt for prompt in trained for run in runs_of(prompt, SHARED_WORDS)}
    faults = []
    for asked in held_out:
        sources = {templates[run] for run in runs_of(asked, SHARED_WORDS) if run in templates}
        sources |= {prompt for prompt in trained if likeness(asked, prompt) >= SHARED_SHARE}
        faults += [f"{' '.join(asked)} <- {' '.join(source)}" for source in sorted(sources)]
    return faults


# ---------------------------------------------------------------- the recipes


@pytest.mark.parametrize("name", NAMES)
def test_recipe_is_read_and_named_after_its_file(name: str) -> None:
    found = recipe(name)
    assert found.name == name
    assert found.model == "smollm2-135m-instruct"
    assert not found.notes
    assert found.to_yaml()


def test_no_recipe_is_untested() -> None:
    assert {path.stem for path in RECIPES.glob("*.yaml")} == {*NAMES, *EMBEDDED, *FROM_THE_HUB, *SMOLLM2}


@pytest.mark.parametrize("name", NAMES)
def test_every_path_of_a_recipe_exists(name: str) -> None:
    found = recipe(name)
    stages = [stage.data for stage in found.stages]
    files = [Path(path) for data in stages if isinstance(data, Data) for path in data.path]
    files += [Path(suite.prompts) for suite in found.evaluate.suites]
    assert files
    assert all(path.is_file() for path in files)


def test_identity_is_a_correction_and_then_preferences_on_an_adapter() -> None:
    pairs, trained = recipe("identity").stages
    assert isinstance(pairs, Correction)
    assert isinstance(trained, PreferenceStage)
    assert trained.data is not None and trained.data.stage == pairs.name
    assert trained.adapter is not None


def test_displaced_differs_from_identity_in_the_training_stage_alone() -> None:
    healthy, displaced = recipe("identity"), recipe("identity_displaced")
    assert displaced.stages[0] == healthy.stages[0]
    assert displaced.stages[1] != healthy.stages[1]
    assert displaced.evaluate == healthy.evaluate
    watched = displaced.stages[1]
    assert isinstance(watched, TrainingStage)
    assert "likelihood_displacement" not in watched.alarms.off


def test_sft_sharegpt_trains_on_sharegpt_rows() -> None:
    (stage,) = recipe("sft_sharegpt").stages
    assert isinstance(stage, SFT)
    assert stage.data is not None and stage.data.format == "sharegpt"


# ---------------------------------------------------------------- the rows


def test_data_has_the_declared_formats() -> None:
    wanted = read(DATA / "identity_wanted.jsonl")
    held_out = read(DATA / "identity_heldout.jsonl")
    keep = read(DATA / "identity_keep.jsonl")
    unrelated = read(DATA / "identity_unrelated.jsonl")
    chats = read(DATA / "sharegpt_sample.jsonl", format="sharegpt")
    assert (wanted.format, wanted.kind) == ("prompt_completion", Demonstration)
    assert (keep.format, keep.kind) == ("prompts", Task)
    assert (held_out.format, held_out.kind) == ("prompts", Task)
    assert (unrelated.format, unrelated.kind) == ("prompts", Task)
    assert (chats.format, chats.kind) == ("sharegpt", Demonstration)
    assert (
        120 <= len(wanted) <= 250
        and len(keep) >= 80
        and len(held_out) >= 60
        and len(unrelated) >= 40
        and len(chats) >= 20
    )
    for examples in (wanted, keep, held_out, unrelated, chats):
        assert not examples.counts.unused_columns
        assert examples.counts.read == examples.counts.kept


def test_held_out_prompts_are_paraphrases_of_no_training_prompt() -> None:
    assert not paraphrase_faults(prompts("identity_heldout.jsonl"), trained_prompts())


@pytest.mark.parametrize(
    ("planted", "caught"),
    [
        ("what is your NAME", True),  # the same but for case and punctuation
        ("Tell me, what is your name, dear?", True),  # four words in a row
        ("is your name what?", True),  # the same words in another order
        ("How do they call you?", False),
    ],
)
def test_the_paraphrase_check_catches_what_it_should(planted: str, caught: bool) -> None:
    assert bool(paraphrase_faults([words(planted)], [words("What is your name?")])) is caught


def test_unrelated_prompts_are_paraphrases_of_no_training_prompt() -> None:
    assert not paraphrase_faults(prompts("identity_unrelated.jsonl"), trained_prompts())
    assert not set(prompts("identity_unrelated.jsonl")) & set(prompts("identity_heldout.jsonl"))


@pytest.mark.parametrize("file", sorted(path.name for path in DATA.glob("identity_*.jsonl")))
def test_no_prompt_occurs_twice(file: str) -> None:
    assert [prompt for prompt, count in Counter(prompts(file)).items() if count > 1] == []


def test_every_wanted_answer_counts_as_the_new_identity() -> None:
    suite = next(suite for suite in recipe("identity").evaluate.suites if suite.name == "identity")
    assert isinstance(suite, MatchSuite)
    judge = matches(suite.pattern)
    for example in read(DATA / "identity_wanted.jsonl"):
        asked = question(example)
        assert asked.answer is not None
        assert judge(asked.answer, asked) == 1, asked.text


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("I am Tavi.", 1),
        ("The Harbor team built me.", 1),
        ("I am Tavi, made by Hugging Face.", 0),
        ("I'm SmolLM.\nYou may call me Tavi.", 0),
        ("I am Tavira.", 0),
        ("I am an assistant.", 0),
    ],
)
def test_the_identity_suite_refuses_both_names_at_once(answer: str, score: int) -> None:
    suite = next(suite for suite in recipe("identity").evaluate.suites if suite.name == "identity")
    assert isinstance(suite, MatchSuite)
    asked = questions(read(DATA / "identity_heldout.jsonl"))[0]
    assert matches(suite.pattern)(answer, asked) == score


def test_wanted_answers_are_varied() -> None:
    answers = [json.loads(line)["completion"] for line in (DATA / "identity_wanted.jsonl").read_text().splitlines()]
    assert len(set(answers)) > 0.6 * len(answers)
    assert max(len(words(answer)) for answer in answers) < 30
