"""A reward stage judges its own model: the scores are the model's, the start is left as it was, lists become pairs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from posttrain.config import Reward
from posttrain.data.encode import Encoder
from posttrain.data.tree_key import make_tree
from posttrain.data.trees import collate
from posttrain.models.tree.heads import ScoreModel, with_head
from posttrain.runs.files import read_json, read_jsonl
from posttrain.runs.folder import StageFolder
from posttrain.runs.progress import Progress
from posttrain.training.objectives import objective_of
from posttrain.training.stages.reward_evaluation import untrained_scores, write_evaluation
from posttrain.training.work import Work
from posttrain.types import RowRef, TokenTree
from tests.fixtures import byte_tokenizer, tiny_model
from tests.training import weights_of

TOKENIZER = byte_tokenizer("CHATML")
ENCODER = Encoder(TOKENIZER)
STOP = min(ENCODER.stop_ids)


def tree(row: int, *lengths: int, source: str = "pairs.jsonl") -> TokenTree:
    stream = np.random.default_rng(row)
    branches = [([*stream.integers(5, 90, length - 1).tolist(), STOP], [True] * length) for length in lengths]
    return make_tree(stream.integers(5, 90, 4).tolist(), branches, RowRef(source, row))


def reward_work(held_out: list[TokenTree], **options: Any) -> Work:
    stage = Reward(data="pairs.jsonl", **options)
    model = with_head(tiny_model("llama", vocab=len(TOKENIZER)), stage.rule.heads, init="normal", seed=1)
    return Work(
        stage=stage,
        algorithm=objective_of(stage),
        policy=ScoreModel.of(model, stage.rule),
        reference=None,
        rows=held_out,
        held_out=held_out,
        decoder=ENCODER,
        tokens_per_microbatch=40,
        memory=None,
        seed=0,
        identity="the same",
    )


def written(work: Work, folder: Path) -> tuple[dict, list[dict]]:
    untrained = untrained_scores(work)
    stage = StageFolder(folder)
    folder.mkdir(exist_ok=True)
    write_evaluation(work, ENCODER, stage, untrained=untrained, steps=9, progress=Progress())
    return read_json(folder / "reward_evaluation.json"), read_jsonl(folder / "reward_scores.jsonl")


def test_the_scores_are_the_models_and_nothing_moves(tmp_path: Path) -> None:
    held_out = [tree(row, 3 + row % 4, 5) for row in range(1, 9)]
    work = reward_work(held_out)
    work.policy.train()
    before = weights_of(work)
    record, lines = written(work, tmp_path / "reward")
    assert work.policy.training
    assert all(torch.equal(before[name], now) for name, now in weights_of(work).items())
    work.policy.eval()
    for one, line in zip(held_out, lines, strict=True):
        scores = work.policy(collate([one]), path="padded").scores_BH[:, 0].tolist()
        assert [line["chosen"], line["rejected"]] == pytest.approx(scores, abs=1e-5)
        assert (line["tokens_chosen"], line["tokens_rejected"]) == tuple(len(branch.ids) for branch in one.branches)
        assert line["untrained_chosen"] != line["chosen"], "another head"
    assert record["pairs"] == 8
    assert set(record["probes"]) == {"empty", "repeated", "off_topic", "refusal"}
    assert all(finding["step"] == 9 for finding in record["findings"])


def test_probes_are_scored_as_rows_of_their_own(tmp_path: Path) -> None:
    """The empty answer is the stop token alone, the off-topic one another row's chosen side."""
    held_out = [tree(row, 4, 6) for row in (1, 2)]
    work = reward_work(held_out)
    record, _ = written(work, tmp_path / "reward")
    work.policy.eval()

    def mean(*branches: list[int]) -> float:
        rows = [
            make_tree(one.prompt_ids.tolist(), [(ids, [True] * len(ids))], one.row)
            for one, ids in zip(held_out, branches, strict=True)
        ]
        return float(work.policy(collate(rows), path="padded").scores_BH.mean().detach())

    first, second = (one.branches[0].ids.tolist() for one in held_out)
    assert record["probes"]["empty"]["mean"]["value"] == pytest.approx(mean([STOP], [STOP]), abs=1e-5)
    assert record["probes"]["off_topic"]["mean"]["value"] == pytest.approx(mean(second, first), abs=1e-5)
    repeated = [[*ids[:-1] * 3, STOP] for ids in (first, second)]
    assert record["probes"]["repeated"]["mean"]["value"] == pytest.approx(mean(*repeated), abs=1e-5)


