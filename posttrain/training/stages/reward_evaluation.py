"""A reward stage judges its own model: held-out pairs (or steps) before and after training, probes, findings.

The untrained head is a fresh random one (standard deviation 1 / sqrt(D + 1)) on the backbone that the stage starts
from, whatever head the training begins with: a head at zero ties every pair and has no scores to look at.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations
from types import MappingProxyType

import torch

from posttrain.config import Reward
from posttrain.config.reward_model import Regression
from posttrain.data.encode import Encoder
from posttrain.data.tree_key import make_tree
from posttrain.evaluate.probes import REFUSAL, probe_answers
from posttrain.evaluate.reward import PairScores, evaluate_reward, write_reward_evaluation
from posttrain.evaluate.steps import StepScores, evaluate_steps, write_step_evaluation
from posttrain.models.reward.scoring import Rating, score_trees
from posttrain.models.sharding.shards import overwrite, whole
from posttrain.models.sharding.wrap import reshard
from posttrain.models.tree.heads import HEAD, ScoreModel
from posttrain.parallel.world import world
from posttrain.runs.folder import StageFolder
from posttrain.runs.progress import Progress
from posttrain.training.order import stream_seed
from posttrain.training.work import Work
from posttrain.types import RowRef, TokenTree

MOST_PROBED = 200
"""Held-out rows that are probed; each costs four more responses."""

NO_CATEGORIES: Mapping[RowRef, str] = MappingProxyType({})
Ids = tuple[int, ...]


def untrained_scores(work: Work, categories: Mapping[RowRef, str] = NO_CATEGORIES) -> PairScores | StepScores | None:
    """The held-out pairs or steps under the start's backbone and a random head; None where none are held out.

    Call it before the loop: a resumed loop loads the checkpoint's weights.
    """
    steps = _labelled(work.held_out)
    rows = steps or _pairs(work.held_out)
    if not rows:
        return None
    with _random_head(_policy(work), stream_seed(work.seed, "evaluation")):
        return _step_scores(work, steps) if steps else _scores(work, rows, categories)


def write_evaluation(
    work: Work,
    encoder: Encoder,
    folder: StageFolder,
    *,
    untrained: PairScores | StepScores | None,
    steps: int,
    progress: Progress,
    categories: Mapping[RowRef, str] = NO_CATEGORIES,
) -> None:
    """reward_evaluation.json and reward_scores.jsonl, of labelled steps step_evaluation.json and step_scores.jsonl;
    nothing where no row was held out."""
    labelled = _labelled(work.held_out)
    if labelled:
        assert untrained is None or isinstance(untrained, StepScores)
        return _write_steps(work, folder, labelled, untrained, progress)
    rows = _pairs(work.held_out)
    if not rows:
        return
    assert untrained is None or isinstance(untrained, PairScores)
    with progress.phase(f"{folder.name}: evaluation", total=len(rows), unit="pairs") as phase:
        scores = _scores(work, rows, categories)
        phase.advance(len(rows))
        probes = _probe(work, encoder, rows)
    record = evaluate_reward(
        scores,
        untrained=untrained,
        probes=probes,
        step=steps,
        probabilities=not isinstance(_stage(work).objective, Regression),
    )
    for finding in record.findings:
        progress.say(f"{folder.name}: {finding.message}; {finding.remedy}")
    world().agreed(lambda: write_reward_evaluation(folder.path, record, scores, untrained=untrained))


# ---------------------------------------------------------------- pairs


def _pairs(trees: Sequence[TokenTree]) -> list[TokenTree]:
    """One pair of each held-out row, the better response first.

    Of a ranked list it is one of its pairs, another for each row in turn, so that rows stay independent and near and
    far ranks come equally often; two responses that were scored alike are none.
    """
    pairs = []
    for index in range(len(trees)):
        tree = trees[index]
        choices = [
            (better, worse)
            for better, worse in combinations(range(len(tree.branches)), 2)
            if len(tree.branches) == 2 or tree.scores is None or tree.scores[better] != tree.scores[worse]
        ]
        if choices:
            better, worse = choices[index % len(choices)]
            sides = [tree.branches[better], tree.branches[worse]]
            branches = [(side.ids.tolist(), side.loss_mask.tolist()) for side in sides]
            pairs.append(make_tree(tree.prompt_ids.tolist(), branches, tree.row))
    return pairs


def _scores(work: Work, rows: Sequence[TokenTree], categories: Mapping[RowRef, str]) -> PairScores:
    """With the category that a column gives each row, or else its file where there are several."""
    ratings = _rate(work, rows)
    sources = [tree.row.source for tree in rows]
    kinds: list[str | None] | None = [categories.get(tree.row) for tree in rows] if categories else None
    if kinds is None and len(set(sources)) > 1:
        kinds = [*sources]
    return PairScores.of(
        [rating.rewards[0] for rating in ratings],
        [rating.rewards[1] for rating in ratings],
        [len(tree.branches[0].ids) for tree in rows],
        [len(tree.branches[1].ids) for tree in rows],
        [tree.row for tree in rows],
        kinds,
    )


def _rate(work: Work, trees: Sequence[TokenTree]) -> list[Rating]:
    """Rewards as training compares them: of a head with an output for each file of rows, by the row's own output."""
    policy, rule = _policy(work), _stage(work).rule
    own_output = len(rule.heads) > 1 and not rule.is_ensemble
    heads = [rule.heads[rule.file_of(tree.row)] if own_output else None for tree in trees]
    ratings: dict[int, Rating] = {}
    training = policy.training
    policy.eval()
    try:
        for head in dict.fromkeys(heads):
            places = [place for place, own in enumerate(heads) if own == head]
            rated = score_trees(policy, rule, [trees[i] for i in places], work.tokens_per_microbatch, head=head)
            ratings |= dict(zip(places, rated, strict=True))
    finally:
        policy.train(training)
    return [ratings[place] for place in range(len(trees))]


