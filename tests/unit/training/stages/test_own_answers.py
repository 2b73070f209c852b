"""The stages `best_of` and `pairs` on a tiny model: files, figures, a kill in the middle, and `posttrain check`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.config import parse_recipe
from posttrain.config.best_of import BestOf
from posttrain.config.pairs import Pairs
from posttrain.data.origin import origin_of
from posttrain.data.read import read
from posttrain.errors import ConfigError, DataError, EmptyDatasetError, RowError, SourceError
from posttrain.runs.files import read_jsonl
from posttrain.runs.folder import StageFolder
from posttrain.runs.progress import Progress
from posttrain.runs.records.logs import DroppedRow, YieldLine
from posttrain.synthesis.journal import ASKED
from posttrain.training.pipeline import check_recipe, run_recipe
from posttrain.training.stages.best_of import BEST_OF
from posttrain.training.stages.kind import StageContext
from posttrain.training.stages.pairs import PAIRS
from posttrain.types import Comparison, Demonstration
from tests.fixtures import byte_tokenizer, tiny_model
from tests.teacher_server import Body, TeacherServer, asked

HERE = "tests.unit.training.stages.test_own_answers"
SAMPLING = {"temperature": 1.0, "max_new_tokens": 24}


def scorer(function: str) -> dict[str, Any]:
    return {"kind": "rewards", "rewards": [{"kind": "function", "function": f"{HERE}:{function}"}]}


def even(prompt, completion, task) -> float:
    """Right for some answers of a random model and wrong for others."""
    return float(len(completion) % 2 == 0)


def length(prompt, completion, task) -> float:
    return float(len(completion))


def never(prompt, completion, task) -> float:
    return 0.0


class Lines(Progress):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, *lines: str) -> None:
        self.lines.extend(lines)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that ends its answers soon, for what is cut makes no row."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = byte_tokenizer("CHATML", eos="<|im_end|>", pad_is_eos=True)
    tiny_model("llama", vocab=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def tasks(folder: Path, count: int = 4) -> str:
    path = folder / "tasks.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{n} + 1?", "answer": str(n + 1)}) + "\n" for n in range(count)))
    return str(path)


def best_of(folder: Path, **given: Any) -> BestOf:
    settings = {"name": "made", "data": tasks(folder), "samples": 16, "sampling": SAMPLING, "scorer": scorer("even")}
    return BestOf(**{**settings, "modules": str(folder), **given})


def pairs(folder: Path, make: dict[str, Any], **given: Any) -> Pairs:
    return Pairs(**{"name": "made", "data": tasks(folder), "modules": str(folder), "make": make, **given})


def made(stage: Any, model: str, folder: Path, progress: Progress | None = None):
    kind = BEST_OF if isinstance(stage, BestOf) else PAIRS
    ctx = StageContext(stage, model, StageFolder(folder / "run" / "made"), 0, progress or Progress())
    return kind.make(ctx, kind.inputs(ctx)), folder / "run" / "made"  # type: ignore[arg-type]


# ---------------------------------------------------------------- best_of


def test_right_answers_become_rows_and_the_yield_is_written(tmp_path: Path, model: str) -> None:
    progress = Lines()
    counts, out = made(best_of(tmp_path, keep="all_right", least_score=1.0), model, tmp_path, progress)
    rows = list(read(out / "data.jsonl"))
    lines = [YieldLine.from_json(line) for line in read_jsonl(out / "yields.jsonl")]
    assert all(isinstance(row, Demonstration) for row in rows) and counts.kept == len(rows) == sum(
        x.rows for x in lines
    )
    assert all(len(row.messages[-1].content) % 2 == 0 for row in rows)  # type: ignore[union-attr]
    assert [line.answers for line in lines] == [16] * 4 and (counts.answers, counts.prompts) == (64, 4)
    assert all(line.answers == line.rows + sum(line.skipped.values()) for line in lines)
    right = sum(line.right for line in lines)
    assert counts.more["right"] == right >= len(rows)
    assert counts.more["pass_at"]["pass@1"]["value"] == pytest.approx(right / 64)
    assert counts.more["pass_at"]["pass@16"]["value"] == sum(line.right > 0 for line in lines) / 4
    sources = [origin_of(line) for line in read_jsonl(out / "data.jsonl")]
    assert {one.maker for one in sources} == {"best_of"} and all(one.seed is not None for one in sources)
    assert any("pass@16" in line for line in progress.lines)


def test_prompts_that_never_succeed_are_listed_and_can_be_asked_again(tmp_path: Path, model: str) -> None:
    counts, out = made(best_of(tmp_path, scorer=scorer("only_the_first"), least_score=1.0), model, tmp_path)
    unsolved = list(read(out / "unsolved.jsonl"))
    assert [task.prompt[-1].content for task in unsolved] == ["1 + 1?", "2 + 1?", "3 + 1?"]  # type: ignore[union-attr]
    assert [task.answer for task in unsolved] == ["2", "3", "4"]  # type: ignore[union-attr]
    assert counts.more["never_right"] == 3 and counts.dropped == {"never_right": 3}
    assert [DroppedRow.from_json(line).reason for line in read_jsonl(out / "dropped.jsonl")] == ["never_right"] * 3


def only_the_first(prompt, completion, task) -> float:
    return float(task.answer == "1")


def test_where_nothing_is_right_the_error_says_what_was_wrong(tmp_path: Path, model: str) -> None:
    with pytest.raises(EmptyDatasetError, match="no row came out") as caught:
        made(best_of(tmp_path, scorer=scorer("never"), least_score=1.0), model, tmp_path)
    assert "below `least_score`" in str(caught.value)
    assert not (tmp_path / "run/made/data.jsonl").exists() and (tmp_path / "run/made/unsolved.jsonl").exists()


def test_a_stage_that_was_killed_gives_the_same_rows_bit_for_bit(tmp_path: Path, model: str) -> None:
    stages = (
        best_of(tmp_path, keep="all_right", least_score=1.0, temperatures=[0.8, 1.1], sampling={"max_new_tokens": 24}),
        pairs(tmp_path, {"kind": "best_worst", "samples": 8, "sampling": SAMPLING, "scorer": scorer("length")}),
    )
    for stage in stages:
        _, whole = made(stage, model, tmp_path / stage.method / "whole")

        class Killed(Progress):
            def phase(self, title: str, **how: Any) -> Any:
                phase = super().phase(title, **how)
                if title.endswith("answers"):
                    phase.advance = lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt)  # type: ignore[method-assign]
                return phase

        with pytest.raises(KeyboardInterrupt):
            made(stage, model, tmp_path / stage.method / "killed", Killed())
        assert not (tmp_path / stage.method / "killed/run/made/data.jsonl").exists()
        _, again = made(stage, model, tmp_path / stage.method / "killed")
        assert (again / "data.jsonl").read_bytes() == (whole / "data.jsonl").read_bytes()


def test_the_gate_stops_at_an_error_of_the_audit(tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from posttrain.auditing.finding import AuditFinding
    from posttrain.training.stages import audited

    class Report(list):
        errors = (AuditFinding("empty_sides", "error", "4 responses are empty", share=1.0, remedy="drop them"),)

        class corpus:
            sources = ("data.jsonl",)

    monkeypatch.setattr(audited, "audit", lambda *_, **__: Report(Report.errors))
    stage = best_of(tmp_path)
    _, out = made(stage, model, tmp_path)  # warns
    with pytest.raises(DataError, match="4 responses are empty") as caught:
        made(stage.model_copy(update={"gate": "stop"}), model, tmp_path)
    assert "gate: warn" in str(caught.value)
    counts, _ = made(stage, model, tmp_path)
    assert any("empty_sides" in note for note in counts.notes)
    counts, _ = made(stage.model_copy(update={"gate": "off"}), model, tmp_path)
    assert len(counts.notes) == 1 and (out / "findings.jsonl").exists()


# ---------------------------------------------------------------- pairs


def test_best_and_worst_are_rows_that_train(tmp_path: Path, model: str) -> None:
    make = {"kind": "best_worst", "samples": 8, "sampling": SAMPLING, "scorer": scorer("length"), "pairs_per_prompt": 3}
    counts, out = made(pairs(tmp_path, make), model, tmp_path)
    rows = list(read(out / "data.jsonl"))
    assert rows and counts.pairs == len(rows) and counts.answers == 32
    for row in rows:
        assert isinstance(row, Comparison) and row.scores is not None
        lengths = tuple(float(len(response[-1].content or "")) for response in row.responses)
        assert row.scores == lengths and lengths[0] > lengths[1]
    assert (out / "trees.jsonl").exists()


def longer_wins(body: Body) -> str:
    first, _, second = asked(body).partition("<answer_b")
    return "[[A]]" if len(first.partition("<answer_a")[2]) > len(second) else "[[B]]"


def test_a_killed_judge_is_not_asked_twice(tmp_path: Path, model: str) -> None:
    answered = 0

    def three_verdicts(body: Body) -> Any:
        nonlocal answered
        answered += 1
        return longer_wins(body) if answered <= 3 else (401, {"error": "gone"})

    with TeacherServer(three_verdicts) as server:
        judge = {"url": server.url, "model": "judge", "concurrency": 1, "retries": 0}
        stage = pairs(tmp_path, {"kind": "judged", "samples": 6, "sampling": SAMPLING, "judge": judge})
        with pytest.raises(Exception, match="refuses"):
            made(stage, model, tmp_path)
        assert len(read_jsonl(tmp_path / "run/made" / ASKED)) == 3
        # A stage that begins anew forgets its logs, and not what was paid for.
        StageFolder(tmp_path / "run/made").forget_logs()
        server.answer, before = longer_wins, len(server.seen)
        counts, out = made(stage, model, tmp_path)
        known = [json.dumps(body["messages"]) for _, body in server.seen[:3]]
        later = [json.dumps(body["messages"]) for _, body in server.seen[before:]]
    assert not set(known) & set(later) and len(later) == len(set(later))
    rows = [row for row in read(out / "data.jsonl") if isinstance(row, Comparison)]
    assert rows and all(row.votes == (2, 0) for row in rows)
    assert counts.more["teacher"] == "judge" and counts.more["teacher_tokens"] == 5 * (3 + len(later))


def test_a_critique_by_an_endpoint_and_a_flaw(tmp_path: Path, model: str) -> None:
    (tmp_path / "principles.txt").write_text("# ours\n\nThe answer is a sum.\n")

    def reply(body: Body) -> str:
        return "It is no sum." if "Do not rewrite it" in asked(body) else "1 + 1 = 2"

    with TeacherServer(reply) as server:
        teacher = {"url": server.url, "model": "critic"}
        critique = {"kind": "critique", "good": "row", "critic": teacher}
        critique["principles_file"] = str(tmp_path / "principles.txt")
        counts, out = made(pairs(tmp_path, critique), model, tmp_path)
        [first, *_] = rows = [row for row in read(out / "data.jsonl") if isinstance(row, Comparison)]
        assert len(rows) == counts.pairs == 4
        assert [response[-1].content for response in first.responses] == ["1 + 1 = 2", "1"]
        assert all("The answer is a sum." in question for question in server.questions)
        degraded = {"kind": "degraded", "good": "row", "writer": teacher, "flaws": "too_long"}
        _, out = made(pairs(tmp_path, degraded), model, tmp_path / "degraded")
        flaws = {origin_of(line).details["flaw"] for line in read_jsonl(out / "data.jsonl")}  # type: ignore[union-attr]
    assert flaws == {"too_long"}


def test_what_cannot_be_is_refused_before_a_model_loads(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "Hello?"}\n')
    folder = StageFolder(tmp_path / "run" / "made")

    def inputs(make: dict[str, Any]) -> Any:
        return PAIRS.inputs(StageContext(pairs(tmp_path, make, data=str(path)), "nowhere", folder, 0, Progress()))

    with pytest.raises(RowError, match="has no answer") as caught:
        inputs({"kind": "degraded", "good": "row"})
    assert "prompts.jsonl" in str(caught.value) and "good: policy" in str(caught.value)
    (tmp_path / "none.txt").write_text("# nothing\n")
    with pytest.raises(ConfigError, match="holds none"):
        inputs({"kind": "critique", "principles_file": str(tmp_path / "none.txt")})
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SourceError, match="principles is not UTF-8 text"):
        inputs({"kind": "critique", "principles_file": str(tmp_path / "bytes.txt")})


# ---------------------------------------------------------------- in a recipe

RECIPE = """
schema: 1
name: mine
model: {model}
out: {out}
stages:
- {{name: tried, method: best_of, data: tasks.jsonl, samples: 24, keep: all_right, least_score: 1.0,
   sampling: {{temperature: 1.0, max_new_tokens: 24}}, scorer: {{kind: rewards, rewards: [{{kind: function,
   function: "{here}:even"}}]}}}}
