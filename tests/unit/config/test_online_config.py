"""The records of online stages: what they take from the table, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest

from posttrain.config import STAGES, LoRA, parse_recipe
from posttrain.config.fingerprint import CHOICES_YOUNGER, stage_fingerprint
from posttrain.config.online import GRPO, ONLINE_STAGES, PPO, Online
from posttrain.errors import ConfigError, UnknownKeyError
from posttrain.losses.corrections import PUBLISHED
from posttrain.losses.online import CHOICES, ONLINE
from posttrain.training.checks.of_rollouts import whole_groups


@pytest.mark.parametrize("method", ONLINE)
def test_every_row_is_a_stage_with_its_own_parameters(method: str) -> None:
    given = {"teacher": "embedded"} if ONLINE[method].advantage == "teacher" else {}
    stage = Online(method, **given)
    expected = dict(ONLINE[method].defaults)
    if "constant_length" in expected:
        expected["constant_length"] = 128.0  # the generation budget of this stage
    assert stage.parameters == expected  # type: ignore[attr-defined]
    assert STAGES[method] is ONLINE_STAGES[method]
    others = {key for row in ONLINE.values() for key in row.defaults} - set(expected)
    assert not others & set(type(stage).model_fields)


def test_another_name_of_a_row_and_a_wrong_one() -> None:
    assert Online("reinforce++").method == "reinforce_pp"
    with pytest.raises(UnknownKeyError, match="grppo") as caught:
        Online("grppo")
    assert "grpo" in caught.value.remedy


def test_rates_of_all_weights_and_of_lora() -> None:
    assert GRPO().learning_rate == 1e-6
    assert GRPO(adapter=LoRA()).learning_rate == pytest.approx(1e-5)


def test_choices_bring_their_parameters_and_take_others_away() -> None:
    stage = GRPO(choices={"kl": "none", "correction": "truncated", "parameters": {"importance_cap": 3.0}})
    assert stage.parameters == {"clip_low": 0.2, "clip_high": 0.2, "entropy_weight": 0.0, "importance_cap": 3.0}
    assert stage.row.correction == "truncated" and not stage.row.needs_reference


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"choices": {"kl": "k9"}}, "k9"),
        ({"choices": {"parameters": {"importance_cap": 2.0}}}, "importance_cap"),
        ({"choices": {"token_mask": "ratio", "parameters": {"geometric_low": 0.9}}}, "geometric_low"),
        ({"choices": {"token_mask": "ratio", "parameters": {"token_low": 1.5}}}, "token_low is out of range"),
        ({"choices": {"proximal": "sampler", "correction": "truncated"}}, "twice for the same weight"),
        ({"choices": {"proximal": "sampler", "ratio": "none", "surrogate": "reinforce"}}, "there are none"),
        ({"choices": {"kl": "none"}, "kl_target": 3.0}, "there is no KL to follow"),
        ({"choices": {"kl": "none"}, "stop": {"kl_above": 3.0}}, "there is no KL to follow"),
        ({"held_out": 0, "stop": {"patience": 2}}, "waits for a held-out score"),
        ({"sampling": {"temperature": 0}}, "the same completion each time"),
        ({"rows_per_step": 8}, "rows_per_step"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        GRPO(**options)


EARLIER = "2de640e856c8be5befdc8ed70b73363126bec25e32ff734e187b773bf7907ac7"
"""The hash of a GRPO stage without any choice, as it was before there were masks."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_correction_is_a_recipe(name: str) -> None:
    method = PUBLISHED[name]
    stage = GRPO(choices={**method.choices, "parameters": dict(method.parameters)}, updates_per_rollout=2)
    assert stage.row.needs_sampler and method.parameters.items() <= stage.parameters.items()
    assert not stage.ratio_from_sampler  # what rounds otherwise is weighed, masked, or in the ratio


def test_choices_that_are_not_made_change_no_hash() -> None:
    def hashed(**choices: str) -> str:
        return stage_fingerprint(GRPO(choices=choices), data=("a",), start_model="b", seed=0)

    # Of the release before these choices: a finished stage of it is not run again.
    before = GRPO().model_dump(mode="json")["choices"].keys() - CHOICES_YOUNGER
    assert before == {
        "ratio",
        "surrogate",
        "reduction",
        "kl",
        "kl_place",
        "correction",
        "groups",
        "shaping",
        "parameters",
    }
    assert hashed() == EARLIER and len({hashed(), hashed(outliers="drop"), hashed(proximal="sampler")}) == 3