def _policy(work: Work) -> ScoreModel:
    assert isinstance(work.policy, ScoreModel)
    return work.policy


def _stage(work: Work) -> Reward:
    assert isinstance(work.stage, Reward)  # the only kind that has a model with a head
    return work.stage


# ---------------------------------------------------------------- steps


def _labelled(trees: Sequence[TokenTree]) -> list[TokenTree]:
    return [tree for tree in trees if tree.step_labels is not None]


def _step_scores(work: Work, rows: Sequence[TokenTree]) -> StepScores:
    steps = [rating.steps[0] for rating in _rate(work, rows) if rating.steps is not None]
    return StepScores.of(steps, [tree.step_labels or () for tree in rows], [tree.row for tree in rows])


def _write_steps(
    work: Work, folder: StageFolder, rows: Sequence[TokenTree], untrained: StepScores | None, progress: Progress
) -> None:
    with progress.phase(f"{folder.name}: evaluation", total=len(rows), unit="responses") as phase:
        scores = _step_scores(work, rows)
        phase.advance(len(rows))
    record = evaluate_steps(scores, untrained=untrained)
    figures = record.trained
    progress.say(
        f"{folder.name}: {figures['step_accuracy'].value:.1%} of {record.steps:,} held-out steps judged right, "
        f"the first error found (or that there is none) in {figures['first_error_accuracy'].value:.1%} of "
        f"{record.responses:,} responses"
    )
    world().agreed(lambda: write_step_evaluation(folder.path, record, scores, untrained=untrained))


# ---------------------------------------------------------------- probes


def _probe(work: Work, encoder: Encoder, rows: Sequence[TokenTree]) -> Mapping[str, list[float]]:
    """Rewards of each probe for each row; only the first `MOST_PROBED` rows are asked, and the others are not."""
    asked = rows[:MOST_PROBED]
    answers = [_without_stop(tree, encoder.stop_ids) for tree in asked]
    probes = probe_answers(
        [tuple(tree.prompt_ids.tolist()) for tree in asked],
        [ids for ids, _ in answers],
        empty=(),
        refusal=tuple(encoder.tokens.ids(REFUSAL)),
        between=(),
    )
    ends_only = _stage(work).rule.pooling == "steps"
    longest = encoder.settings.max_length
    rewards = {}
    for name, texts in probes.items():
        trees = [
            make_tree(tree.prompt_ids.tolist(), [_branch((*_fitting(ids, tree, longest), stop), ends_only)], tree.row)
            for tree, ids, (_, stop) in zip(asked, texts, answers, strict=True)
        ]
        rewards[name] = [rating.rewards[0] for rating in _rate(work, trees)]
    return rewards


def _without_stop(tree: TokenTree, stop_ids: frozenset[int]) -> tuple[Ids, int]:
    """The chosen response's ids without its last one, where that stops; and what a probe of this row stops with."""
    ids = tuple(tree.branches[0].ids.tolist())
    return (ids[:-1], ids[-1]) if ids[-1] in stop_ids else (ids, min(stop_ids, default=ids[-1]))


def _fitting(ids: Ids, tree: TokenTree, longest: int | None) -> Ids:
    """Cut where the row would be longer than any row that trains; a stop token has its place after it."""
    return ids if longest is None else ids[: max(0, longest - len(tree.prompt_ids) - 1)]


def _branch(ids: Ids, ends_only: bool) -> tuple[Ids, list[bool]]:
    """A step-wise model scores a probe once, at its end."""
    return ids, [not ends_only] * (len(ids) - 1) + [True]


# ---------------------------------------------------------------- the head before training


@contextmanager
def _random_head(policy: ScoreModel, seed: int) -> Iterator[None]:
    head = policy.transformer.get_submodule(HEAD)
    assert isinstance(head.weight, torch.Tensor)
    reshard(policy.model)  # what a forward has left whole would be overwritten in vain
    kept = whole(head.weight).clone()
    outputs, size = kept.shape
    drawn = torch.randn(outputs, size, generator=torch.Generator().manual_seed(seed % 2**63)) / math.sqrt(size + 1)
    overwrite(head.weight, drawn)
    try:
        yield
    finally:
        reshard(policy.model)
        overwrite(head.weight, kept)
