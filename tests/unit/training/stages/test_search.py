"""The stage `search` on a tiny model: its rows are what its strategy found, and a later stage reads them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from posttrain.config import parse_recipe
from posttrain.config.search import Search
from posttrain.data.read import read
from posttrain.errors import ConfigError, EmptyDatasetError
from posttrain.inference.labels import step_labels
from posttrain.runs.files import read_jsonl
from posttrain.runs.folder import StageFolder
from posttrain.runs.progress import Progress
from posttrain.runs.records.budget import SolutionLine
from posttrain.training.identity import identity_of_recipe
from posttrain.training.pipeline import check_recipe
from posttrain.training.stages.kind import StageContext
from posttrain.training.stages.search import SEARCH, _labels_of
from posttrain.training.stages.speech import answer_settings
from posttrain.types import Comparison, Demonstration
from tests.fixtures import byte_tokenizer, tiny_model

LENGTH = {"kind": "rewards", "rewards": [{"kind": "function", "function": "tests.inference:length_of"}]}
SHORT = {
    "kind": "rewards",
    "rewards": [{"kind": "function", "function": "tests.unit.training.stages.test_search:shortness"}],
}
SAMPLING = {"temperature": 1.0, "max_new_tokens": 24}


def shortness(prompt, completion, task) -> float:
    """Of a model that seldom ends an answer the short ones have an end; empty ones are no answers."""
    return -float(len(completion)) if completion.strip() else -1e3


class Lines(Progress):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that ends its answers soon, for what is cut makes no row."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = byte_tokenizer("CHATML", eos="<|im_end|>", pad_is_eos=True)
    tiny_model("llama", vocab=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def stage(folder: Path, **settings) -> Search:
    path = folder / "tasks.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{n} + 1?", "answer": str(n + 1)}) + "\n" for n in range(4)))
    given = {
        "name": "found",
        "data": str(path),
        "strategy": {"kind": "best_of_n", "n": 16, "scorer": SHORT, "sampling": SAMPLING},
        "modules": str(folder),
    }
    return Search(**{**given, **settings})


def made(settings: Search, model: Path, folder: Path, progress: Progress | None = None):
    ctx = StageContext(
        settings,
        str(model),
        StageFolder(folder / "run" / "found"),
        0,
        progress or Progress(),
        answers=answer_settings(None, str(model), "2026-01-01"),
    )
    return SEARCH.make(ctx, SEARCH.inputs(ctx)), folder / "run" / "found"


def test_winners_are_the_strategys_answers(tmp_path: Path, model: Path) -> None:
    progress = Lines()
    counts, out = made(stage(tmp_path), model, tmp_path, progress)
    trees = [SolutionLine.from_json(line) for line in read_jsonl(out / "trees.jsonl")]
    assert [line.prompt for line in trees] == [f"{n} + 1?" for n in range(4)]
    best = [max(line.nodes, key=lambda node: node.scores["rewards"] or -1e9) for line in trees]
    assert [line.chosen for line in trees] == [node.number for node in best]
    rows = list(read(out / "data.jsonl"))
    kept = [node.text for node in best if node.finish == "stop_token"]
    assert all(isinstance(row, Demonstration) for row in rows)
    assert [row.messages[-1].content for row in rows] == kept  # type: ignore[union-attr]
    dropped = read_jsonl(out / "dropped.jsonl")
    assert len(rows) + len(dropped) == 4 and {line["reason"] for line in dropped} <= {
        "cut",
        "special_tokens",
        "no_answer",
    }
    assert (counts.prompts, counts.answers, counts.kept) == (4, 64, len(rows))
    assert counts.tokens == sum(node.tokens or 0 for line in trees for node in line.nodes)
    assert any("tokens sampled" in line for line in progress.lines)


def test_pairs_are_judged_by_the_stages_own_scorer(tmp_path: Path, model: Path) -> None:
    strategy = {"kind": "best_of_n", "n": 6, "scorer": "logprob", "sampling": SAMPLING}
    counts, out = made(stage(tmp_path, rows="pairs", scorer=LENGTH, strategy=strategy), model, tmp_path)
    rows = list(read(out / "data.jsonl"))
    assert rows and counts.pairs == len(rows)
    for row in rows:
        assert isinstance(row, Comparison) and row.scores is not None
        lengths = tuple(float(len(response[-1].content or "")) for response in row.responses)
        assert row.scores == lengths and lengths[0] > lengths[1]


def test_a_scorer_by_log_prob_judges_what_another_strategy_drew(tmp_path: Path, model: Path) -> None:
    _, out = made(stage(tmp_path, rows="pairs", scorer="logprob"), model, tmp_path)
    scores = [row.scores for row in read(out / "data.jsonl")]  # type: ignore[union-attr]
    assert scores and all(one is not None and 0 > one[0] > one[1] for one in scores)


def test_the_seed_gives_the_same_rows(tmp_path: Path, model: Path) -> None:
    _, out = made(stage(tmp_path), model, tmp_path)
    first = (out / "data.jsonl").read_bytes()
    made(stage(tmp_path), model, tmp_path)
    assert (out / "data.jsonl").read_bytes() == first


def test_where_nothing_can_be_kept_the_error_says_why(tmp_path: Path, model: Path) -> None:
    with pytest.raises(EmptyDatasetError, match="no row came out") as caught:
        made(stage(tmp_path, least_score=1e9), model, tmp_path)
    assert "below `least_score`" in str(caught.value) or "cut by a limit" in str(caught.value)
    assert not (tmp_path / "run" / "found" / "data.jsonl").exists()


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"rows": "steps", "scorer": LENGTH}, "from which score on an answer is right"),
        ({"rows": "steps", "least_score": 1.0, "scorer": "logprob"}, "does not say which answers are right"),
        ({"rows": "pairs", "least_score": 1.0}, "whatever these are"),
        ({"rows": "losers"}, "rows"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path: Path, settings, problem) -> None:
    with pytest.raises(ConfigError, match=problem):
        stage(tmp_path, **settings)


def test_a_strategy_without_steps_has_none_to_label(tmp_path: Path, model: Path) -> None:
    with pytest.raises(ConfigError, match="has no steps that could be labelled"):
        made(stage(tmp_path, rows="steps", least_score=1.0), model, tmp_path)


def test_steps_are_parted_by_the_strategys_own_mark(tmp_path: Path) -> None:
    mcts = {"kind": "mcts", "scorer": "logprob", "step": "\n"}
    found = stage(tmp_path, rows="steps", least_score=1.0, scorer=LENGTH, strategy=mcts)
    labels = _labels_of(found)
    assert labels.func is step_labels and labels.keywords == {"mark": "\n"}  # type: ignore[attr-defined]
    for step in ("sentence", 16):
        with pytest.raises(ConfigError, match="has no steps that could be labelled"):
            _labels_of(found.changed(strategy={**mcts, "step": step}))


def test_a_scorer_that_was_trained_anew_is_another_input(tmp_path: Path, model: Path, monkeypatch) -> None:
    judge = tmp_path / "judge"
    judge.mkdir()
    (judge / "config.json").write_text("{}")
    (judge / "pytorch_model.bin").write_bytes(b"weights")
    settings = stage(tmp_path, strategy={"kind": "best_of_n", "n": 2, "scorer": str(judge)})
    answers = answer_settings(None, str(model), "2026-01-01")
    ctx = StageContext(settings, str(model), StageFolder(tmp_path / "f"), 0, Progress(), answers=answers)
    before = identity_of_recipe(ctx, answers)
    assert before.quick == identity_of_recipe(ctx, answers).quick and "strategy.scorer.model" in before.contents
    (judge / "pytorch_model.bin").write_bytes(b"others")
    assert identity_of_recipe(ctx, answers).quick != before.quick


# ---------------------------------------------------------------- in a recipe


RECIPE = """
schema: 1
name: mine
model: embedded
out: {out}
stages:
- {{method: reward, data: pairs.jsonl, steps: 1}}
- {{name: found, method: search, data: tasks.jsonl, rows: {rows},
   strategy: {{kind: best_of_n, n: 4, scorer: {{stage: {scorer}}}}}}}
