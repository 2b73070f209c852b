"""What cannot be made of a recipe's rewards is refused before its first stage runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.config import load_recipe
from posttrain.errors import ConfigError
from posttrain.training.pipeline import check_recipe, run_recipe

RECIPE = """
schema: 1
name: mine
model: embedded
stages:
  - {name: sft, method: sft, data: package://demonstrations.jsonl, steps: 1, rows_per_step: 2, learning_rate: 1.0e-3}
  - {name: grpo, method: grpo, data: package://tasks.jsonl, rewards: [{kind: math}, REWARD], steps: 1,
     prompts_per_step: 2, completions_per_prompt: 2, learning_rate: 1.0e-5, held_out: 0.05, examine: EXAMINE}
"""
WRONG = "{kind: function, function: 'mine:polit'}"
NESTED = "{kind: cosine, of: {kind: function, function: 'mine:polit'}, max_length: 8}"


@pytest.mark.parametrize(
    ("reward", "examine", "where"),
    [
        (WRONG, "{}", "grpo.rewards[1]"),
        (NESTED, "{}", "grpo.rewards[1]"),
        ("{kind: length, target: 3, tolerance: 2}", f"{{rewards: [{WRONG}]}}", "grpo.examine.rewards[0]"),
    ],
)
@pytest.mark.parametrize("verb", [run_recipe, check_recipe])
def test_a_misspelt_function_is_refused_before_the_first_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: object, reward: str, examine: str, where: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def polite(prompt, completion, task):\n    return 1.0\n")
    (tmp_path / "mine.yaml").write_text(RECIPE.replace("REWARD", reward).replace("EXAMINE", examine))
    with pytest.raises(ConfigError) as caught:
        verb(load_recipe(tmp_path / "mine.yaml"))  # type: ignore[operator]
    assert caught.value.where == where and caught.value.remedy == "did you mean `mine:polite`?"
    assert not (tmp_path / "runs").exists()
