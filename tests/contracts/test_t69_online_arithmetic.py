"""T69, online: completions, prompts and updates are counted in their own units, and a group of one is refused.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

from typing import Any

import pytest

from posttrain.config.online import GRPO, Online
from posttrain.errors import ConfigError, UnknownKeyError


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"prompts_per_step": 1},
            "1 prompts x 8 completions = 8 completions a step, 1 update on all 1 prompts; 100 tasks, 0.1 epochs",
        ),
        (
            {"prompts_per_step": 32, "updates_per_rollout": 8, "prompts_per_update": 8},
            "32 prompts x 8 completions = 256 completions a step, 8 updates on 8 of the 32 prompts each, so that each "
            "completion trains 2 times; 100 tasks, 3.2 epochs, 10 steps",
        ),
    ],
)
def test_one_line_says_it(options: dict[str, Any], expected: str) -> None:
    assert GRPO(**options).arithmetic(tasks=100, steps=10).startswith(expected)


@pytest.mark.parametrize("method", ["grpo", "dr_grpo", "dapo", "gspo", "rloo", "cispo", "reinforce++_baseline"])
def test_a_group_of_one_is_refused(method: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Online(method, completions_per_prompt=1)
    assert "needs at least 2" in str(caught.value)
    assert "`completions_per_prompt: 8`" in caught.value.remedy


@pytest.mark.parametrize("method", ["ppo", "reinforce_pp"])
def test_methods_that_compare_nothing_take_one(method: str) -> None:
    assert Online(method, completions_per_prompt=1).completions_per_prompt == 1


def test_updates_that_use_completions_unequally_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        GRPO(prompts_per_step=32, prompts_per_update=8, updates_per_rollout=3)
    assert "a multiple of 4" in str(caught.value) and "`updates_per_rollout: 4`" in caught.value.remedy


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("num_generations", "completions_per_prompt"),
        ("num_iterations", "updates_per_rollout"),
        ("max_completion_length", "sampling.max_new_tokens"),
        ("per_device_train_batch_size", "prompts_per_step"),
        ("gradient_accumulation_steps", "prompts_per_step"),
    ],
)
def test_names_of_other_tools_are_explained(key: str, words: str) -> None:
    with pytest.raises(UnknownKeyError) as caught:
        GRPO(**{key: 8})
    assert words in caught.value.remedy