- {{method: {method}, data: {{stage: found}}, steps: 1, held_out: 0, max_length: 128}}
"""


def recipe(folder: Path, rows: str = "winners", method: str = "sft", scorer: str = "reward"):
    stage(folder)
    (folder / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n' * 3)
    text = RECIPE.format(out=folder / "runs", rows=rows, method=method, scorer=scorer)
    return parse_recipe(text, folder=folder)


def test_a_scorers_stage_stands_before_the_search(tmp_path: Path) -> None:
    assert recipe(tmp_path).stage("found").strategy.scorer.stage == "reward"  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="no stage named `sft` trains a reward model") as caught:
        recipe(tmp_path, scorer="sft")
    assert "strategy.scorer.stage" in str(caught.value)


@pytest.mark.parametrize(("rows", "method"), [("winners", "sft"), ("pairs", "dpo")])
def test_what_comes_after_a_search_is_checked_on_stand_ins(tmp_path: Path, rows: str, method: str) -> None:
    progress = Lines()
    mine = recipe(tmp_path, rows, method)
    mine = mine.model_copy(update={"stages": mine.stages[1:]})
    proven = check_recipe(mine, progress=progress)
    shown = "\n".join(progress.lines)
    assert "found: 4 prompts are read; each is answered by `best_of_n`" in shown
    assert f"{method}: checked on stand-ins for the rows of `found`" in shown
    assert not proven[method].failed


def test_addresses_that_make_tasks_stand_beside_files(tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym")
    files = stage(tmp_path)
    gym = "reasoning_gym:basic_arithmetic?size=3&seed=0"

    def inputs(**data):
        settings = stage(tmp_path, data={"path": [gym, *files.data.path], **data})
        return SEARCH.inputs(StageContext(settings, "m", StageFolder(tmp_path / "run"), 0, Progress()))

    both = inputs()
    assert both.read == len(both.tasks) == 7
    assert "reasoning_gym" in both.tasks[0].metadata and both.tasks[-1].prompt[0].content == "3 + 1?"
    assert [task.prompt for task in inputs(limit=5).tasks] == [task.prompt for task in both.tasks[:5]]
    assert len(inputs(limit=3).tasks) == 3 and len(inputs(limit=2).tasks) == 2
