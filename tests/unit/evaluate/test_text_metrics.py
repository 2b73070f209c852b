"""Answers against references: SQuAD's F1 by hand; BLEU, chrF and ROUGE as their packages say; the suites of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.config.suites import Sampling
from posttrain.config.text_suites import BleuSuite, ChrfSuite, F1Suite, RougeSuite
from posttrain.data import read
from posttrain.diagnostics.paired import paired_change
from posttrain.errors import MissingExtraError, RowError
from posttrain.evaluate.asking import EvaluatedModel
from posttrain.evaluate.metrics import translation
from posttrain.evaluate.metrics.metric import figures_of_parts
from posttrain.evaluate.metrics.squad import SquadF1, exact_match, normalised, token_f1
from posttrain.evaluate.runner import evaluate_suites
from posttrain.evaluate.suites import load_suite
from posttrain.evaluate.suites.references import ReferenceAnswers, references_of, require_words
from posttrain.runs.records.evaluation import AnswerLine
from posttrain.types import RowRef
from tests.fixtures import byte_tokenizer, tiny_model

TOKENIZER = byte_tokenizer("CHATML")


@pytest.mark.parametrize(
    ("answer", "reference", "f1", "exact"),
    [
        ("The Cat's mat!", "cats mat", 1.0, 1.0),
        ("the cat sat", "cat", 2 * 1 * 0.5 / 1.5, 0.0),
        ("cat cat", "cat", 2 * 0.5 * 1 / 1.5, 0.0),  # a word counts as often as both have it
        ("dog", "cat", 0.0, 0.0),
        ("", "cat", 0.0, 0.0),
        ("The.", "a", 1.0, 1.0),  # nothing is left on either side
        ("anthem", "them", 0.0, 0.0),  # articles are whole words
        ("U.S.A.", "usa", 1.0, 1.0),
    ],
)
def test_squad_by_hand(answer: str, reference: str, f1: float, exact: float) -> None:
    assert token_f1(answer, reference) == pytest.approx(f1)
    assert exact_match(answer, reference) == exact


def test_the_best_reference_counts_for_each_metric_by_itself() -> None:
    assert SquadF1().parts("in Paris", ("Paris", "in London", "Paris in")) == {"f1": (1.0,), "exact_match": (0.0,)}
    assert normalised("  A  man, a plan ") == "man plan"


def test_parts_of_one_number_are_averaged_and_others_added_up() -> None:
    parts = [[{"f1": (1.0,), "text_perplexity": (1.0, 2.0)}], [{"f1": (0.5,), "text_perplexity": (3.0, 2.0)}]]
    found = figures_of_parts(parts)
    assert found["f1"].value == 0.75
    assert found["text_perplexity"].value == pytest.approx(2.718281828)


def test_translations_are_sacrebleus() -> None:
    metrics = pytest.importorskip("sacrebleu.metrics")
    references = ("Die Katze saß auf der Matte.", "Eine Katze saß da.")
    for ours, theirs in (
        (translation.Bleu(), metrics.BLEU(effective_order=True)),
        (translation.Bleu("char", lowercase=True), metrics.BLEU(tokenize="char", lowercase=True, effective_order=True)),
        (translation.Chrf(), metrics.CHRF()),
        (translation.Chrf(2), metrics.CHRF(word_order=2)),
    ):
        for answer in ("Die Katze saß auf der Matte.", "die katze saß", "Hund", ""):
            assert ours.score(answer, references) == pytest.approx(
                theirs.sentence_score(answer, list(references)).score, abs=1e-9
            )
    assert translation.Bleu("intl").signature.startswith("case:mixed|eff:no|tok:intl|smooth:exp|version:")


def test_rouge_by_hand() -> None:
    pytest.importorskip("rouge_score")
    from posttrain.evaluate.metrics.rouge import Rouge

    found = Rouge().parts("the cat sat", ("the cat sat down", "a dog"))
    assert found["rouge_1"] == (pytest.approx(2 * 1 * 0.75 / 1.75),)
    assert found["rouge_2"] == (pytest.approx(2 * 1 * (2 / 3) / (5 / 3)),)
    assert found["rouge_l"] == found["rouge_1"]
    assert Rouge().parts("walked", ("walks",))["rouge_1"] == (0.0,)
    assert Rouge(stemmer=True).parts("walked", ("walks",))["rouge_1"] == (1.0,)


def test_rouge_refuses_what_it_cannot_see(tmp_path: Path) -> None:
    require_words(["Zürich", "7", "the 猫"], RowRef("r.jsonl", 1))
    for unseen in ("日本語の猫", "привет", "...", "é"):
        with pytest.raises(RowError, match="every answer would score 0"):
            require_words(["a cat", unseen], RowRef("r.jsonl", 1))
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "Say cat in Japanese.", "answer": "猫"}) + "\n", encoding="utf-8")
    pytest.importorskip("rouge_score")
    with pytest.raises(RowError, match="kind: chrf"):
        load_suite(RougeSuite(name="rouge", kind="rouge", prompts=str(rows)))


def test_a_metric_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"posttrain\[metrics\]"):
        translation.Bleu()


def rows(path: Path, *content: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return str(path)


def test_where_references_come_from(tmp_path: Path) -> None:
    source = rows(
        tmp_path / "qa.jsonl",
        {"prompt": "1", "answer": "Paris", "references": ["in Paris", "Paris"]},
        {"prompt": "2", "references": "Rome"},
        {"prompt": "3", "answers": {"text": ["Ada"], "answer_start": [3]}},
        {"prompt": "4", "references": []},
        {"prompt": "5", "answer": "x", "references": 7},
        {"prompt": "6"},
        {"prompt": "7", "references": ["x", " "]},
    )
    first, second, third, fourth, fifth, sixth, seventh = read(source)
    assert references_of(first, "references") == ("Paris", "in Paris")
    assert references_of(second, "references") == ("Rome",)
    assert references_of(third, "answers") == ("Ada",)
    assert references_of(fourth, "references", may_be_silent=True) == ("",)
    for example, column, problem in (
        (fourth, "references", "no answer to compare with"),
        (fifth, "references", "no list of texts"),
        (sixth, "references", "no answer to compare with"),
        (seventh, "references", "is empty"),
    ):
        with pytest.raises(RowError, match=problem) as refused:
            references_of(example, column)
        assert "qa.jsonl" in str(refused.value) and refused.value.remedy


def test_the_suites_of_a_recipe(tmp_path: Path) -> None:
    pytest.importorskip("sacrebleu")
    pytest.importorskip("rouge_score")
    source = rows(tmp_path / "t.jsonl", *({"prompt": f"{i}?", "answer": "qz" * (i + 1)} for i in range(3)))
    common: dict[str, Any] = {"prompts": source, "sampling": Sampling(max_new_tokens=8, temperature=1.0)}
    settings = [
        F1Suite(name="f1", kind="f1", **common),
        BleuSuite(name="bleu", kind="bleu", tokenize="char", **common),
        ChrfSuite(name="chrf", kind="chrf", samples_per_prompt=2, **common),
        RougeSuite(name="rouge", kind="rouge", **common),
    ]
    suites = [load_suite(one) for one in settings]
    asked = EvaluatedModel.of(tiny_model(vocab=len(TOKENIZER)), TOKENIZER)
    with torch.no_grad():
        found = evaluate_suites(asked, suites, tmp_path)
    for name, first in (("f1", "f1"), ("bleu", "bleu"), ("chrf", "chrf"), ("rouge", "rouge_l")):
        lines = [
            AnswerLine.from_json(json.loads(text))
            for text in (tmp_path / "evaluations" / f"{name}.jsonl").read_text().splitlines()
        ]
        figure = found[name][first]
        assert figure.n == 3 and len(lines) == (6 if name == "chrf" else 3)
        assert next(iter(found[name])) == first
        # The file holds all that a comparison needs: with itself nothing changed.
        same = paired_change(first, lines, lines, figure, figure)
        assert same is not None and same.difference.value == 0 and same.p == 1
    assert isinstance(suites[0], ReferenceAnswers)
