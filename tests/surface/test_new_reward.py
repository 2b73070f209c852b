"""A new kind of reward: its record in the recipe's keys, one file, and one row; a stage then trains on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.package_copy import PackageCopy

RECORD = '''class VowelsReward(RewardSettings):
    """The share of the response's letters that are vowels."""

    kind: Literal["vowels"]
    """`vowels`: does it sing?"""
    of: str = "aeiou"
    """The letters that count."""


'''

FILE = '''
"""How much of a response is vowels."""


def vowels(prompt, completion, task, *, of="aeiou"):
    letters = [letter for letter in completion.lower() if letter.isalpha()]
    return sum(letter in of for letter in letters) / len(letters) if letters else None
'''

RECIPE = """
schema: 1
name: mine
model: embedded
stages:
  - {name: sing, method: grpo, data: package://tasks.jsonl, rewards: [{kind: vowels, of: aeiouy}], steps: 1,
     prompts_per_step: 2, completions_per_prompt: 2, sampling: {temperature: 1.0, max_new_tokens: 8},
     learning_rate: 1.0e-5, held_out: 0}
"""

PROGRAM = """
import posttrain as pt

for name in ("kind", "key"):
    try:
        pt.load_recipe(f"{name}.yaml")
    except pt.PosttrainError as error:
        print(error.remedy.partition(" (")[0])
result = pt.run_recipe(pt.load_recipe("mine.yaml"))
print('"vowels"' in (result.folder / "sing" / "rollouts.jsonl").read_text())
"""


@pytest.mark.slow
def test_a_reward_is_a_record_a_file_and_a_row(tmp_path: Path) -> None:
    copy = PackageCopy.into(tmp_path / "copy")
    copy.insert("config/rewards.py", "class FunctionReward(RewardSettings):\n", RECORD)
    copy.insert("config/rewards.py", "    | FunctionReward,\n", "    | VowelsReward\n")
    copy.write("rewards/vowels.py", FILE)
    copy.insert("rewards/registry.py", "if TYPE_CHECKING:", "from posttrain.rewards.vowels import vowels\n\n")
    copy.insert("rewards/registry.py", '    "function": imported.build,\n', '    "vowels": plain(vowels),\n')
    (tmp_path / "mine.yaml").write_text(RECIPE)
    (tmp_path / "kind.yaml").write_text(RECIPE.replace("kind: vowels", "kind: vowel"))
    (tmp_path / "key.yaml").write_text(RECIPE.replace("of: aeiouy", "ofs: aeiouy"))
    said = copy.run(PROGRAM, tmp_path).splitlines()
    assert said[:2] == ["did you mean `vowels`?", "did you mean `of`?"] and said[-1] == "True"
