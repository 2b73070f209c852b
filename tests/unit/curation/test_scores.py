"""The scores that need no model, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from posttrain.config.scores import SCORE_KINDS, ColumnScore, FormScore, LengthScore
from posttrain.curation.rows import Pool, Rows, Tools
from posttrain.curation.scores.column import column_score
from posttrain.curation.scores.form import form_score
from posttrain.curation.scores.length import length_score
from posttrain.curation.scores.table import SCORES
from posttrain.data.read import read
from posttrain.errors import RowError
from posttrain.types import Task
from tests.fixtures import byte_tokenizer, tiny_model


def pool_of(*rows: tuple[str, str]) -> Pool:
    return Pool.of(Rows(read([{"prompt": prompt, "completion": answer} for prompt, answer in rows], scan=False)))


def test_every_kind_has_a_function() -> None:
    assert set(SCORE_KINDS.values()) == set(SCORES)


def test_lengths() -> None:
    pool = pool_of(("One two?", "three, four five!"), ("Hm?", "你好 ok"))

    def lengths(**settings) -> list[float]:
        return length_score(LengthScore(kind="length", **settings), pool, Tools()).tolist()

    assert lengths() == [3, 3]
    assert lengths(of="prompt") == [2, 1]
    assert lengths(of="both") == [5, 4]
    assert lengths(unit="characters") == [17, 5]


def test_a_row_that_is_out_of_play_has_no_score() -> None:
    pool = pool_of(("Q", "a b"), ("Q", "a"), ("Q", "a b c"))
    left = Pool(pool.rows, np.array([0, 2]))
    score = length_score(LengthScore(kind="length"), left, Tools())
    assert score[[0, 2]].tolist() == [2, 3] and np.isnan(score[1])


def test_tokens_are_those_of_the_model(tmp_path) -> None:
    tokenizer = byte_tokenizer("CHATML")
    tiny_model("llama", vocab=len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    score = length_score(
        LengthScore(kind="length", unit="tokens"), pool_of(("Q", "four"), ("Q", "ü")), Tools(model=tmp_path)
    )
    assert score.tolist() == [4, 2]  # of a tokenizer of bytes


@pytest.mark.parametrize(
    ("answer", "passed"),
    [
        ("A whole sentence.", 10),
        ("Here is code:\n```\nx = 1", 9),
        ("A text.<|im_end|>", 9),
        ("User: and then?", 9),
        ("<think>hm", 9),
        ("NaN", 9),
        ("It is caf\u00c3\u00a9.", 9),
        ("A zero-width\u200b space.", 9),
        ("In short, " + "the city of light is known for many things and " * 6 + "for", 9),
        ("What is the capital of France? It is Paris.", 9),
        ("I'm sorry, but I can't help with that.", 9),
        ("<think>A text.<|im_end|>\n```", 7),
    ],
)
def test_each_fault_costs_a_tenth(answer: str, passed: int) -> None:
    pool = pool_of(("What is the capital of France?", answer))
    assert form_score(FormScore(kind="form"), pool, Tools()).tolist() == pytest.approx([passed / 10])


def test_a_task_has_no_form() -> None:
    pool = Pool.of(Rows(read([{"prompt": "2 + 2?", "answer": "4"}], kind=Task, scan=False)))
    assert np.isnan(form_score(FormScore(kind="form"), pool, Tools())).all()


def test_a_column_of_numbers_and_of_numbers_as_text() -> None:
    rows = [{"prompt": "Q", "completion": "A", "meta": {"score": value}} for value in (1, "2.5", None)]
    pool = Pool.of(Rows(read(rows, scan=False)))
    score = column_score(ColumnScore(kind="column", column="meta.score"), pool, Tools())
    assert score[:2].tolist() == [1, 2.5] and np.isnan(score[2])


@pytest.mark.parametrize(
    ("value", "words"), [(None, "null or NaN in each of 2 rows"), (float("nan"), "null or NaN in each of 2 rows")]
)
def test_a_column_without_a_number_is_said_to_be_there(value: float | None, words: str) -> None:
    pool = Pool.of(Rows(read([{"prompt": "Q", "completion": "A", "q": value}] * 2, scan=False)))
    with pytest.raises(RowError, match=words) as caught:
        column_score(ColumnScore(kind="column", column="q"), pool, Tools())
    assert "did you mean" not in str(caught.value)
