"""rds: turns by hand, against a walk that looks at every row each time, and through a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import posttrain as pt
from posttrain.config.embeddings import PolicyEmbedding
from posttrain.config.model_scores import RDSScore
from posttrain.curation.embeddings import embed as module
from posttrain.curation.embeddings.embed import embed
from posttrain.curation.rows import Pool, Rows, Tools
from posttrain.curation.scores import rds
from posttrain.curation.scores.rds import rds_score, round_robin
from posttrain.data.read import read
from posttrain.errors import ConfigError, SourceError
from tests.fixtures import byte_tokenizer, tiny_model


def vectors(*angles: float) -> np.ndarray:
    degrees = np.radians(angles)
    return np.stack([np.cos(degrees), np.sin(degrees)], axis=1).astype(np.float32)


def test_turns_by_hand() -> None:
    # Targets at 0 and 10 degrees, rows at 1, 9, 2 and 90: the first takes 1, the second 9; the first takes 2 next,
    # and the second what is left.
    score = round_robin(vectors(1, 9, 2, 90), vectors(0, 10), np.arange(4))
    assert score.tolist() == [1, 0.75, 0.5, 0.25]


def test_turns_are_those_of_a_walk_that_looks_at_every_row(monkeypatch) -> None:
    monkeypatch.setattr(rds, "_AHEAD", 3)
    draw = np.random.default_rng(0)
    rows, targets = draw.normal(size=(60, 4)), draw.normal(size=(5, 4))
    cosines = targets @ rows.T
    left, order = set(range(60)), []
    for turn in range(60):
        best = max(left, key=lambda row: cosines[turn % 5, row])
        left.remove(best)
        order.append(best)
    score = round_robin(rows, targets, np.arange(60))
    assert np.argsort(-score).tolist() == order


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = byte_tokenizer("CHATML")
    tiny_model("llama", vocab=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def chat(text: str) -> dict[str, Any]:
    return {"prompt": f"About {text}?", "completion": f"{text} is this."}


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def pool(rows: list[dict[str, Any]]) -> Pool:
    return Pool.of(Rows(read(rows, scan=False)))


ROWS = [chat(text) for text in ("rain", "snow", "chess", "0123456789", "tea")]


def test_the_rows_that_are_targets_come_first(model: Path, tmp_path: Path) -> None:
    targets = written(tmp_path / "targets.jsonl", [ROWS[3], ROWS[1]])
    given = Tools(model=model, device="cpu")
    settings = {"kind": "rds", "targets": targets}
    turns = rds_score(RDSScore(**settings), pool(ROWS), given)
    assert turns.score_R[[3, 1]].tolist() == [1, 0.8] and "2 targets" in turns.notes
    best = rds_score(RDSScore(**settings, order="best"), pool(ROWS), given).score_R
    assert best[[3, 1]].tolist() == pytest.approx([1, 1], abs=1e-5) and best[[0, 2, 4]].max() < 1
    mean = rds_score(RDSScore(**settings, order="mean"), pool(ROWS), given).score_R
    embedded = embed(PolicyEmbedding(kind="policy", model=str(model)), pool(ROWS), given).vectors
    assert mean.tolist() == pytest.approx((embedded @ embedded[[1, 3]].T).mean(axis=1).tolist(), abs=1e-5)


def test_a_budget_by_rds_is_the_papers_selection(model: Path, tmp_path: Path) -> None:
    targets = written(tmp_path / "targets.jsonl", [ROWS[3], ROWS[1]])
    steps = [
        {"kind": "score", "score": {"kind": "rds", "targets": targets, "model": str(model)}},
        {"kind": "budget", "rows": 2},
    ]
    assert list(pt.select(ROWS, steps=steps, progress=False).kept) == [ROWS[1], ROWS[3]]


def test_no_targets_and_too_many_are_refused(model: Path, tmp_path: Path, monkeypatch) -> None:
    empty = written(tmp_path / "empty.jsonl", [])
    given = Tools(model=model, device="cpu")
    with pytest.raises(SourceError):
        rds_score(RDSScore(kind="rds", targets=empty), pool(ROWS), given)
    monkeypatch.setattr(rds, "MOST_CELLS", 9)
    with pytest.raises(ConfigError, match="take turns"):
        rds_score(RDSScore(kind="rds", targets=written(tmp_path / "two.jsonl", ROWS[:2])), pool(ROWS), given)


def test_a_kill_costs_one_window_of_vectors(model: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "WINDOW", 2)
    import posttrain.curation.embeddings.policy as policy

    settings, whole = PolicyEmbedding(kind="policy", max_length=30), pool(ROWS)
    expected = embed(settings, whole, Tools(model=model, device="cpu"))
    real, embedded = policy.policy_vectors, []

    def counted(examples: Any, *args: Any, **options: Any) -> Any:
        rows = list(examples)
        if len(embedded) == 4:
            raise KeyboardInterrupt
        embedded.extend(rows)
        return real(rows, *args, **options)

    monkeypatch.setattr(policy, "policy_vectors", counted)
    given = Tools(model=model, device="cpu", cache=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        embed(settings, whole, given)
    embedded.clear()
    again = embed(settings, whole, given)
    assert len(embedded) == 1, "four of five rows were embedded before"
    assert np.allclose(again.vectors, expected.vectors, atol=1e-6)
    assert again.notes == expected.notes and "5 rows are longer than 30 tokens" in again.notes[0]
    assert not list(tmp_path.glob("said-*")), "what the whole file holds lies nowhere twice"
