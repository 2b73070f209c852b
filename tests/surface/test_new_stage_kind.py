"""A new kind of stage is a file and a row: the settings that a recipe may say, and the functions that carry it out.

Recipes are read without a model library, so these two stand in different layers, each with its table. The test writes
both files and both rows into a copy of the package, and runs a recipe with them in a fresh process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import posttrain
from tests.surface.test_import_layers import modules, violations

PACKAGE = Path(posttrain.__file__).parent

SETTINGS = '''
"""The settings of a stage that lets the policy answer prompts, and keeps its answers as demonstrations."""

from typing import ClassVar, Literal

from posttrain.config.base import Output, StageSettings
from posttrain.config.suites import Sampling
from posttrain.config.values import Int


class OwnAnswers(StageSettings):
    """Write what the model answers now, as rows that a later stage imitates."""

    OUTPUTS: ClassVar[Output] = "data"

    method: Literal["own_answers"] = "own_answers"
    """Sample one answer of each prompt."""
    sampling: Sampling = Sampling(temperature=0.7)
    """How they are drawn."""
    least_length: Int = 1
    """Shorter answers, in characters, are left out."""
'''

KIND = '''
"""The policy's own answers as demonstrations."""

from posttrain.config.own_answers import OwnAnswers
from posttrain.data.encode import Encoder
from posttrain.data.read import read
from posttrain.data.write import write_jsonl
from posttrain.models.folders.loading import load
from posttrain.rollout.native import NativeEngine
from posttrain.sampling import SamplingDistribution
from posttrain.training.order import stream_seed
from posttrain.training.stages.kind import OUTPUT_NAMES, MakingKind, StageContext


def prompts(ctx: StageContext[OwnAnswers]):
    rows = list(read(list(ctx.stage.data.path)))
    ctx.say(f"{len(rows)} prompts")
    return rows


def answer(ctx: StageContext[OwnAnswers], rows):
    loaded = load(ctx.start, say=ctx.progress.say)
    encoder = Encoder(loaded.tokenizer, ctx.answers.encoding)
    seed = stream_seed(ctx.seed, "sampling")
    sampling = SamplingDistribution(**ctx.stage.sampling.model_dump(), stop_ids=encoder.stop_ids, seed=seed)
    ids = [encoder.prompt(row.messages[:-1]) for row in rows]
    answers = NativeEngine(loaded.model).generate(ids, sampling)
    texts = [encoder.tokens.decode(list(one.answer_ids)) for (one,) in answers]
    kept = [(row, text) for row, text in zip(rows, texts) if len(text) >= ctx.stage.least_length]
    lines = ({"prompt": row.messages[0].content, "completion": text} for row, text in kept)
    write_jsonl(ctx.folder.path / OUTPUT_NAMES["data"], lines)
    return {"read": len(rows), "kept": len(kept), "dropped": {"short": len(rows) - len(kept)}}


