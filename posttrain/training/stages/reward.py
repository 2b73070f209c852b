"""Reward models: rows as for a policy, a head in the place of the vocabulary, and figures of their own at the end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from posttrain.config import Reward
from posttrain.config.reward_model import Affine, BradleyTerry, Regression, StepLabels, Whiten
from posttrain.data.encoder_settings import EncoderSettings
from posttrain.data.reward_encode import Needs, RewardEncoder
from posttrain.data.row_columns import categories_of
from posttrain.data.trees import collate, count, to_device
from posttrain.evaluate.reward import PairScores
from posttrain.evaluate.steps import StepScores
from posttrain.losses.reward import branches_per_tree, fit_normalisation
from posttrain.losses.reward_rule import RewardRule
from posttrain.models.folders.export import ExportSettings, PendingSave
from posttrain.models.folders.export_shared import SharedSave
from posttrain.models.folders.fingerprint import backbone_fingerprint
from posttrain.models.folders.loading import LoadedModel, load, needs_whole_weights, resolve, with_tokens
from posttrain.models.reward.export import begin_save_reward
from posttrain.models.reward.folders import is_reward_folder, load_reward_folder, start_reward
from posttrain.models.reward.scoring import score_trees
from posttrain.models.sharding.wrap import park
from posttrain.models.tree.heads import ScoreModel
from posttrain.models.tree.model import TreeModel
from posttrain.runs.progress import Progress
from posttrain.training.checks import of_rows
from posttrain.training.checks.preflight import Check, probes
from posttrain.training.objectives import Algorithm, objective_of
from posttrain.training.order import stream_seed
from posttrain.training.stages import reward_evaluation
from posttrain.training.stages.kind import (
    Finished,
    Learning,
    NotSaved,
    Prepared,
    Proven,
    StageContext,
    Subject,
    TrainingKind,
)
from posttrain.training.stages.policy import autocast_of, export_settings, spread_of
from posttrain.training.stages.reading import RowInputs, read_rows
from posttrain.training.stages.rows import keeps_dropout, row_objective, row_source, with_steps
from posttrain.training.stages.starts import Start
from posttrain.training.work import Work
from posttrain.types import TokenTree

START_ERROR = 1e-6
"""Allowed distance of the first loss from its exact value, in nats."""


def reward_inputs(ctx: StageContext[Reward], start: Start) -> RowInputs:
    stage = ctx.stage
    with ctx.doing("reading the rows"):
        inputs = read_rows(
            ctx,
            start,
            objective_of(stage),
            partial(encoder_of, stage),
            lambda examples: categories_of(examples, stage.category),
        )
    return with_steps(ctx, inputs)


def reward_policy(ctx: StageContext[Reward], inputs: RowInputs, device: torch.device) -> tuple[LoadedModel, TreeModel]:
    stage = ctx.stage
    assert isinstance(inputs.encoder, RewardEncoder)
    loaded = load_start(stage, ctx.start, inputs.encoder, device, ctx.seed, ctx.progress)
    return loaded, ScoreModel.of(
        loaded.model,
        rule=stage.rule,
        autocast=autocast_of(stage.compute.precision, device),
        dropout=keeps_dropout(ctx, inputs, loaded),
        activation_checkpointing=stage.compute.activation_checkpointing,
        offload_activations=stage.compute.offload_activations,
        sharding=loaded.sharding,
    )


def reward_checks(ctx: StageContext[Reward], subject: Subject[RowInputs, Learning]) -> Proven:
    return of_rows.prove(ctx, subject, check_start)


def measure_untrained(ctx: StageContext[Reward], prepared: Prepared[RowInputs]) -> PairScores | StepScores | None:
    """The held-out rows under a head that has learned nothing, which the trained one is compared with."""
    return reward_evaluation.untrained_scores(prepared.work, prepared.inputs.categories)


def finish_reward(
    ctx: StageContext[Reward],
    prepared: Prepared[RowInputs],
    untrained: PairScores | StepScores | None,
    steps: int,
) -> Finished:
    work, encoder = prepared.work, prepared.inputs.encoder
    assert isinstance(encoder, RewardEncoder)
    reward_evaluation.write_evaluation(
        work,
        encoder,
        ctx.folder,
        untrained=untrained,
        steps=steps,
        progress=ctx.progress,
        categories=prepared.inputs.categories,
    )
    # A policy that was given in Python stays what it was: the head stands on a copy, so its speech is not set here.
    settings = export_settings(ctx, prepared, steps)
    if not ctx.stage.keeps_output:
        return Finished(NotSaved(ctx.folder.name))
    with ctx.progress.phase(f"{ctx.folder.name}: saving and reading back", unit="files"):
        return Finished(begin_export(ctx.stage, work, prepared.loaded, encoder, ctx.folder.model, settings))


REWARD: TrainingKind[Reward, RowInputs, Learning] = TrainingKind(
    outputs=Reward.OUTPUTS,
    inputs=reward_inputs,
    policy=reward_policy,
    objective=row_objective,
    checks=reward_checks,
    source=row_source,
    measure_start=measure_untrained,
    finish=finish_reward,
)


# ---------------------------------------------------------------- the objective, the encoder, the start


def encoder_of(stage: Reward, tokenizer: Any, settings: EncoderSettings) -> RewardEncoder:
    """The stage's encoder, which refuses rows without what the objective needs."""
    needs: Needs = "order"
    if isinstance(stage.objective, Regression):
        needs = "scores"
    elif isinstance(stage.objective, StepLabels):
        needs = "steps"
    elif isinstance(stage.objective, BradleyTerry) and stage.objective.margin_scale:
        needs = "margins"
    return RewardEncoder(tokenizer, settings, stage.rule, needs)


