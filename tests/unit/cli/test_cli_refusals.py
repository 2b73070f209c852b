"""What can be known without torch is refused without loading it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SEVERAL = """
import json, os, sys
from typer.testing import CliRunner
from posttrain.cli.app import app
said = []
for command in json.loads(sys.argv[1]):
    before = sum(os.times()[:2])
    result = CliRunner().invoke(app, command)
    heavy = sorted({"torch", "transformers", "peft"} & sys.modules.keys())
    said.append([result.exit_code, result.output, heavy, sum(os.times()[:2]) - before])
print(json.dumps(said))
"""

CASES = {
    ("run", "nothere.yaml"): "there is no such recipe",
    ("run", "typo.yaml"): "did you mean `learning_rate`?",
    ("check", "typo.yaml"): "did you mean `learning_rate`?",
    ("run", "no_data.yaml"): "did you mean `rows.jsonl`?",
    ("run", "no_model.yaml"): "`model`: no model is called 'nosuchmodel'",
    ("check", "no_model.yaml"): "no model is called 'nosuchmodel'",
    ("run", "good.yaml", "model=embeded"): "did you mean `embedded`?",
    ("run", "good.yaml", "sft.foo=1"): "`sft.foo` is not a key",
    ("run", "good.yaml", "sft.method=stf"): "did you mean `sft`?",
    ("run", "good.yaml", "sft.learning_rate=fast"): "found:    fast",
    ("run", "good.yaml", "evaluate.suites=[{kind: mach, prompts: rows.jsonl}]"): "did you mean `match`?",
    ("generate", "nosuchmodel"): "no model is called 'nosuchmodel'",
    ("compare", "embedded", "nosuchmodel", "--prompts", "rows.jsonl"): "no model is called 'nosuchmodel'",
    ("score", "nosuchmodel", "rows.jsonl"): "no model is called 'nosuchmodel'",
    ("score", "embedded", "raws.jsonl"): "did you mean",
    ("merge", "nosuchmodel", "out"): "no model is called 'nosuchmodel'",
    ("merge", "embedded", "out", "--adapter", "nowhere"): "no model is called 'nowhere'",
    ("merge", "embedded", "out", "--adapter", ".", "--method", "tie"): "did you mean `ties`?",
    ("merge", "embedded", "out", "--adapter", ".", "--weights", "half"): "the weights are no numbers",
}
RECIPE = "schema: 1\nmodel: {model}\nstages:\n- method: sft\n  data: {data}\n{more}"


@pytest.fixture
def there(tmp_path: Path) -> Path:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "2 + 2?", "completion": "4"}\n' * 4)
    for name, values in {
        "good": ("embedded", "rows.jsonl", ""),
        "typo": ("embedded", "rows.jsonl", "  learning_rte: 1\n"),
        "no_data": ("embedded", "raws.jsonl", ""),
        "no_model": ("nosuchmodel", "rows.jsonl", ""),
    }.items():
        model, data, more = values
        (tmp_path / f"{name}.yaml").write_text(RECIPE.format(model=model, data=data, more=more))
    return tmp_path


def test_what_needs_no_torch_is_refused_without_it(there: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SEVERAL, json.dumps([list(command) for command in CASES])],
        cwd=there,
        capture_output=True,
        text=True,
        check=True,
    )
    for (command, said), (code, output, heavy, _) in zip(CASES.items(), json.loads(done.stdout), strict=True):
        assert (code, heavy) == (2, []) and said in output, (command, output, heavy)


BUILT = """
import sys
from typer.testing import CliRunner
from posttrain.cli.app import app
CliRunner().invoke(app, sys.argv[1:])
if "posttrain.config.schema" in sys.modules:
    from posttrain.config.schema import Recipe
    print("all kinds" if Recipe.__pydantic_complete__ else "kinds used")
else:
    print("no records")
"""


@pytest.mark.parametrize("recipe, built", [("nothere.yaml", "no records"), ("typo.yaml", "kinds used")])
def test_a_refusal_builds_only_the_records_that_it_needs(there: Path, recipe: str, built: str) -> None:
    """A validator of all kinds of stage costs a quarter of a second, and the records alone a third."""
    done = subprocess.run(
        [sys.executable, "-c", BUILT, "run", recipe], cwd=there, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == built


def test_a_typo_costs_no_seconds_of_the_processor(there: Path) -> None:
    """0.6 s on an idle machine; the bound allows for a busy one. With torch loaded it was 3 s."""
    done = subprocess.run(
        [sys.executable, "-c", SEVERAL, json.dumps([["run", "typo.yaml"]])],
        cwd=there,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)[0][3] < 1.8