OWN_ANSWERS = MakingKind(outputs=OwnAnswers.OUTPUTS, inputs=prompts, make=answer)
'''

ROWS = {
    "config/stages.py": (
        ("from posttrain.config.online import", "from posttrain.config.own_answers import OwnAnswers\n"),
        ('    "correction": Correction,', '    "own_answers": OwnAnswers,\n'),
    ),
    "training/stages/table.py": (
        ("from posttrain.training.stages.reward import", "from posttrain.config.own_answers import OwnAnswers\n"),
        (
            "from posttrain.training.stages.reward import",
            "from posttrain.training.stages.own_answers import OWN_ANSWERS\n",
        ),
        ("    Correction: CORRECTION,", "    OwnAnswers: OWN_ANSWERS,\n"),
    ),
}
"""In each table's file: what stands before the new line, and the line: an import or two, and the row."""

RECIPE = """
schema: 1
name: own
model: embedded
out: runs
stages:
  - {name: answered, method: own_answers, data: prompts.jsonl, sampling: {temperature: 0.7, max_new_tokens: 8}}
  - {name: sft, method: sft, data: {stage: answered}, steps: 1, rows_per_step: 4, held_out: 0, learning_rate: 1.0e-4}
"""

PROMPTS = [{"prompt": f"What is {n} plus {n + 1}?", "completion": str(2 * n + 1)} for n in range(2, 8)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package and the new kind in it, a recipe that names it, and its prompts."""
    folder = tmp_path_factory.mktemp("kind")
    linked(PACKAGE, folder / "posttrain", {"config", "training", "training/stages"})
    (folder / "posttrain/config/own_answers.py").write_text(SETTINGS)
    (folder / "posttrain/training/stages/own_answers.py").write_text(KIND)
    for name, lines in ROWS.items():
        path = folder / "posttrain" / name
        text = path.read_text()
        for before, line in lines:
            assert text.count(f"\n{before}") == 1, (name, before)
            text = text.replace(f"\n{before}", f"\n{line}{before}")
        path.unlink()  # a link to the package's own file
        path.write_text(text)
    (folder / "own.yaml").write_text(RECIPE)
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    return folder


def linked(source: Path, target: Path, opened: set[str], under: str = "") -> None:
    """A copy of links; the folders in `opened` are folders of links themselves."""
    target.mkdir()
    for entry in source.iterdir():
        name = f"{under}{entry.name}"
        if name in opened:
            linked(entry, target / entry.name, opened, f"{name}/")
        elif entry.name != "__pycache__":
            (target / entry.name).symlink_to(entry)


SCRIPT = """
import json
import sys

from posttrain.config import load_recipe
from posttrain.errors import PosttrainError
from posttrain.runs.progress import Progress
from posttrain.training.pipeline import check_recipe, run_recipe


class Heard(Progress):
    def __init__(self):
        super().__init__()
        self.lines = []

    def say(self, text):
        self.lines.append(text)


def lines_of(verb, *overrides):
    heard = Heard()
    verb(load_recipe("own.yaml", overrides), progress=heard)
    return heard.lines


said = {"check": lines_of(check_recipe), "run": lines_of(run_recipe), "again": lines_of(run_recipe)}
said["changed"] = lines_of(run_recipe, "answered.least_length=2")
try:
    load_recipe("own.yaml", ["answered.least_lenght=2"])
except PosttrainError as error:
    said["misspelt"] = [str(error)]
json.dump(said, sys.stdout)
"""
"""What a user does with the recipe, in one process, since each loads the model library anew."""


@pytest.fixture(scope="module")
def said(place: Path) -> dict[str, list[str]]:
    """What each verb said, line by line."""
    env = {**os.environ, "PYTHONPATH": str(place), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=place, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def stage_record(place: Path, stage: str) -> dict[str, Any]:
    return dict(json.loads((place / "runs/own" / stage / "stage.json").read_text()))


def test_the_check_reads_what_it_works_on(said: dict[str, list[str]]) -> None:
    assert "answered: 6 prompts" in said["check"]
    assert "sft: not checked; its data is written by `answered` during the run" in said["check"]


def test_a_later_stage_trains_on_its_rows(place: Path, said: dict[str, list[str]]) -> None:
    assert "answered: 6 prompts" in said["run"]
    made, trained = stage_record(place, "answered"), stage_record(place, "sft")
    assert (made["status"], made["method"], made["output"]) == ("done", "own_answers", "data.jsonl")
    rows = [json.loads(line) for line in (place / "runs/own/answered/data.jsonl").read_text().splitlines()]
    assert rows and {row["prompt"] for row in rows} <= {row["prompt"] for row in PROMPTS}
    assert trained["status"] == "done" and trained["data"]["read"] == len(rows) == made["data"]["kept"]


def test_it_is_done_once_until_its_settings_change(said: dict[str, list[str]]) -> None:
    done = "done before, and nothing that it depends on has changed"
    assert f"answered: {done}" in said["again"] and f"sft: {done}" in said["again"]
    assert f"answered: {done}" not in said["changed"] and "answered: 6 prompts" in said["changed"]


def test_the_reader_knows_its_keys(said: dict[str, list[str]]) -> None:
    assert "did you mean `least_length`?" in said["misspelt"][0]


def test_the_layers_hold_with_it(place: Path) -> None:
    assert list(violations(modules(place / "posttrain"))) == []