def test_an_unknown_choice_is_refused_with_all_that_there_are() -> None:
    with pytest.raises(ConfigError) as caught:
        GRPO(choices={"kl": "k9"})
    # The remedy says "choose one of those": without the list it names nothing.
    assert all(kl in str(caught.value) for kl in CHOICES["kl"])


@pytest.mark.parametrize(
    "sampling",
    [{"top_p": 0.9}, {"top_k": 20}, {"min_p": 0.05}, {"repetition_penalty": 1.1}, {"frequency_penalty": 0.2}],
)
def test_sampling_that_is_not_the_policys_own_is_refused(sampling: dict[str, float]) -> None:
    with pytest.raises(ConfigError) as caught:
        GRPO(sampling=sampling)
    key = next(iter(sampling))
    assert "importance ratios" in str(caught.value) and f"write `sampling: {{{key}: " in caught.value.remedy
    assert Online("rft", sampling=sampling).sampling.temperature == 1.0


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("rloo", {"updates_per_rollout": 4}),
        ("rloo", {"prompts_per_step": 8, "prompts_per_update": 4, "updates_per_rollout": 2}),
        ("maxrl", {"updates_per_rollout": 2}),
        ("grpo", {"updates_per_rollout": 4, "choices": {"ratio": "none", "surrogate": "reinforce"}}),
    ],
)
def test_a_row_without_a_ratio_makes_one_update(method: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="a policy that is gone") as caught:
        Online(method, **options)
    assert "`updates_per_rollout`" in str(caught.value) and "updates_per_rollout: 1" in caught.value.remedy
    choices = {**options.get("choices", {}), "ratio": "token"}
    assert Online(method, **{**options, "choices": choices}).updates_per_rollout > 1


def test_ppo_has_a_value_model_and_grpo_has_none() -> None:
    assert PPO(value_learning_rate=1e-5, lam=0.9).parameters["lam"] == 0.9
    with pytest.raises(UnknownKeyError, match="value_learning_rate"):
        GRPO(value_learning_rate=1e-5)


def test_a_recipe_names_its_rewards() -> None:
    text = "schema: 1\nname: a\nmodel: embedded\nstages:\n  - {method: grpo, data: package://tasks.jsonl}\n"
    with pytest.raises(ConfigError, match="nothing says what a good completion") as caught:
        parse_recipe(text)
    assert "rewards: [{kind: math}]" in caught.value.remedy
    parse_recipe(text.replace("tasks.jsonl}", "tasks.jsonl, rewards: [{kind: math}]}"))


@pytest.mark.parametrize(
    ("prompt", "answers", "tokens"), [(30, 1024, 542), (600, 1024, 1624), (1, 10, 11), (100, 8, 108)]
)
def test_micro_batches_hold_whole_groups_where_prompts_are_long(prompt: int, answers: int, tokens: int) -> None:
    """Parts of a group each compute the prompt: at most a twentieth of the group's tokens may be spent on that."""
    assert whole_groups(prompt, answers) == tokens
    parts = -(-answers // (tokens - prompt))
    assert (parts - 1) * prompt <= 0.05 * (prompt + answers)


@pytest.mark.parametrize(
    ("stage", "remedy"),
    [
        ("{method: pairs, data: a, make: {kind: judged, judge: policy}, sampling: {top_p: 0.9}}", "`make.sampling`"),
        ("{method: distil, data: a, teacher: policy, scorer: {kind: self}}", "`filters.scorer`"),
        ("{method: merge, merge: {kind: ties, models: [a, b], gamma: 0.1}}", "remove `gamma`, or choose one of those"),
        ("{method: sft, data: a, samples: 3}", "remove `samples`, or choose best_of"),
    ],
)
def test_a_key_that_a_group_of_the_stage_has_is_sent_there(stage: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_recipe(f"schema: 1\nmodel: embedded\nstages:\n  - {stage}\n")
    assert remedy in str(caught.value)
