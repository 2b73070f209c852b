"""lm-eval on posttrain's engine against its own `hf` backend: the same tasks, the same model, the same numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from posttrain.config.text_suites import LmEvalSuite
from posttrain.errors import ConfigError, PosttrainError, SourceError
from posttrain.evaluate.asking import EvaluatedModel
from posttrain.evaluate.lm_eval.bridge import bridge_lm
from posttrain.evaluate.lm_eval.results import measured
from posttrain.evaluate.lm_eval.tasks import load_tasks, set_examples
from posttrain.evaluate.runner import evaluate_suites
from posttrain.evaluate.suites import load_suite
from posttrain.runs.files import read_json, read_jsonl
from tests.ecosystem.conftest import EMBEDDED
from tests.ecosystem.test_lm_eval import CHOOSE, GENERATE, ROLL, ROWS
from tests.fixtures import byte_tokenizer, tiny_model

pytestmark = pytest.mark.ecosystem

NATS = 1e-4
"""Of a whole continuation or text, between the two backends in fp32."""
ROUNDING = 3e-7
"""`hf` adds its log-probs up in fp32, whose steps at 1,000 nats are 6e-5 wide; ours are added up in fp64."""
LONG = {**ROLL, "doc_to_target": "{{question * 9}}"}
NORMED = {**CHOOSE, "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}], "target_delimiter": " "}
WORDS = {**ROLL, "metric_list": [{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")]}
FILTERED = {
    **GENERATE,
    "filter_list": [
        {"name": "strict", "filter": [{"function": "regex", "regex_pattern": "(\\d+)"}, {"function": "take_first"}]},
        {"name": "whole", "filter": [{"function": "take_first"}]},
    ],
}
TASKS: dict[str, dict[str, Any]] = {"choose": NORMED, "roll": WORDS, "long": LONG, "generate": FILTERED}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of tasks, whose rows lie beside them."""
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    for name, task in TASKS.items():
        write_task(tasks, name, task)
    return tasks


def write_task(folder: Path, name: str, task: Mapping[str, Any]) -> Path:
    settings = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "rows.jsonl"}},
        "test_split": "test",
        "fewshot_split": "test",
        "metadata": {"version": 1.5},
        **task,
    }
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML
    return path


@pytest.fixture(scope="session")
def embedded() -> Any:
    from posttrain.models import load

    return load("embedded")


def evaluated(lm: Any, folder: Path, num_fewshot: int | None = None, **options: Any) -> dict[str, Any]:
    import lm_eval

    loaded = load_tasks([str(folder)])
    set_examples(loaded, num_fewshot, 1234)
    found = lm_eval.evaluate(lm=lm, task_dict=loaded, log_samples=True, bootstrap_iters=0, **options)
    assert found is not None
    return dict(found)


def hf(model: Any, tokenizer: Any) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2)


