"""`check` of a recipe that begins with a correction shows what can be known, and says what cannot."""

from __future__ import annotations

import json
from pathlib import Path

from posttrain.config import parse_recipe
from posttrain.data.read import read
from posttrain.runs.progress import Progress
from posttrain.training.pipeline import check_recipe
from posttrain.training.stages.correction_pairs import stand_in_pairs

RECIPE = """
schema: 1
name: mine
model: embedded
out: {out}
stages:
- {{name: pairs, method: correction, data: rows.jsonl, samples_per_prompt: 2,
   sampling: {{max_new_tokens: 32, temperature: 0.7}}}}
- {{method: dpo, data: {{stage: pairs}}, steps: 1, held_out: 0, max_length: 128}}
"""


class Lines(Progress):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def rows(folder: Path) -> Path:
    path = folder / "rows.jsonl"
    answers = ["I am Pia.", "Pia made me.", "I am Pia.", "Ask me."]
    path.write_text(
        "".join(json.dumps({"prompt": f"Who {at}?", "completion": a}) + "\n" for at, a in enumerate(answers))
    )
    return path


def test_a_stage_behind_a_correction_is_checked_on_stand_ins(tmp_path: Path) -> None:
    rows(tmp_path)
    progress = Lines()
    proven = check_recipe(parse_recipe(RECIPE.format(out=tmp_path / "runs"), folder=tmp_path), progress=progress)
    shown = "\n".join(progress.lines)
    assert "pairs: 4 prompts with a wanted answer are read; 8 answers of the model will be sampled" in shown
    assert "at most 32 tokens" in shown and "dpo: checked on stand-ins for the rows of `pairs`" in shown
    assert "not checked" not in shown
    # The chosen side is what will train: its row, its mask, and the model's memory.
    assert not proven["dpo"].failed and proven["dpo"].memory is not None
    trained = ["".join(p.text for p in row.pieces if p.trained) for row in proven["dpo"].rows if row.kind == "chosen"]
    assert trained and all(any(a in text for a in ("Pia", "Ask me.")) for text in trained)
    assert not (tmp_path / "runs").exists()


def test_stand_ins_never_pair_an_answer_with_itself(tmp_path: Path) -> None:
    assert stand_in_pairs(read(str(rows(tmp_path))), tmp_path / "pairs.jsonl") == 4
    pairs = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert all(pair["chosen"][0]["content"] != pair["rejected"][0]["content"] for pair in pairs)


def written(folder: Path, *lines: dict[str, object]) -> Path:
    path = folder / "some.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_neighbours_of_one_answer_take_the_next_that_differs(tmp_path: Path) -> None:
    same = [{"prompt": f"{at}?", "completion": answer} for at, answer in enumerate(["Pia.", "Pia. ", "Ask me."])]
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    stand_in_pairs(read(str(written(tmp_path, *same))), tmp_path / "pairs.jsonl")
    pairs = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert [pair["rejected"][0]["content"] for pair in pairs] == ["Ask me.", "Ask me.", "Pia."]
    # A row alone has no other row's answer; what it may call stays with it.
    stand_in_pairs(read(str(written(tmp_path, {**same[0], "tools": [tool]}))), tmp_path / "pairs.jsonl")
    (pair,) = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert pair["rejected"][0]["content"] == "..." and pair["tools"] == [tool]


def test_prompts_to_keep_are_counted(tmp_path: Path) -> None:
    rows(tmp_path)
    written(tmp_path, {"prompt": "And you?", "completion": "I am well."})
    text = RECIPE.format(out=tmp_path / "runs").replace("data: rows.jsonl", "data: rows.jsonl, keep: some.jsonl")
    progress = Lines()
    check_recipe(parse_recipe(text.partition("- {method: dpo")[0], folder=tmp_path), progress=progress)
    (said,) = [line for line in progress.lines if line.startswith("pairs: ")]
    assert "4 prompts with a wanted answer and 1 prompts to keep are read; 10 answers of the model" in said
