"""The score `reward_model`: what a trained reward model says of a row's answer, or how far the best one is ahead.

best      r(x, y)                               of a conversation's last answer; of a comparison's best response
margin    r(x, y_best) - max over others r(x, y)
"""

from __future__ import annotations

import numpy as np

from posttrain.config.model_scores import RewardModelScore
from posttrain.curation.rows import Pool, Tools
from posttrain.curation.said import Said
from posttrain.curation.scores.asked import answered, windows
from posttrain.curation.scores.scored import Scored
from posttrain.data.formats.table import KIND_NAMES
from posttrain.errors import ConfigError, RowError
from posttrain.models.devices import device_of
from posttrain.models.folders.named import fingerprint_of
from posttrain.models.reward.scoring import RewardModel, load_reward, score_trees
from posttrain.types import Comparison, Task, TokenTree

NO_ANSWER = "the row has no prompt with an answer"


def reward_model_score(settings: RewardModelScore, pool: Pool, tools: Tools) -> Scored:
    """Responses of one row share its prompt's tokens; equal rows are scored once.

    Raises:
        ConfigError: a margin of rows that are no comparisons, a reward model of steps, a head that it does not have.
        ModelError: the folder holds no reward model.
        EncodingError: a row cannot be encoded for this model; it names the row.
    """
    if settings.of == "margin" and pool.rows.kind is not Comparison:
        raise ConfigError(
            "only comparisons have a margin between their responses",
            where=f"score {settings.label}",
            found=KIND_NAMES[pool.rows.kind],
            expected="of: best",
            remedy="write `of: best`",
        )
    if settings.model is None:  # a recipe puts the stage's folder in its place before
        raise ConfigError(
            "a stage is known in its recipe alone",
            where=f"score {settings.label}",
            found=f"stage: {settings.stage}",
            expected="the folder of a reward model",
            example="score: {kind: reward_model, model: runs/quickstart/reward/model}",
            remedy="give the folder that the stage has written",
        )
    reward = load_reward(settings.model, device=device_of(tools.device), say=tools.progress.say)
    if reward.rule.pooling == "steps":
        raise ConfigError(
            "this reward model scores steps, and a selection asks for whole answers",
            where=reward.name,
            remedy="name a reward model of whole answers",
        )
    condition = reward.condition(settings.head)
    key = f"rewards 1 {fingerprint_of(settings.model)} {reward.encoder.version} {settings.head} {reward.rule}"
    score_R = np.full(len(pool.rows), np.nan)
    missing: dict[int, str] = {}
    with (
        Said(tools.cache, key) as said,
        tools.progress.phase(f"score {settings.label}", total=len(pool), unit="rows") as phase,
    ):
        for window in windows(pool):
            trees: dict[int, list[TokenTree]] = {}
            for row, example in window:
                part = None if isinstance(example, Task) else answered(example)
                if part is None:
                    missing[row] = NO_ANSWER
                    continue
                try:
                    trees[row] = reward.encoder.rated(part, condition)
                except RowError as error:
                    missing[row] = f"the row cannot be scored: {error.reason}"
            tokens = _compute(reward, [tree for own in trees.values() for tree in own], said, settings.head)
            for row, own in trees.items():
                # The best response is the first (`answered`).
                rewards = [float(reward_) for tree in own for reward_ in _read(said, tree)]
                score_R[row] = rewards[0] - max(rewards[1:]) if settings.of == "margin" else rewards[0]
            phase.advance(len(window), tokens=tokens)
    return Scored(score_R, missing)


def _compute(reward: RewardModel, trees: list[TokenTree], said: Said, head: str | None) -> int:
    new = list({tree.key: tree for tree in trees if said.get(tree.key) is None}.values())
    ratings = score_trees(reward.model, reward.rule, new, reward.tokens_per_microbatch, head=head)
    for tree, rating in zip(new, ratings, strict=True):
        said.put(tree.key, rating.rewards)
    return sum(tree.num_tokens for tree in new)


def _read(said: Said, tree: TokenTree) -> np.ndarray:
    found = said.get(tree.key)
    assert found is not None  # computed with its window
    return found