- {{name: round, method: sft, data: {{stage: tried}}, steps: 1, held_out: 0, max_length: 128}}
- {{name: chosen, method: pairs, data: tasks.jsonl, make: {{kind: best_worst, samples: 24,
   sampling: {{temperature: 1.0, max_new_tokens: 24}}, scorer: {{kind: rewards, rewards: [{{kind: function,
   function: "{here}:length"}}]}}}}}}
- {{method: dpo, data: {{stage: chosen}}, steps: 1, held_out: 0, max_length: 128}}
"""


def test_a_recipe_is_checked_on_stand_ins(tmp_path: Path, model: str) -> None:
    tasks(tmp_path)
    progress = Lines()
    text = RECIPE.format(model=model, out=tmp_path / "runs", here=HERE)
    proven = check_recipe(parse_recipe(text, folder=tmp_path), progress=progress)
    shown = "\n".join(progress.lines)
    assert "tried: 4 prompts are read; 24 answers to each will be sampled" in shown
    assert "chosen: 4 prompts are read; 24 answers to each will be sampled" in shown and "not checked" not in shown
    assert not proven["round"].failed and not proven["dpo"].failed
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_recipe_runs_to_its_end_and_is_not_run_twice(tmp_path: Path, model: str) -> None:
    tasks(tmp_path)
    recipe = parse_recipe(RECIPE.format(model=model, out=tmp_path / "runs", here=HERE), folder=tmp_path)
    result = run_recipe(recipe, progress=False)
    page = result.report.read_text()
    assert "answers to 4 prompts were sampled" in page and "pass@24" in page
    progress = Lines()
    run_recipe(recipe, progress=progress)
    assert sum("done before" in line for line in progress.lines) == 4
