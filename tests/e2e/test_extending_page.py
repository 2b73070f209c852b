"""docs/extending.md: its files are written, its Python runs in order, and its recipe too."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

import posttrain as pt

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


@pytest.mark.slow
def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "heldout.jsonl").write_text('{"prompt": "Who are you?", "answer": "Pia"}\n')
    pairs = [{"prompt": f"{n}?", "chosen": f"It is {n}.", "rejected": "No."} for n in range(8)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    text = PAGE.read_text(encoding="utf-8")
    names: dict[str, object] = {}
    try:
        for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            if (named := re.match(r"# (\w+\.py)\n", block)) is not None:
                (tmp_path / named[1]).write_text(block)
            else:
                exec(compile(block, str(PAGE), "exec"), names)
    finally:
        for module in ("my_losses", "my_eval"):
            sys.modules.pop(module, None)
    (recipe,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "mine.yaml").write_text(recipe)
    result = pt.run_recipe(pt.load_recipe("mine.yaml"), progress=False)
    assert result.report.exists()
    asked = pt.Run.open("runs/asked").summary().suites["tone.score"]
    assert asked[0] is not None and 0 <= asked[1].value <= 1
    # One function, by its address and by itself: the same losses.
    by_address = pt.Run.open(result.folder).lines("train")
    by_itself = pt.Run.open("runs/loss").lines("train")
    assert [line.values["loss"] for line in by_address] == [line.values["loss"] for line in by_itself]