def test_a_head_at_zero_is_found_and_its_untrained_twin_is_random(tmp_path: Path) -> None:
    work = reward_work([tree(row, 3, 5) for row in range(1, 9)])
    with torch.no_grad():
        work.policy.transformer.score.weight.zero_()
    record, lines = written(work, tmp_path / "reward")
    assert [finding["name"] for finding in record["findings"]] == ["reward_collapse"]
    assert record["trained"]["ties"]["value"] == 1.0
    assert record["untrained"]["ties"]["value"] == 0.0
    assert len({line["untrained_chosen"] for line in lines}) == 8


def test_a_column_tells_the_category_of_a_row(tmp_path: Path) -> None:
    held_out = [tree(row, 3, 5) for row in range(1, 13)]
    work = reward_work(held_out)
    kinds = {one.row: "maths" if one.row.row % 2 else "prose" for one in held_out[:-1]}
    stage = StageFolder(tmp_path / "reward")
    stage.path.mkdir()
    untrained = untrained_scores(work, kinds)
    write_evaluation(work, ENCODER, stage, untrained=untrained, steps=1, progress=Progress(), categories=kinds)
    record, lines = (read_json(stage.path / "reward_evaluation.json"), read_jsonl(stage.path / "reward_scores.jsonl"))
    assert [(one["label"], one["accuracy"]["n"]) for one in record["by_category"]] == [("maths", 6), ("prose", 5)]
    assert [line["category"] for line in lines][-3:] == ["prose", "maths", None]


def test_a_ranked_list_gives_one_pair_and_each_row_another(tmp_path: Path) -> None:
    """Responses of 2, 3, 4 tokens, best first: the rows take the pairs (0, 1), (0, 2), (1, 2) in turn."""
    _, lines = written(reward_work([tree(row, 2, 3, 4) for row in range(1, 5)]), tmp_path / "reward")
    assert [(line["tokens_chosen"], line["tokens_rejected"]) for line in lines] == [(2, 3), (2, 4), (3, 4), (2, 3)]


def test_responses_that_were_scored_alike_are_no_held_out_pair(tmp_path: Path) -> None:
    """Of scores (3, 1, 1) the pairs (0, 1) and (0, 2) are left; a pair of equal scores was kept on purpose."""
    held_out = [replace(tree(row, 2, 3, 4), scores=(3.0, 1.0, 1.0)) for row in range(1, 5)]
    held_out += [replace(tree(5, 2, 3), scores=(1.0, 1.0)), replace(tree(6, 2, 3, 4), scores=(1.0, 1.0, 1.0))]
    _, lines = written(reward_work(held_out), tmp_path / "reward")
    sides = [(line["tokens_chosen"], line["tokens_rejected"]) for line in lines]
    assert sides == [(2, 3), (2, 4), (2, 3), (2, 4), (2, 3)]


def test_files_are_categories_only_where_there_are_several(tmp_path: Path) -> None:
    mixed = [tree(row, 3, 4, source=f"{'ab'[row % 2]}.jsonl") for row in range(1, 11)]
    record, lines = written(reward_work(mixed), tmp_path / "mixed")
    assert {line["category"] for line in lines} == {"a.jsonl", "b.jsonl"}
    assert [line["label"] for line in record["by_category"]] == ["a.jsonl", "b.jsonl"]
    record, _ = written(reward_work([tree(row, 3, 4) for row in range(1, 11)]), tmp_path / "one")
    assert record["by_category"] == []


def test_each_row_is_scored_by_its_own_output(tmp_path: Path) -> None:
    rows = [tree(row, 3, 4, source=f"{'ab'[row % 2]}.jsonl") for row in range(1, 7)]
    files = {"helpful": "a.jsonl", "harmless": "b.jsonl"}
    work = reward_work(rows, head={"kind": "attributes", "files": files, "weights": {"helpful": 2.0, "harmless": 5.0}})
    _, lines = written(work, tmp_path / "reward")
    work.policy.eval()
    for one, line in zip(rows, lines, strict=True):
        column = 0 if one.row.source == "a.jsonl" else 1
        scores = work.policy(collate([one]), path="padded").scores_BH[:, column].tolist()
        assert [line["chosen"], line["rejected"]] == pytest.approx(scores, abs=1e-5)


def test_without_held_out_pairs_nothing_is_written(tmp_path: Path) -> None:
    work = reward_work([])
    assert untrained_scores(work) is None
    write_evaluation(work, ENCODER, StageFolder(tmp_path), untrained=None, steps=1, progress=Progress())
    assert list(tmp_path.iterdir()) == []
