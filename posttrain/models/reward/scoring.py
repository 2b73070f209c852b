"""Rewards for responses: a loaded reward model, and ensembles of several.

reward = load_reward("runs/mine/reward/model")
reward.score("Who are you?", "I am Pia.")                    # 1.73
for rated in reward.score_rows(read("pairs.jsonl")): ...     # Rating(row, rewards=(1.73, -0.41))

Over the folders of `reward.folders`; `posttrain score`, the reward of kind `model` in RL and evaluations all score
through `RewardModel`, so a response has one reward everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from posttrain.arguments import checked_instance, checked_whole
from posttrain.data.encoder_settings import EncoderSettings
from posttrain.data.given import Conversation, as_examples, as_messages
from posttrain.data.micro import alike, planned
from posttrain.data.reward_encode import Rated, RewardEncoder
from posttrain.data.trees import collate, to_device
from posttrain.errors import ConfigError, DataError
from posttrain.losses.reward import response_tokens
from posttrain.losses.reward_rule import Combine, RewardRule, combine
from posttrain.models.folders.hub import Say
from posttrain.models.folders.own_code import ModelCode, folder_code
from posttrain.models.reward.folders import RewardFolder, load_reward_folder
from posttrain.models.tree.heads import ScoreModel
from posttrain.outputs import Scores
from posttrain.parallel.world import world
from posttrain.types import Comparison, Demonstration, Example, Feedback, Message, RowRef, StepwiseFeedback, TokenTree

TOKENS_PER_MICROBATCH = 4096
WINDOW = 256
"""Rows that are packed together: enough to fill micro-batches well, few enough to hold in memory."""


@dataclass(frozen=True, slots=True)
class Rating:
    """Rating(RowRef("pairs.jsonl", 1), rewards=(1.73, -0.41)); one reward per response, in the row's order."""

    row: RowRef
    rewards: tuple[float, ...]
    tokens: tuple[int, ...]
    steps: tuple[tuple[float, ...], ...] | None = None
    """Of a step-wise model: the score of each step of each response."""


class RewardModel:
    """A reward model that answers: RewardModel(load_reward_folder("runs/mine/reward/model")).

    Prompts and responses go through the one encoder, with the folder's own template.

    Args:
        path: `tree` shares a prompt's tokens among its responses; `padded` is the plain way.
    """

    def __init__(self, folder: RewardFolder, *, path: str = "tree", tokens_per_microbatch: int = TOKENS_PER_MICROBATCH):
        checked_instance(
            "folder",
            folder,
            RewardFolder,
            expected="a reward model's folder that was loaded",
            remedy="write `pt.load_reward(PATH)`, which gives a RewardModel",
        )
        checked_whole("tokens_per_microbatch", tokens_per_microbatch, least=1, example=TOKENS_PER_MICROBATCH)
        self.folder = folder
        self.rule = folder.rule
        self.model = ScoreModel.of(folder.loaded.model, folder.rule, path=path)
        config = folder.loaded.model.config.get_text_config()
        positions = getattr(config, "max_position_embeddings", None)  # absent in a few architectures
        # "drop" makes a row that is too long an error of `rated`: a response cut before its end would be scored at a
        # token that no training row ended on.
        settings: EncoderSettings = replace(folder.encoding, max_length=positions, truncation="drop")
        self.encoder = RewardEncoder(folder.loaded.tokenizer, settings, folder.rule)
        self.tokens_per_microbatch = tokens_per_microbatch

    @property
    def name(self) -> str:
        return self.folder.loaded.source.name

    def score(
        self,
        prompt: Conversation,
        response: Conversation,
        *,
        head: str | None = None,
        normalised: bool = False,
    ) -> float:
        """The reward of one response, a finished one: scored at the end of its turn.

        Args:
            prompt: a user's text, or the messages before the response, as `Message`s or objects.
            response: the assistant's text, or its messages.
            head: an attribute, group, condition or ensemble member by name, in place of the mix.
            normalised: with the scale and shift that were stored with the model.

        Raises:
            ConfigError: no such head, or no normalisation; a conditional model was not told by which condition.
        """
        answer = (Message("assistant", response),) if isinstance(response, str) else as_messages(response)
        rated = Rated(as_messages(prompt), (answer,), RowRef("prompt", 1))
        return self._rate([rated], head, normalised)[0].rewards[0]

    def score_rows(
        self,
        examples: Iterable[Example] | Any,
        *,
        head: str | None = None,
        normalised: bool = False,
        progress: Callable[[int, int], None] = lambda rows, tokens: None,
    ) -> Iterator[Rating]:
        """The rewards of every row's responses, in the rows' order; nothing is held but a window of rows.

        Args:
            examples: comparisons (all responses), feedback (one, in steps or not), demonstrations
                (the last answer); or whatever `read` takes: rows, tables, paths.
            progress: called with the rows and tokens of each window.

        Raises:
            DataError: a row has no response, or one that is too long.
        """
        return self._ratings(iter(as_examples(examples)), head, normalised, progress)

    def _ratings(
        self, rows: Iterator[Example], head: str | None, normalised: bool, progress: Callable[[int, int], None]
    ) -> Iterator[Rating]:
        while window := list(islice(rows, WINDOW)):
            ratings = self._rate([scored_part(example) for example in window], head, normalised)
            progress(len(window), sum(sum(rating.tokens) for rating in ratings))
            yield from ratings

    @torch.no_grad()
    def _rate(self, rows: Sequence[Rated], head: str | None, normalised: bool) -> list[Rating]:
        condition = self.condition(head)
        trees = [self.encoder.rated(row, condition) for row in rows]
        flat = [tree for row_trees in trees for tree in row_trees]
        scored = score_trees(self.model, self.rule, flat, self.tokens_per_microbatch, head=head, normalised=normalised)

        # A rule that scores whole rows has a tree for each response; a row's rating is of all its trees.
        per_tree = iter(scored)
        ratings = []
        for row, row_trees in zip(rows, trees, strict=True):
            parts = list(islice(per_tree, len(row_trees)))
            ratings.append(
                Rating(
                    row.row,
                    tuple(reward for part in parts for reward in part.rewards),
                    tuple(tokens for part in parts for tokens in part.tokens),
                    tuple(step for part in parts for step in part.steps or ()) or None,
                )
            )
        return ratings

    def condition(self, head: str | None) -> str | None:
        """The condition that a conditional model judges by; None for all others. Raises ConfigError: none was named."""
        if head is not None:
            self.rule.index(head)
        if self.rule.conditions and head is None:
            raise ConfigError(
                "the reward model judges by a condition, and none was named",
                where=self.name,
                expected=f"one of {', '.join(self.rule.conditions)}",
                remedy=f"name one: `--head {self.rule.conditions[0]}`, or `head={self.rule.conditions[0]!r}`",
            )
        return head


