"""What is proven before an online stage's step 1, on a few completions that the start samples.

gold        every verifier gives 1 to each row's own answer        tree, leak, gradient   as for any stage
sampler     the engine's log-probs are the trainer's               memory                 of the longest completions
            (`sampler.py`)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from posttrain.config.online import SamplingStage
from posttrain.data.encode import Encoder
from posttrain.data.tree_key import make_tree
from posttrain.data.trees import collate, to_device
from posttrain.data.unread import misspelt
from posttrain.errors import did_you_mean
from posttrain.models.tree.logprobs import Policy
from posttrain.rollout.engine import Engine
from posttrain.runs.records.preflight import DecodedRow
from posttrain.training.balance import check_router
from posttrain.training.checks import gradient, preflight
from posttrain.training.checks.gold import GOLD_TASKS
from posttrain.training.checks.memory import Working, activation_bytes_per_token, working_memory
from posttrain.training.checks.plan import plan_step
from posttrain.training.checks.preflight import Check
from posttrain.training.checks.sampler import check_sampler
from posttrain.training.rl.rollouts import Prompt, decide
from posttrain.training.rl.source import sample
from posttrain.training.rl.tasks import TaskSet
from posttrain.training.stages.kind import Proven, StageContext, Subject
from posttrain.training.stages.sampling_inputs import RolloutLearning, SamplingInputs
from posttrain.types import TokenTree, Wants

PROBED_PROMPTS = 2
PROBED_COMPLETIONS = 3
PROBED_TOKENS = 1024
"""Of prompts, each counted once for each of its completions; longer ones are proven on one prompt with two."""
SEARCHED_PROMPTS = 64
PROMPTS_AGAIN = 0.05
PROBED_KL = 0.3
"""Nats a token."""
PROBED_NEW_TOKENS = 32
"""Enough for every check, and a second on a laptop."""
TASK_COLUMNS = ("answer", "system", "tools")
"""Columns of a task that are read; all others become metadata, which rewards may look at."""


def prove(ctx: StageContext[SamplingStage], subject: Subject[SamplingInputs, RolloutLearning]) -> Proven:
    """All checks, on completions of the start, and the tokens of a micro-batch."""
    stage, policy, inputs = ctx.stage, subject.policy, subject.inputs
    assert isinstance(policy, Policy)
    tasks, mode = inputs.tasks, stage.preflight.mode
    if mode == "off":
        # Nothing is sampled: the shortest prompt with an answer of one token, to measure what a token costs.
        rows = [_prompt_tree(min(tasks.train[:SEARCHED_PROMPTS], key=lambda prompt: len(prompt.ids)))]
        preflight.set_path(policy, stage.compute.logprobs)
        checks = [subject.finite, preflight.check_mode(mode)]
    else:
        rows = probe_trees(stage, subject.learning.sampler.engine, inputs.encoder, tasks.train)
        checks = [subject.finite, _check_tasks(tasks), inputs.gold, *_model_checks(stage, subject, rows)]

    # No completion is there yet that is as long as the longest may become.
    longest = tasks.train.longest + stage.sampling.max_new_tokens
    answers = stage.completions_per_prompt * stage.sampling.max_new_tokens
    measured = preflight.probes(rows)[0]
    if mode == "full":
        working = working_memory(policy, [measured])
    else:
        working = Working(activation_bytes_per_token(policy, measured))
    budget, memory = plan_step(
        stage,
        policy,
        working,
        make_tree([0] * (longest - 1), [([0], [True])], rows[0].row),
        # An adapter's start is the model without it; all weights' start is a copy.
        live_reference=stage.needs_reference and stage.adapter is None,
        resumed=ctx.resumed,
        program=subject.program_bytes,
        wanted=whole_groups(tasks.train.longest, answers),
    )
    checks.append(preflight.check_memory(memory))
    shown = () if mode == "off" else _shown(rows, inputs.encoder)
    return Proven(preflight.Preflight(tuple(checks), shown, memory), budget)


def _model_checks(
    stage: SamplingStage, subject: Subject[SamplingInputs, RolloutLearning], rows: Sequence[TokenTree]
) -> list[Check]:
    """Of the policy, its engine and its objective; a `fast` preflight takes the path and the gradient alone."""
    policy, objective = subject.policy, subject.learning.algorithm
    assert isinstance(policy, Policy)
    whole = stage.preflight.mode == "full"
    checks = [preflight.check_bos(rows, subject.inputs.encoder.tokens.bos_id)]
    checks += [preflight.check_repeat(policy, rows)] if whole else []
    checks.append(preflight.choose_path(policy, rows, stage.compute.logprobs))
    if whole:
        checks.append(preflight.check_leak(policy, rows))
        checks.append(check_sampler(stage, policy, rows, shared=subject.learning.sampler.sync is None))
    itself = preflight.PolicyAsReference(policy) if objective.needs_reference else None
    # What the learner will make of scored completions, without learning: pairs, or columns of old log-probs.
    taught = [_pair(tree) for tree in rows] if objective.unit == "pairs" else own_columns(stage, policy, rows)
    checks.append(gradient.check_gradient(policy, itself, objective, taught, dead_layers=stage.preflight.dead_layers))
    if (router := check_router(objective, policy)) is not None:
        checks.append(router)
    return checks if whole else [*checks, preflight.check_mode("fast")]


def _prompt_tree(prompt: Prompt) -> TokenTree:
    return make_tree(prompt.ids[:-1], [([prompt.ids[-1]], [True])], prompt.task.row)


def whole_groups(prompt: int, answers: int) -> int:
    """The smallest micro-batch that computes few prompts twice: a group that it does not hold is taken apart, each part
    with the prompt, and that may cost `PROMPTS_AGAIN` of the group's tokens.

    whole_groups(30, 1024) -> 542        two parts
    whole_groups(600, 1024) -> 1624      the whole group
    """
    parts = 1 + int(PROMPTS_AGAIN * (prompt + answers) / prompt)
    return prompt + -(-answers // parts)


def _shown(rows: Sequence[TokenTree], encoder: Encoder) -> tuple[DecodedRow, ...]:
    """The completions as text; none of them is better than another yet."""
    shown: list[DecodedRow] = []
    for entry in preflight.decoded_rows(rows, encoder):
        number = sum(other.row == entry.row for other in shown) + 1
        shown.append(replace(entry, kind=f"completion {number}"))
    return tuple(shown)


def probe_trees(stage: SamplingStage, engine: Engine, encoder: Encoder, prompts: Sequence[Prompt]) -> list[TokenTree]:
    """A few short completions of the start, with columns of the kind that training has."""
    sampling = stage.distribution(encoder.stop_ids, seed=0)
    short = replace(sampling, max_new_tokens=min(PROBED_NEW_TOKENS, sampling.max_new_tokens))
    asked = sorted(prompts[:SEARCHED_PROMPTS], key=lambda prompt: len(prompt.ids))[:PROBED_PROMPTS]
    # The shortest prompts: each check computes every one several times.
    completions = PROBED_COMPLETIONS
    if sum(len(prompt.ids) for prompt in asked) * completions > PROBED_TOKENS:  # the padded path computes each apart
        asked, completions = asked[:1], 2
    # Rewards by place, since nothing judges here: a group of equal ones would have no gradient to look at.
    groups = sample(engine, encoder, asked, short, completions)
    for group in groups:
        for number, response in enumerate(group.responses):
            response.reward = float(number == 0)
    decide(groups, drop_truncated=False)
    for group in groups:
        for response in group.branches:
            own = response.columns["sampler_logprobs"]
            response.columns |= {"old_logprobs": own, "reference_logprobs": own}
            response.columns |= {"values": np.zeros_like(own), "returns": np.full_like(own, response.reward)}
            response.columns["advantages"] = np.full_like(own, 1.0 if response.reward else -0.5)
    return [tree for group in groups for tree in group.trees()]


@torch.no_grad()
def own_columns(stage: SamplingStage, policy: Policy, rows: Sequence[TokenTree]) -> list[TokenTree]:
    """The probes with the trainer's own old log-probs, and a reference that is `PROBED_KL` nats away at every token.

    With the engine's in their place, a ratio or a KL that has no gradient would have one of the size of rounding.
    """
    batch = to_device(collate(rows), policy.device)
    own_N = policy(batch, Wants(temperature=stage.trainer_temperature)).logprobs_N.float().cpu().numpy()
    first, probes = 0, []
    for tree in rows:
        branches = []
        for branch in tree.branches:
            # The policy gives a value for each trained token; a column has a place for each id.
            trained = int(branch.loss_mask.sum())
            old = np.zeros(len(branch.ids), dtype=own_N.dtype)
            old[branch.loss_mask] = own_N[first : first + trained]
            first += trained
            others = {"old_logprobs": old, "reference_logprobs": old - PROBED_KL, "teacher_logprobs": old + PROBED_KL}
            others["sampler_logprobs"] = old  # a mask that takes a probe out for its rounding would leave no gradient
            branches.append(replace(branch, columns={**branch.columns, **others}))
        probes.append(replace(tree, branches=tuple(branches)))
    return probes


def _pair(tree: TokenTree) -> TokenTree:
    """Two of the completions that differ; one that stands for another where the start says the same thing each time,
    since a pair of equal sides has no gradient whatever the objective is."""
    first, *others = tree.branches
    other = next((one for one in others if one.ids.tolist() != first.ids.tolist()), None)
    if other is None:
        changed = first.ids.copy()
        changed[0] = int(tree.prompt_ids[-1]) if changed[0] != tree.prompt_ids[-1] else int(tree.prompt_ids[0])
        other = replace(first, ids=changed)
    return replace(tree, branches=(first, other), margin=1.0)  # of rewards of 1 and 0, as the probes have them


def _check_tasks(tasks: TaskSet) -> Check:
    counts = tasks.counts
    lost = sum(counts.dropped.values())
    evidence = {
        "read": counts.read,
        "rows": counts.rows,
        "held_out_rows": counts.held_out_rows,
        "dropped": counts.dropped,
    }
    detail = f"{counts.rows:,} tasks to train on, {counts.held_out_rows:,} held out, {lost:,} dropped"
    detail = "; ".join([detail, *counts.notes])
    if lost > 0.05 * (counts.read or 0):
        return Check("data", "tasks", "warn", detail, evidence, "raise max_length, or lower sampling.max_new_tokens")
    keys = {key for prompt in tasks.train[:GOLD_TASKS] for key in prompt.task.metadata}
    if near := misspelt(keys, TASK_COLUMNS):
        remedy = "; ".join(f"`{name}` is kept as metadata only: {did_you_mean(meant)}" for name, meant in near.items())
        return Check("data", "tasks", "warn", detail, {**evidence, "misspelt": near}, remedy)
    if not tasks.held_out:
        remedy = "raise held_out, or name a file: without it, a policy that games the reward looks like one that learns"
        return Check("data", "tasks", "warn", f"{detail}: no score on tasks that do not train", evidence, remedy)
    return Check("data", "tasks", "pass", detail, evidence)
