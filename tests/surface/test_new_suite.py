"""A new kind of suite: its record in the recipe's keys, one file, and one row; a recipe then asks it, and the report
calls its figure by the words of its own file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.package_copy import PackageCopy

RECORD = '''class WordySuite(SampledSuite):
    """The mean number of words of an answer."""

    kind: Literal["wordy"]
    """`wordy`: how much does it say?"""
    at_most: Int = Field(default=20, ge=1)
    """More words than these are not counted."""


'''

FILE = '''
"""`wordy`: the mean number of words of an answer, up to a limit."""

from posttrain.data.questions import questions
from posttrain.evaluate.suites.answers import AnswerSuite
from posttrain.runs.records.evaluation import Direction, Meaning

METRICS = {"words": Meaning("words in an answer", wanted=Direction.DOWN, primary=True)}


def load(settings, examples, sampling):
    def words(answer, asked):
        return float(min(settings.at_most, len(answer.split())))

    return AnswerSuite(settings.name, questions(examples), "words", words, sampling, settings.samples_per_prompt)
'''

RECIPE = """
schema: 1
name: mine
model: embedded
evaluate:
  suites:
    - {name: brevity, kind: wordy, at_most: 3, prompts: package://heldout_arithmetic.jsonl, limit: 3,
       sampling: {max_new_tokens: 8}}
stages:
  - {name: sft, method: sft, data: package://demonstrations.jsonl, steps: 1, rows_per_step: 2, learning_rate: 1.0e-3,
     max_length: 256, held_out: 0}
"""

PROGRAM = """
import posttrain as pt
from posttrain.report.evaluation import final_table
from posttrain.runs.read import read_run

try:
    pt.load_recipe("misspelt.yaml")
except pt.PosttrainError as error:
    print(error.remedy)
result = pt.run_recipe(pt.load_recipe("mine.yaml"))
row = final_table(read_run(result.folder)).rows[0]
print(row.suite, row.metric, row.meaning.title, row.meaning.wanted.name, row.meaning.primary)
print(result.summary["sft"]["brevity.words"] <= 3, "words in an answer" in result.report.read_text())
"""


@pytest.mark.slow
def test_a_suite_is_a_record_a_file_and_a_row(tmp_path: Path) -> None:
    copy = PackageCopy.into(tmp_path / "copy")
    copy.insert("config/suites.py", "class RewardModelOf(Settings):\n", RECORD)
    copy.insert("config/suites.py", "    | PassAtKSuite\n", "    | WordySuite\n")
    copy.write("evaluate/suites/wordy.py", FILE)
    copy.insert("evaluate/suites/__init__.py", "__all__ = [", IMPORTS)
    copy.insert(
        "evaluate/suites/__init__.py",
        "    PassAtKSuite: SuiteKind(",
        "    WordySuite: SuiteKind(wordy.load, metrics=wordy.METRICS),\n",
    )
    (tmp_path / "mine.yaml").write_text(RECIPE)
    (tmp_path / "misspelt.yaml").write_text(RECIPE.replace("kind: wordy", "kind: wordi"))
    assert copy.run(PROGRAM, tmp_path).splitlines()[-3:] == [
        "did you mean `wordy`?",
        "brevity words words in an answer DOWN True",
        "True True",
    ]
    (written,) = (tmp_path / "runs").glob("mine/sft/evaluations/brevity.jsonl")
    assert [json.loads(line)["score"] <= 3 for line in written.read_text().splitlines()] == [True] * 3


IMPORTS = "from posttrain.config.suites import WordySuite\nfrom posttrain.evaluate.suites import wordy\n\n"
