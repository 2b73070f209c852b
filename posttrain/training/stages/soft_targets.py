"""The stage `distil_sft`: rows as `sft` has them, and at each of their tokens a teacher's whole distribution."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from posttrain.config.stages import DistilSFT
from posttrain.errors import ModelError
from posttrain.models.folders.loading import resolve
from posttrain.models.folders.manifest import folder_fingerprint
from posttrain.models.folders.tokenizers import has_tokenizer, load_tokenizer
from posttrain.models.reward.folders import require_policy
from posttrain.models.tree.logprobs import Policy
from posttrain.models.tree.model import TreeModel
from posttrain.training.balance import balanced
from posttrain.training.objectives import objective_of
from posttrain.training.rl.teacher import load_teacher
from posttrain.training.stages.kind import Learning, StageContext, TrainingKind
from posttrain.training.stages.reading import RowInputs
from posttrain.training.stages.rows import ROWS, row_inputs
from posttrain.training.stages.speech import spoken_apart
from posttrain.training.stages.starts import Start
from posttrain.types import Against

FORWARD = 0.0
"""The mixture of `Against` that is KL(teacher || policy)."""


def soft_inputs(ctx: StageContext[DistilSFT], start: Start) -> RowInputs:
    """The rows; and the teacher, as far as it can be refused before a weight is loaded.

    Raises:
        ModelError: there is no such model, it is no policy, or it has another tokenizer.
    """
    source = resolve(ctx.stage.teacher, say=ctx.progress.say)
    require_policy(source)
    if has_tokenizer(source.folder):
        require_same_tokens(load_tokenizer(source.folder), start.tokenizer, ctx.stage)
    inputs = row_inputs(ctx, start)
    ctx.say(*spoken_apart(ctx.stage.teacher, inputs.encoder))
    # A checkpoint that another teacher has trained is not gone on with.
    return replace(inputs, fingerprints=(*inputs.fingerprints, folder_fingerprint(source.folder)))


def require_same_tokens(teacher: Any, own: Any, stage: DistilSFT) -> None:
    """Refuse a teacher to which the policy's ids mean something else: every number would be of another token.

    Vocabularies decide: the teacher reads the policy's ids and splits no text itself.

    Raises:
        ModelError: an id that means another token.
    """
    theirs, ours = teacher.get_vocab(), own.get_vocab()
    other = next((token for token in sorted(ours, key=ours.__getitem__) if theirs.get(token) != ours[token]), None)
    if other is None and len(theirs) > len(ours):
        other = min(theirs.keys() - ours.keys(), key=theirs.__getitem__)
    if other is not None:
        raise ModelError(
            "the teacher has another tokenizer, so its distributions are over other tokens",
            where=f"{stage.name}.teacher: {stage.teacher}",
            found=f"{other!r} is {theirs.get(other, 'no token')} of the teacher, {ours.get(other, 'no token')} of "
            "the policy",
            expected="the policy's own tokenizer",
            remedy="take a teacher of the same family, or let it write the rows: `method: distil`",
        )


def soft_objective(ctx: StageContext[DistilSFT], inputs: RowInputs, policy: TreeModel) -> Learning:
    assert isinstance(policy, Policy)
    teacher = load_teacher(ctx.stage.teacher, policy, ctx.progress)
    objective = objective_of(ctx.stage, against=Against(teacher, FORWARD))
    return Learning(balanced(objective, policy, ctx.stage))


SOFT_TARGETS: TrainingKind[DistilSFT, RowInputs, Learning] = TrainingKind(
    outputs=DistilSFT.OUTPUTS,
    inputs=soft_inputs,
    policy=ROWS.policy,
    objective=soft_objective,
    checks=ROWS.checks,
    source=ROWS.source,
    finish=ROWS.finish,
)