def assert_alike(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Every likelihood of every document within NATS, whether it is greedy, every text, and every figure."""
    assert ours["samples"].keys() == theirs["samples"].keys()
    for task, samples in ours["samples"].items():
        for one, two in zip(samples, theirs["samples"][task], strict=True):
            assert one["doc_hash"] == two["doc_hash"] and one["prompt_hash"] == two["prompt_hash"]
            for first, second in zip(one["resps"], two["resps"], strict=True):
                if isinstance(first[0], str):
                    assert first == second, task
                elif isinstance(first[0], float):
                    assert first[0] == pytest.approx(second[0], abs=NATS, rel=ROUNDING)
                else:
                    assert first[0][0] == pytest.approx(second[0][0], abs=NATS, rel=ROUNDING), task
                    assert first[0][1] == second[0][1], task
    for task, figures in ours["results"].items():
        for name, value in figures.items():
            if isinstance(value, float):
                assert value == pytest.approx(theirs["results"][task][name], rel=1e-4), (task, name)


@pytest.mark.parametrize(
    "options",
    [{}, {"num_fewshot": 2}, {"apply_chat_template": True, "system_instruction": "Be brief."}, {"limit": 3}],
    ids=["plain", "few-shot", "chat", "limit"],
)
def test_the_numbers_are_those_of_hf(folder: Path, embedded: Any, options: dict[str, Any]) -> None:
    asked = EvaluatedModel.of(embedded.model, embedded.tokenizer, encoding=embedded.speech.settings())
    assert_alike(
        evaluated(bridge_lm(asked), folder, **options),
        evaluated(hf(embedded.model, embedded.tokenizer), folder, **options),
    )


@pytest.mark.parametrize("add_bos", [False, True], ids=["no bos", "own bos"])
def test_texts_longer_than_the_model(folder: Path, add_bos: bool) -> None:
    """Cut on the left, and rolled in windows, by a model of 48 positions; and a tokenizer that begins texts itself."""
    tokenizer = byte_tokenizer("CHATML", add_bos=add_bos)
    model = tiny_model(vocab=len(tokenizer), max_position_embeddings=48)
    bridge = bridge_lm(EvaluatedModel.of(model, tokenizer))
    assert bridge.max_length == 48
    (folder / "generate.yaml").unlink()
    assert_alike(evaluated(bridge, folder, num_fewshot=2), evaluated(hf(model, tokenizer), folder, num_fewshot=2))


def test_a_model_with_learned_positions(folder: Path) -> None:
    tokenizer = byte_tokenizer("CHATML")
    model = tiny_model("gpt2", vocab=len(tokenizer), n_positions=512)
    bridge = bridge_lm(EvaluatedModel.of(model, tokenizer))
    assert_alike(evaluated(bridge, folder), evaluated(hf(model, tokenizer), folder))


def test_a_group_of_tasks(folder: Path, embedded: Any, tmp_path: Path) -> None:
    """A group averages its tasks as lm-eval weighs them; the figure is the group's."""
    group = {"group": "both", "task": ["choose", "again"], "aggregate_metric_list": [{"metric": "acc"}]}
    write_task(folder, "again", NORMED)
    (folder / "both.yaml").write_text(json.dumps(group), encoding="utf-8")
    import lm_eval
    from lm_eval.tasks import TaskManager

    asked = EvaluatedModel.of(embedded.model, embedded.tokenizer, encoding=embedded.speech.settings())
    settings = json.loads((folder / "choose.yaml").read_text())
    for name in ("choose", "again"):  # lm-eval itself takes data files from where the command runs
        settings["dataset_kwargs"] = {"data_files": {"test": str(folder / "rows.jsonl")}}
        write_task(folder, name, settings | {"task": name})
    loaded = TaskManager(include_path=str(folder), include_defaults=False).load(["both"])
    set_examples(loaded, None, 1234)
    results = lm_eval.evaluate(lm=bridge_lm(asked), task_dict=loaded, log_samples=True, bootstrap_iters=0)
    found = measured(dict(results or {}), version="0", chat_template=False, seed=1)
    assert found.figures["both_acc"].value == pytest.approx(found.figures["choose_acc"].value)
    assert {line.prompt.split()[0] for line in found.lines} == {"choose", "again"}


def test_the_suite_of_a_recipe(folder: Path, embedded: Any, tmp_path: Path) -> None:
    settings = LmEvalSuite(
        name="harness", kind="lm_eval", tasks=(str(folder / "choose.yaml"), str(folder / "roll.yaml"))
    )
    suite = load_suite(settings)
    asked = EvaluatedModel.of(embedded.model, embedded.tokenizer, encoding=embedded.speech.settings())
    found = evaluate_suites(asked, [suite], tmp_path / "start")["harness"]
    theirs = evaluated(hf(embedded.model, embedded.tokenizer), folder)["results"]
    assert found["choose_acc"].value == theirs["choose"]["acc,none"] and found["choose_acc"].n == len(ROWS)
    for name in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
        assert found[f"roll_{name}"].value == pytest.approx(theirs["roll"][f"{name},none"], rel=1e-4)
        figure = found[f"roll_{name}"]
        assert figure.low is not None and figure.high is not None and figure.low < figure.value < figure.high
    record = read_json(tmp_path / "start" / "evaluations" / "harness.lm_eval.json")
    assert record["tasks"]["choose"]["version"] == "1.5" and record["tasks"]["choose"]["num_fewshot"] == 0
    assert len(read_jsonl(tmp_path / "start" / "evaluations" / "harness.jsonl")) == 2 * len(ROWS)


def test_what_is_refused(folder: Path, tmp_path: Path, embedded: Any) -> None:
    with pytest.raises(ConfigError, match="arc_easy"):
        load_tasks(["arc_eazy"])
    with pytest.raises(ConfigError, match="no task was found here"):
        load_tasks([str(tmp_path / "nowhere")])
    write_task(folder, "gone", {**CHOOSE, "dataset_kwargs": {"data_files": {"test": "gone.jsonl"}}})
    with pytest.raises(SourceError, match="cannot be read"):
        load_tasks([str(folder / "gone.yaml")])
    for name, edited, problem in (
        ("column", {"doc_to_text": "{{frage}}"}, "asks for something that is not there"),
        ("split", {"test_split": "validation"}, "asks for something that is not there"),
        ("target", {"doc_to_target": "richtig"}, "none of its choices"),
    ):
        path = write_task(folder, name, {**CHOOSE, **edited})
        with pytest.raises(ConfigError, match=problem):
            load_suite(LmEvalSuite(name="h", kind="lm_eval", tasks=(str(path),)))
    asked = EvaluatedModel.of(embedded.model, embedded.tokenizer, encoding=embedded.speech.settings())
    drawing: Any = GENERATE["generation_kwargs"]
    for options, problem in (
        ({"num_beams": 4}, "beams"),
        ({"typical_p": 0.5}, "typical_p"),
        ({"max_gen_toks": 9999}, "room"),
    ):
        inner = tmp_path / problem
        inner.mkdir()
        (inner / "rows.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
        write_task(inner, "mine", {**GENERATE, "generation_kwargs": {**drawing, **options}})
        with pytest.raises(PosttrainError, match=problem):
            evaluated(bridge_lm(asked), inner)
    assert EMBEDDED.is_dir()
