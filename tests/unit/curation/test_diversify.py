"""The step `diversify` in a selection: what is kept, what is said of the rest, and settings that cannot be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from posttrain.config.diversity import Diversify
from posttrain.config.select import SelectSettings
from posttrain.curation.diversity.step import MESSAGES, diversify
from posttrain.curation.pipeline import select
from posttrain.curation.rows import Pool, Rows, Tools
from posttrain.data.read import read
from posttrain.errors import ConfigError, UnknownKeyError

ROWS: list[dict[str, Any]] = [
    {"prompt": prompt, "completion": answer, "topic": topic, "vector": vector, "quality": quality}
    for prompt, answer, topic, vector, quality in (
        ("What is the capital of France?", "Paris is the capital.", "facts", [1.0, 0.0], 1),
        ("What is the capital of France, please?", "Paris is the capital.", "facts", [0.99, 0.14], 5),
        ("How do I sort a list in Python?", "Call sorted on the list.", "code", [0.0, 1.0], 2),
        ("Wie ist das Wetter und was ist los?", "Es ist sonnig.", None, [-1.0, 0.0], 3),
    )
]
COLUMN = {"kind": "column", "column": "vector"}


def pool_of(rows: list[dict[str, Any]] = ROWS) -> Pool:
    return Pool.of(Rows(read(rows, scan=False)))


def step(**keys: Any) -> Diversify:
    return Diversify(kind="diversify", **keys)


def test_a_step_names_the_kept_row_in_the_numbers_of_the_input():
    pool = pool_of()
    pool = Pool(pool.rows, np.array([1, 2, 3]))  # row 0 went before: places are not numbers any more
    taken = diversify(step(method="k_centre", embedding=COLUMN, budget=2), pool, Tools())
    assert taken.kept.tolist() == [2, 3] and taken.is_order
    (removed,) = taken.removed
    assert (removed.row, removed.reason, removed.nearest) == (1, "over_budget", 2)
    assert removed.similarity == pytest.approx(0.14, abs=0.01) and removed.message == MESSAGES["over_budget"]


def test_semantic_duplicates_by_words_alone():
    method = {"kind": "semdedup", "threshold": 0.7, "clusters": 1}
    taken = diversify(step(method=method), pool_of(), Tools())
    (removed,) = taken.removed
    assert {removed.row, removed.nearest} == {0, 1} and removed.reason == "semantic_duplicate" and not taken.is_order


def test_deita_goes_by_a_score_of_an_earlier_step():
    pool = Pool.of(pool_of().rows)
    pool = Pool(pool.rows, pool.kept, {"quality": np.array([1.0, 5.0, 2.0, 3.0])})
    taken = diversify(step(method="deita", embedding=COLUMN, score="quality"), pool, Tools())
    assert taken.kept.tolist() == [1, 3, 2] and [one.row for one in taken.removed] == [0]
    with pytest.raises(UnknownKeyError, match="`qualty` is not known") as error:
        diversify(step(method="deita", embedding=COLUMN, score="qualty"), pool, Tools())
    assert error.value.remedy == "did you mean `quality`?"


@pytest.mark.parametrize(
    ("method", "kept"),
    [
        ({"by": "column", "column": "topic", "counts": {"code": 1, "missing": 1}}, {2, 3}),
        ({"by": "language", "counts": {"German": 1}}, {3}),
        ({"by": "source", "counts": {"rows": 9}, "shortfall": "fill"}, set()),
    ],
)
def test_quotas_by_what_a_row_is(method, kept):
    taken = diversify(step(method={"kind": "quotas", **method}), pool_of(), Tools())
    assert set(taken.kept.tolist()) == kept and len(taken.removed) == 4 - len(kept)
    assert all(one.reason in MESSAGES and one.nearest is None for one in taken.removed)


def test_a_selection_says_why_each_row_went_and_goes_on_from_its_steps(tmp_path):
    steps = [
        {"kind": "score", "score": {"kind": "column", "column": "quality"}},
        {"kind": "diversify", "method": {"kind": "deita", "threshold": 0.9}, "embedding": COLUMN, "score": "quality"},
        {"kind": "budget", "rows": 2},
    ]
    picked = select(ROWS, steps=steps, out=tmp_path / "picked", order="choice", progress=False)
    assert [row["quality"] for row in picked.kept] == [5, 3]
    assert picked.steps[1].by_reason == {"like_a_better_row": 1} and len(picked.twin) == 2
    again = select(ROWS, steps=[*steps[:2], {"kind": "budget", "rows": 3}], out=tmp_path / "picked", progress=False)
    assert again.steps[1].computed_before and len(again.kept) == 3


def killed(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_a_killed_step_finds_its_embeddings_again(tmp_path, monkeypatch):
    tools = Tools(cache=tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr("posttrain.curation.diversity.step.choose", killed)
        with pytest.raises(KeyboardInterrupt):
            diversify(step(method="k_centre", budget=2), pool_of(), tools)
    monkeypatch.setattr("posttrain.curation.embeddings.embed.tfidf_vectors", None)  # it would fail if it were called
    assert len(diversify(step(method="k_centre", budget=2), pool_of(), tools).kept) == 2


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({"method": "k_centre"}, "no end of its own"),
        ({"method": "dpp"}, "no end of its own"),
        ({"method": "deita"}, "goes by a score here"),
        ({"method": {"kind": "semdedup", "keep": "score"}}, "goes by a score here"),
        ({"method": {"kind": "k_centre", "quality": 1}, "budget": 2}, "goes by a score here"),
        ({"method": "k_centre", "budget": 2, "score": "quality"}, "changes nothing in `k_centre`"),
        ({"method": {"kind": "dpp", "kernel": "cosine", "width": 0.2}, "budget": 2}, "`width` has no part"),
        ({"method": {"kind": "quotas", "by": "source", "shares": {"a": 1}}}, "no end of its own"),
        ({"method": {"kind": "quotas", "by": "source", "counts": {"a": 1}}, "embedding": COLUMN}, "compare no texts"),
        ({"method": "k_center", "budget": 2}, "the kind `k_center` is not known"),
        ({"method": "k_centre", "budget": 2, "embedding": {"longest": 1, "shortest": 2}}, "shorter than the shortest"),
    ],
)
def test_steps_that_cannot_be_are_refused(keys, match):
    with pytest.raises(ConfigError, match=match):
        step(**keys)


def test_a_selection_refuses_a_score_that_no_step_computes_and_decontamination_after_it():
    with pytest.raises(ConfigError, match="no score named `quality`"):
        SelectSettings(steps=[{"kind": "diversify", "method": "deita", "score": "quality"}])
    with pytest.raises(ConfigError, match="decontaminated before anything else"):
        SelectSettings(
            steps=[
                {"kind": "diversify", "method": "semdedup"},
                {"kind": "decontaminate", "against": ["embedded"]},
            ]
        )


def test_the_start_model_counts_only_where_its_states_are_taken():
    asks = {"kind": "policy"}
    assert step(method="semdedup", embedding=asks).asks_model
    assert not step(method="semdedup", embedding={"kind": "policy", "model": "embedded"}).asks_model
    assert not step(method="semdedup").asks_model
