"""docs/tasks: each page shows the recipe beside it, its commands are ones that there are, and every stage of it runs.

The stages run by themselves on a few rows for a step, without what takes the time of a whole run (preflight, export,
suites), nor the making of pairs, for which an untrained model has no right answers: those have tests of their own.
`make gallery` runs the recipes as they are.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from posttrain.config import load_recipe
from posttrain.config.load import parse_recipe
from posttrain.config.yaml_text import parse
from posttrain.training.pipeline import run_recipe
from tests.e2e.test_documented_commands import words_of
from tests.surface.test_signatures import surface

PAGES = Path(__file__).parents[2] / "docs" / "tasks"
NAMES = sorted(path.stem for path in PAGES.glob("*.yaml"))


def test_every_recipe_has_its_page_and_a_line_in_the_index() -> None:
    pages = sorted(path.stem for path in PAGES.glob("*.md") if path.stem != "index")
    assert pages == NAMES
    index = (PAGES / "index.md").read_text(encoding="utf-8")
    for name in NAMES:
        assert f"({name}.md)" in index and f"({name}.yaml)" in index
        assert f"({name}.yaml)" in (PAGES / f"{name}.md").read_text(encoding="utf-8"), (
            f"{name}.md does not link its recipe"
        )
        recipe = load_recipe(PAGES / f"{name}.yaml")
        assert recipe.name == f"task_{name.replace('-', '_')}" and not recipe.notes


def test_the_commands_of_the_pages_are_ones_that_there_are() -> None:
    known = surface().splitlines()
    verbs = {line for line in known if not line.startswith("    ")}
    options = {line.split()[0].rstrip(",") for line in known if line.startswith("    -")}
    for page in sorted([*PAGES.glob("*.md"), *PAGES.glob("*.yaml")]):
        for command in re.findall(r"^(?:#\s+)?(posttrain .*)$", page.read_text(encoding="utf-8"), re.MULTILINE):
            words = words_of(command)
            assert f"posttrain {words[0]}" in verbs or f"posttrain {' '.join(words[:2])}" in verbs, f"{page}: {command}"
            assert {word for word in words if word.startswith("--")} <= options, f"{page}: {command}"
            for word in words:
                if word.startswith("docs/tasks/"):
                    assert (PAGES.parents[1] / word).is_file(), f"{page}: {command}"


def small(stage: dict[str, Any]) -> dict[str, Any]:
    """The same stage with little to do."""
    data = stage["data"]
    group = data if isinstance(data, dict) else {"path": data}
    if "sources" in group:
        rows = {**group, "sources": [{**source, "limit": 12} for source in group["sources"]]}
    else:
        rows = group if "stage" in group else {**group, "limit": 12}
    cut: dict[str, Any] = {**stage, "data": rows}
    cut.pop("starts_from", None)
    cut.pop("epochs", None)
    cut.update(steps=1, preflight="off", held_out=0, export="none")
    if "rewards" in stage:
        cut.update(prompts_per_step=2, completions_per_prompt=2, sampling={"max_new_tokens": 8})
        cut.pop("examine", None)
    else:
        cut["rows_per_step"] = 4
    return cut


def test_every_stage_runs(tmp_path: Path) -> None:
    documents = {name: parse((PAGES / f"{name}.yaml").read_text(encoding="utf-8"), name).value for name in NAMES}
    done: set[str] = set()
    for name, document in documents.items():
        for stage in document["stages"]:
            if stage["method"] == "pairs" or str(stage) in done:  # the pages begin alike
                continue
            done.add(str(stage))
            stage = small(stage)
            if isinstance(stage["data"], dict) and "stage" in stage["data"]:
                # Pairs that the policy would have made: two of one step are not sure to differ.
                stage["data"] = {"path": "package://preferences.jsonl", "limit": 12}
            run_alone(document, [stage], tmp_path / f"{name}-{len(done)}")


def run_alone(document: dict[str, Any], stages: list[dict[str, Any]], out: Path) -> None:
    alone = {**document, "name": "part", "out": str(out), "stages": stages}
    alone.pop("evaluate", None)
    run_recipe(parse_recipe(yaml.safe_dump(alone), folder=PAGES), progress=False)
    assert (out / "part" / stages[0].get("name", stages[0]["method"]) / "stage.json").is_file()
