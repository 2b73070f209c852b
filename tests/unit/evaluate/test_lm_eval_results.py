"""What lm-eval gives, in our words: figures, intervals, lines; and tasks that are refused. lm-eval is not needed."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from posttrain.config.suites import Evaluation
from posttrain.config.text_suites import LmEvalSuite, is_task_file
from posttrain.diagnostics.paired import paired_change
from posttrain.errors import ConfigError, MissingExtraError, PosttrainError, SourceError
from posttrain.evaluate.lm_eval import tasks
from posttrain.evaluate.lm_eval.results import meanings, measured
from posttrain.evaluate.suites import load_suite
from posttrain.intervals import from_error, share
from posttrain.runs.records.evaluation import Direction
from posttrain.runs.records.lm_eval import LmEvalResults


def choice(document: int, right: float, of_filter: str = "none") -> dict[str, Any]:
    return {
        "doc_id": document,
        "target": 1,
        "arguments": [("2 + 2?", " 5"), ("2 + 2?", " 4")],
        "resps": [[(-3.0, False)], [(-1.0, True)]],
        "filtered_resps": [(-3.0, False), (-1.0, True)],
        "filter": of_filter,
        "metrics": ["acc"],
        "acc": right,
    }


def rolled(document: int, logprob: float, words: int) -> dict[str, Any]:
    return {
        "doc_id": document,
        "target": "A text.",
        "arguments": [("A text.",)],
        "resps": [[logprob]],
        "filtered_resps": [logprob],
        "filter": "none",
        "metrics": ["word_perplexity", "odd"],
        "word_perplexity": (logprob, words),
        "odd": {"not": "a number"},
    }


def said(document: int, text: str, of_filter: str, right: float) -> dict[str, Any]:
    return {
        "doc_id": document,
        "target": "4",
        "arguments": [("2 + 2?", {"until": ["\n"]})],
        "resps": [[f"It is {text}"]],
        "filtered_resps": [text],
        "filter": of_filter,
        "metrics": ["exact_match"],
        "exact_match": right,
    }


RESULTS: dict[str, Any] = {
    "results": {
        "choose": {"alias": "choose", "acc,none": 0.75, "acc_stderr,none": 0.25},
        "roll": {"word_perplexity,none": math.exp(8 / 6), "word_perplexity_stderr,none": "N/A", "odd,none": 2.0},
        "say": {"exact_match,strict": 0.5, "exact_match_stderr,strict": 0.5, "exact_match,loose": 1.0},
    },
    "groups": {"both": {"acc,none": 0.7, "acc_stderr,none": 0.1}},
    "higher_is_better": {
        "choose": {"acc": True},
        "roll": {"word_perplexity": False},
        "say": {"exact_match": True},
        "both": {"acc": True},
    },
    "versions": {"choose": 1.0, "roll": 2, "say": "3"},
    "n-shot": {"choose": 5, "roll": 0, "say": 0},
    "n-samples": {name: {"original": 9, "effective": 4} for name in ("choose", "roll", "say")},
    "samples": {
        "choose": [choice(number, float(number > 0)) for number in (3, 2, 1, 0)],
        "roll": [rolled(0, -2.0, 4), rolled(1, -6.0, 2)],
        "say": [said(0, "4", name, 1.0) for name in ("strict", "loose")]
        + [said(1, "four", name, float(name == "loose")) for name in ("strict", "loose")],
    },
}


def test_figures_and_intervals() -> None:
    found = measured(RESULTS, version="0.4.13", chat_template=False, seed=7)
    assert list(found.figures) == [
        "choose_acc",
        "roll_word_perplexity",
        "roll_odd",
        "say_exact_match_strict",
        "say_exact_match_loose",
        "both_acc",
    ]
    assert found.figures["choose_acc"] == share(3, 4)
    perplexity = found.figures["roll_word_perplexity"]
    assert perplexity.value == pytest.approx(math.exp(8 / 6)) and perplexity.n == 2
    assert perplexity.low == pytest.approx(math.exp(0.5)) and perplexity.high == pytest.approx(math.exp(3.0))
    assert (found.figures["both_acc"].low, found.figures["both_acc"].high) == from_error(0.7, 0.1)
    assert found.figures["roll_odd"].low == found.figures["roll_odd"].high == 2.0  # nothing is known of it


def test_a_line_for_each_document_whatever_the_filters() -> None:
    lines = measured(RESULTS, version="0.4.13", chat_template=False, seed=7).lines
    assert [line.prompt.split(":")[0] for line in lines] == [
        *(f"choose {i}" for i in range(4)),
        *("roll 0", "roll 1", "say 0", "say 1"),
    ]
    assert (lines[0].completion, lines[0].finish, lines[0].score) == (" 4", "chosen", 0.0)
    assert lines[4].finish == "given" and lines[4].by_metric == {"roll_word_perplexity": (2.0, 4.0)}
    assert lines[7].by_metric == {"say_exact_match_strict": (0.0,), "say_exact_match_loose": (1.0,)}
    assert (lines[7].completion, lines[7].answer) == ("four", "4")


def test_two_evaluations_are_paired_by_document() -> None:
    one = measured(RESULTS, version="0.4.13", chat_template=False, seed=7)
    better = {**RESULTS, "results": {**RESULTS["results"], "choose": {"acc,none": 1.0}}}
    better["samples"] = {**RESULTS["samples"], "choose": [choice(number, 1.0) for number in range(4)]}
    two = measured(better, version="0.4.13", chat_template=False, seed=7)
    for name in ("choose_acc", "roll_word_perplexity", "say_exact_match_strict"):
        found = paired_change(name, one.lines, two.lines, one.figures[name], two.figures[name])  # type: ignore[arg-type]
        assert found is not None, name
        assert found.difference.value == (0.25 if name == "choose_acc" else 0)


def test_what_the_report_is_told() -> None:
    record = measured(RESULTS, version="0.4.13", chat_template=True, seed=7).record
    assert LmEvalResults.from_json(record.to_json()) == record
    assert record.tasks["choose"].documents == 4 and record.tasks["choose"].of_documents == 9
    told = meanings(record)
    assert told["choose_acc"].title == "choose acc (version 1.0, 5-shot)"
    assert told["choose_acc"].wanted is Direction.UP and told["choose_acc"].unit == "share"
    assert told["roll_word_perplexity"].wanted is Direction.DOWN and told["roll_word_perplexity"].unit == ""
    assert told["roll_odd"].wanted is Direction.OPEN
    assert told["say_exact_match_loose"].title == "say exact_match, loose (version 3, 0-shot)"
    assert told["both_acc"].title == "both acc (group)"


def test_which_names_are_files() -> None:
    assert all(map(is_task_file, ("./mine", "../x", "/a/b", "~/t", "t.yaml")))
    assert not any(map(is_task_file, ("gsm8k", "arc.easy", "mmlu_flan_n_shot")))
    assert LmEvalSuite(name="h", kind="lm_eval", tasks="arc_easy, ./mine").tasks == ("arc_easy", "./mine")  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        LmEvalSuite(name="h", kind="lm_eval", tasks=())


def test_without_lm_eval_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "find_spec", lambda name: None)
    given: Any = [{"name": "h", "kind": "lm_eval", "tasks": "arc_easy"}]
    (suite,) = Evaluation(suites=given).suites
    with pytest.raises(MissingExtraError, match=r"posttrain\[lm_eval\]"):
        load_suite(suite)


@pytest.mark.parametrize(("trait", "problem"), [("UNSAFE_CODE", "runs code"), ("MULTIMODAL", "shows pictures")])
def test_tasks_that_cannot_be_asked(trait: str, problem: str) -> None:
    with pytest.raises(PosttrainError, match=problem):
        tasks._require_askable("mine", SimpleNamespace(**{trait: True}))


@pytest.mark.parametrize(
    ("options", "problem"), [({"lenght": 3}, "`lenght` is not known"), ({"num_beams": 4}, "beams are not searched")]
)
def test_how_answers_are_drawn_is_refused_before_anything_trains(options: dict[str, Any], problem: str) -> None:
    task = SimpleNamespace(OUTPUT_TYPE="generate_until", get_config={"generation_kwargs": options}.get)
    with pytest.raises(ConfigError, match=problem):
        tasks._require_askable("mine", task)
    tasks.require_options({"until": ["a"], "max_gen_toks": 3, "num_beams": 1}, "mine")


def multiple_choice(*targets: Any) -> SimpleNamespace:
    """A task of documents with the choices yes and no."""
    return SimpleNamespace(
        OUTPUT_TYPE="multiple_choice",
        multiple_input=0,
        eval_docs=list(targets),
        doc_to_choice=lambda document: ["yes", "no"],
        doc_to_target=lambda document: document,
    )


def test_a_right_answer_is_one_of_the_choices() -> None:
    """lm-eval counts such a document as wrong, whatever the model says, behind a warning in its log."""
    tasks.require_answers("mine", multiple_choice(0, 1, "no", [0, 1], 9), limit=4)
    for wrong in (2, "maybe", [0, 2]):
        with pytest.raises(ConfigError, match="none of its choices") as refused:
            tasks.require_answers("mine", multiple_choice(0, wrong), limit=None)
        assert refused.value.where == "mine, document 1"


def test_what_is_out_of_reach_and_what_is_wrong_in_the_file() -> None:
    out_of_reach = (FileNotFoundError("rows.jsonl"), ConnectionError("no name"), StopIteration())
    assert {type(tasks._refused(error, "mine.yaml")) for error in out_of_reach} == {SourceError}
    wrong = (KeyError("validation"), TypeError("unexpected keyword argument 'doc_to_txt'"), ValueError())
    assert {type(tasks._refused(error, "mine.yaml")) for error in wrong} == {ConfigError}
    assert "doc_to_txt" in str(tasks._refused(wrong[1], "mine.yaml"))


def test_an_unknown_task_is_told_its_neighbours_and_not_thousands() -> None:
    manager = SimpleNamespace(all_tasks=["arc_easy", *(f"mmlu_{number}" for number in range(5000))])
    with pytest.raises(ConfigError, match="did you mean `arc_easy`") as refused:
        tasks._known("arc_eazy", manager)
    assert refused.value.expected == "one of lm-eval's 5,001 tasks and groups, such as arc_easy"


def test_an_edited_task_is_asked_again(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("task: mine")
    before = tasks.fingerprint_of_tasks([str(tmp_path)])
    assert before == tasks.fingerprint_of_tasks([str(tmp_path)])
    (tmp_path / "rows.jsonl").write_text("{}")
    assert before != tasks.fingerprint_of_tasks([str(tmp_path)])