def load_start(
    stage: Reward,
    start: str | Path | LoadedModel,
    encoder: RewardEncoder,
    device: torch.device,
    seed: int,
    progress: Progress,
) -> LoadedModel:
    """The start's backbone under a fresh head, or the reward model that the start is; in parts where ranks share it.

    A model that was loaded in Python is copied: the policy that it is stays as it was.
    """
    sharding = spread_of(stage, device, progress)
    # Head and adapter are put on here, so that what they read of the weights has to be whole until then.
    slices = None if stage.tokens or needs_whole_weights(stage.adapter) else sharding
    if isinstance(start, LoadedModel):
        loaded = start
    elif is_reward_folder(resolve(start)):
        saved = load_reward_folder(start, head=stage.rule.heads[0], say=progress.say, sharding=slices)
        loaded = with_tokens(saved.loaded, stage.tokens)
    else:
        loaded = load(start, tokens=stage.tokens, device=device, say=progress.say, sharding=slices)
    for notice in loaded.notices:
        progress.say(notice)
    if loaded.sharding is None:
        loaded.model.to(device)
    headed = start_reward(
        loaded,
        stage.rule,
        init=stage.head.init,
        adapter=stage.adapter,
        stop_ids={*encoder.stop_ids, *encoder.end_ids},
        seed=stream_seed(seed, "adapter"),
        in_place=not isinstance(start, LoadedModel),
    )
    headed.sharding = sharding
    if sharding is not None:
        park(headed.model, sharding)
    return headed


@torch.no_grad()
def check_start(model: TreeModel, algorithm: Algorithm, rows: Sequence[TokenTree]) -> Check:
    """Where the loss begins: with a head at zero, all rewards are 0 and the loss is exactly what chance gives."""
    assert isinstance(model, ScoreModel)
    trees = probes(rows)
    batch = to_device(collate(trees), model.device)
    scores = model(batch)
    loss = float(algorithm.loss(scores, None, batch, count(trees)).loss)
    # A product of steps is not 0 where their scores are.
    own = scores.steps_SH if algorithm.unit == "steps" and scores.steps_SH is not None else scores.scores_BH
    largest = float(own.abs().max())
    title = "start of the reward model"
    evidence = {"loss": loss, "largest_score": largest}
    # Only a fresh head is at zero; a reward model that goes on training begins elsewhere.
    exact = _loss_at_zero(algorithm, batch)
    if largest > 0 or exact is None:
        return Check("identity", title, "pass", f"loss {loss:.6f}, scores up to {largest:.2g}", evidence)
    evidence["expected_loss"] = exact
    passes = abs(loss - exact) <= START_ERROR * max(1.0, exact)
    remedy = None if passes else "this is a fault of the loss or the batch: please report it"
    detail = f"all scores 0, loss {loss:.6f} (expected {exact:.6f})"
    return Check("identity", title, "pass" if passes else "fail", detail, evidence, remedy)


def _loss_at_zero(algorithm: Algorithm, batch: Any) -> float | None:
    """The loss while every score is 0; None where it depends on the rows' annotations."""
    if algorithm.unit == "steps":
        return math.log(2)
    return _loss_of_equal_rewards(algorithm.parameters, batch) if "label_smoothing" in algorithm.parameters else None


def _loss_of_equal_rewards(parameters: Mapping[str, float], batch: Any) -> float:
    """ln 2, or with margins the mean of -log sigma(-m), smoothed."""
    scale, smoothing = parameters["margin_scale"], parameters["label_smoothing"]
    sizes = branches_per_tree(batch)
    margins = [0.0] * len(sizes) if batch.margin_P is None else batch.margin_P.tolist()

    def loss(margin: float) -> float:
        flipped = math.log1p(math.exp(-scale * margin))
        return (1 - smoothing) * (flipped + scale * margin) + smoothing * flipped

    return sum(map(loss, margins)) / len(margins)


# ---------------------------------------------------------------- the export


def begin_export(
    stage: Reward, work: Work, loaded: LoadedModel, encoder: RewardEncoder, folder: Path, settings: ExportSettings
) -> SharedSave | PendingSave:
    """Normalise on the held-out rows if the stage says so, and save.

    Raises:
        ConfigError: whitening, and the held-out rewards are all the same.
        ExportError: as for any save.
    """
    assert isinstance(work.policy, ScoreModel)
    rewards = [
        reward
        for start in range(0, len(work.held_out), stage.rows_per_step)
        for rating in score_trees(
            work.policy,
            stage.rule,
            [work.held_out[i] for i in range(start, min(start + stage.rows_per_step, len(work.held_out)))],
            work.tokens_per_microbatch,
        )
        for reward in rating.rewards
    ]
    info = {**settings.info, "backbone": backbone_fingerprint(loaded.model)}
    return begin_save_reward(
        loaded,
        folder,
        replace(settings, info=info),
        rule=normalised_rule(stage, rewards),
        encoding=encoder.given,
        statistics=statistics_of(rewards),
    )


def normalised_rule(stage: Reward, rewards: list[float]) -> RewardRule:
    """The stage's rule with the scale and shift that it asks for."""
    normalise = stage.normalise
    if isinstance(normalise, Whiten):
        scale, shift = fit_normalisation(rewards)
    elif isinstance(normalise, Affine):
        scale, shift = normalise.scale, normalise.shift
    else:
        return stage.rule
    return replace(stage.rule, scale=scale, shift=shift)


def statistics_of(rewards: list[float]) -> dict[str, float]:
    if not rewards:
        return {}
    values = torch.tensor(rewards, dtype=torch.float64)
    return {"mean": float(values.mean()), "std": float(values.std(correction=0)), "responses": len(rewards)}
