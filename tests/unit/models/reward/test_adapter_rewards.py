"""A reward model over each kind of adapter: it trains, its scores survive saving, and plain tools give them too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from posttrain.config.stages import Reward
from posttrain.errors import ConfigError
from posttrain.losses.reward_rule import RewardRule
from posttrain.models.folders import readback
from posttrain.models.folders.loading import load
from posttrain.models.folders.quiet import quiet
from posttrain.models.reward.export import scores_in_memory
from posttrain.models.reward.folders import start_reward
from posttrain.models.tree.heads import ScoreModel
from posttrain.training.objectives import objective_of
from tests.adapters import EVERY, save_alone
from tests.fixtures import byte_tokenizer, tiny_model
from tests.training import run_loop, work_of

TOKENIZER = byte_tokenizer("CHATML")
KINDS = [kind for kind in EVERY if EVERY[kind].kind not in ("prompt", "p_tuning")]
ROWS = [[3, 5, 8, 9], [4, 6, 60, 7, 11, 13, 2], [9, 8]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_model(vocab=len(TOKENIZER)).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


def trained(kind: str, base: Path, folder: Path) -> Any:
    started = start_reward(load(base), RewardRule(), init="normal", adapter=EVERY[kind])
    adapter = EVERY[kind]
    stage = Reward(adapter=adapter, learning_rate=1e-2, rows_per_step=4, steps=5, log={"samples_every": None})
    work = work_of("dpo", tokens_per_microbatch=400)
    policy = ScoreModel(started.model)
    objective = objective_of(stage)
    run_loop(
        replace(work, stage=stage, algorithm=objective, policy=policy, reference=None, adapter=EVERY[kind]), folder
    )
    return started


@pytest.mark.parametrize("kind", KINDS)
def test_a_recipe_takes_every_kind_that_trains(kind: str) -> None:
    stage = Reward(adapter=EVERY[kind])
    assert stage.adapter == EVERY[kind]
    assert stage.exports_adapter is not EVERY[kind].MERGES, "what cannot be folded is written alone"


@pytest.mark.parametrize("kind", KINDS)
def test_scores_survive_saving(kind: str, base: Path, tmp_path: Path) -> None:
    before = scores_in_memory(start_reward(load(base), RewardRule(), init="normal", adapter=EVERY[kind]).model, ROWS)
    started = trained(kind, base, tmp_path / "run")
    scores = scores_in_memory(started.model, ROWS)
    assert np.abs(scores - before).max() > 1e-3
    folder = save_alone(started.model, tmp_path / "reward", base, started.tokenizer)
    with quiet():
        plain = readback.load_plain_reward(str(folder), torch.float32, 1)
    pad = started.tokenizer.pad_token_id
    np.testing.assert_allclose(readback.row_scores(plain, ROWS, pad), scores, atol=1e-5)


@pytest.mark.parametrize(
    ("adapter", "words"),
    [
        ("prompt", "the last column of a padded row"),
        ("p_tuning", "the last column of a padded row"),
        ("qlora", "is not quantised"),
        ("continue", "no adapter of a reward model to go on with"),
    ],
)
def test_what_a_reward_model_cannot_have_is_refused_with_the_recipe(adapter: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Reward(adapter=adapter)