@torch.no_grad()
def score_trees(
    model: ScoreModel,
    rule: RewardRule,
    trees: Sequence[TokenTree],
    tokens_per_microbatch: int = TOKENS_PER_MICROBATCH,
    *,
    head: str | None = None,
    normalised: bool = False,
) -> list[Rating]:
    """The rewards of encoded trees, in their order, with a reward per branch; on every rank, each scoring its share."""
    ratings: dict[int, Rating] = {}
    with alike(model.is_sharded, "scoring"):
        for micro in planned(trees, tokens_per_microbatch, is_sharded=model.is_sharded):
            rated = _rated(model, rule, [trees[index] for index in micro.members], head=head, normalised=normalised)
            ratings |= {} if micro.idle else dict(zip(micro.members, rated, strict=True))
    found: dict[int, Rating] = {}
    for own in world().gather(ratings):
        found |= own
    return [found[index] for index in range(len(trees))]


def _rated(
    model: ScoreModel, rule: RewardRule, trees: Sequence[TokenTree], *, head: str | None, normalised: bool
) -> list[Rating]:
    """Of one micro-batch."""
    batch = to_device(collate(trees), model.device)
    scores = model(batch)
    tokens_B = response_tokens(batch).to(scores.scores_BH)
    rewards_B = rule.rewards(scores.scores_BH, tokens_B, head=head, normalised=normalised).tolist()
    ratings, first = [], 0
    for tree in trees:
        last = first + len(tree.branches)
        lengths = tuple(len(branch.ids) for branch in tree.branches)
        ratings.append(Rating(tree.row, tuple(rewards_B[first:last]), lengths, _steps(scores, range(first, last))))
        first = last
    return ratings


def _steps(scores: Scores, branches: range) -> tuple[tuple[float, ...], ...] | None:
    if scores.steps_SH is None or scores.branch_S is None:
        return None
    return tuple(tuple(scores.steps_SH[scores.branch_S == branch, 0].tolist()) for branch in branches)


def load_reward(
    name_or_path: str | Path,
    *,
    head: str | None = None,
    dtype: str | torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    model_code: ModelCode | None = None,
    say: Say | None = None,
) -> RewardModel:
    """A reward model by folder or hub id: one of ours, or any decoder saved as `...ForSequenceClassification`.

    Args:
        head: which output of a foreign model with several is the reward.
        model_code: "run" runs the Python files that the folder brings (`auto_map`) with your rights; None is what
            the recipe around says, else "refuse", which names them in an error.

    Raises:
        ModelError: nothing has this name, or it is no reward model.
        ConfigError: a foreign model has several outputs and none was named.
    """
    with folder_code(model_code):
        return RewardModel(load_reward_folder(name_or_path, head=head, dtype=dtype, device=device, say=say))


def ensemble_rating(ratings: Sequence[Rating], how: Combine, std_weight: float = 1.0) -> Rating:
    """One row's ratings by the members of an ensemble as one: ensemble_rating([a, b], "worst")."""
    # In fp64: the spread of members that nearly agree is a difference of nearly equal numbers.
    rewards = torch.tensor([rating.rewards for rating in ratings], dtype=torch.float64).T
    return replace(ratings[0], rewards=tuple(combine(rewards, how, std_weight).tolist()), steps=None)


def scored_part(example: Example) -> Rated:
    """The prompt and the responses of a row that are scored.

    Raises:
        DataError: the row has no response.
    """
    if isinstance(example, Comparison):
        return Rated(example.prompt, example.responses, example.row, example.tools)
    if isinstance(example, Feedback):
        return Rated(example.prompt, (example.response,), example.row, example.tools)
    if isinstance(example, StepwiseFeedback):
        whole = Message("assistant", "\n".join(example.steps))
        return Rated(example.prompt, ((whole,),), example.row, example.tools, example.steps)
    if isinstance(example, Demonstration):
        turns = example.messages
        last = max((i for i, turn in enumerate(turns) if turn.role == "assistant"), default=-1)
        if last > 0:
            return Rated(turns[:last], (turns[last : last + 1],), example.row, example.tools)
    raise DataError(
        "the row has no response to score",
        where=example.row,
        expected="a pair, a ranked list, a response with a label, or a conversation with an answer",
        remedy="add the responses: `posttrain generate MODEL --prompts FILE --out FILE` writes some",
    )
