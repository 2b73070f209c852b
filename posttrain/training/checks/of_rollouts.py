"""What is proven before an online stage's step 1, on a few completions that the start samples.

gold        every verifier gives 1 to each row's own answer        tree, leak, gradient   as for any stage
sampler     the engine's log-probs are the trainer's               memory                 of the longest completions
            (`sampler_check.py`)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from posttrain.config.online import OnlineStage, SamplingStage
from posttrain.data.encode import Encoder
from posttrain.data.formats.advice import answer_path
from posttrain.data.refusals import quoted
from posttrain.data.tree_key import make_tree
from posttrain.data.trees import collate, to_device
from posttrain.data.unread import misspelt
from posttrain.models.tree.logprobs import Policy
from posttrain.rewards import Rubric, Scorer, gold_check, unjudged
from posttrain.rewards.rubric import GoldFailure
from posttrain.rollout.engine import Engine
from posttrain.training.balance import check_router
from posttrain.training.checks import preflight
from posttrain.training.checks.memory import fitting_microbatch, plan, working_memory
from posttrain.training.checks.preflight import Check
from posttrain.training.checks.sampler import check_sampler
from posttrain.training.objectives import Algorithm
from posttrain.training.rl.engines import Sampler
from posttrain.training.rl.rollouts import Prompt, decide
from posttrain.training.rl.source import sample
from posttrain.training.rl.tasks import TaskSet
from posttrain.types import Task, TokenTree, Wants

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
GOLD_TASKS = 200
"""Tasks whose own answers the verifiers are tried on before training; `posttrain check` tries all."""


def prove(
    stage: SamplingStage,
    policy: Policy,
    sampler: Sampler,
    encoder: Encoder,
    objective: Algorithm,
    tasks: TaskSet,
    gold: Check,
    resumed: dict[str, Any] | None,
    program: int = 0,
) -> tuple[preflight.Preflight, int]:
    """All checks, on completions of the start, and the tokens of a micro-batch.

    program: bytes of the process before the model was loaded.
    """
    rows = probe_trees(stage, sampler.engine, encoder, tasks.train)
    first = preflight.check_bos(rows, encoder.tokens.bos_id)
    checks = [_check_tasks(tasks), gold, first, preflight.check_repeat(policy, rows)]
    checks.append(preflight.choose_path(policy, rows, stage.compute.logprobs))
    checks.append(preflight.check_leak(policy, rows))
    checks.append(check_sampler(stage, policy, rows, shared=sampler.sync is None))
    proof = preflight.Itself(policy) if objective.needs_reference else None
    taught = [_pair(tree) for tree in rows] if objective.unit == "pairs" else own_columns(stage, policy, rows)
    checks.append(preflight.check_gradient(policy, proof, objective, taught, dead_layers=stage.preflight.dead_layers))
    if (router := check_router(objective, policy)) is not None:
        checks.append(router)
    working = working_memory(policy, preflight.probes(rows)[:1])
    longest = tasks.train.longest + stage.sampling.max_new_tokens
    largest = make_tree([0] * (longest - 1), [([0], [True])], rows[0].row)
    compares = stage.row.needs_reference if isinstance(stage, OnlineStage) else objective.needs_reference
    live = compares and stage.adapter is None
    asked = stage.compute.tokens_per_microbatch
    if asked != "auto":
        budget = int(asked)
    elif resumed and resumed.get("tokens_per_microbatch"):
        budget = int(resumed["tokens_per_microbatch"])
    else:
        answers = stage.completions_per_prompt * stage.sampling.max_new_tokens
        budget = fitting_microbatch(
            policy,
            working.per_token,
            largest_tree=longest,
            live_reference=live,
            largest=largest,
            wanted=whole_groups(tasks.train.longest, answers),
            working=working,
        )
    memory = plan(
        policy,
        tokens_per_microbatch=max(budget, longest),
        activation_bytes_per_token=working.per_token,
        live_reference=live,
        largest=largest,
        working=working,
        program=program,
    )
    checks.append(preflight.check_memory(memory))
    return preflight.Preflight(tuple(checks), _shown(rows, encoder), memory), budget


def whole_groups(prompt: int, answers: int) -> int:
    """The smallest micro-batch that computes few prompts twice: a group that it does not hold is taken apart, each part
    with the prompt, and that may cost `PROMPTS_AGAIN` of the group's tokens.

    whole_groups(30, 1024) -> 542        two parts
    whole_groups(600, 1024) -> 1624      the whole group
    """
    parts = 1 + int(PROMPTS_AGAIN * (prompt + answers) / prompt)
    return prompt + -(-answers // parts)


def _shown(rows: Sequence[TokenTree], encoder: Encoder) -> tuple[dict[str, Any], ...]:
    """The completions as text; none of them is better than another yet."""
    shown: list[dict[str, Any]] = []
    for entry in preflight.decoded_rows(rows, encoder):
        number = sum(other["row"] == entry["row"] for other in shown) + 1
        shown.append({**entry, "kind": f"completion {number}"})
    return tuple(shown)


def probe_trees(stage: SamplingStage, engine: Engine, encoder: Encoder, prompts: Sequence[Prompt]) -> list[TokenTree]:
    """A few short completions of the start, with columns of the kind that training has."""
    sampling = stage.distribution(encoder.stop_ids, seed=0)
    short = replace(sampling, max_new_tokens=min(PROBED_NEW_TOKENS, sampling.max_new_tokens))
    asked = sorted(prompts[:SEARCHED_PROMPTS], key=lambda prompt: len(prompt.ids))[:PROBED_PROMPTS]
    completions = PROBED_COMPLETIONS
    if sum(len(prompt.ids) for prompt in asked) * completions > PROBED_TOKENS:  # the padded path computes each apart
        asked, completions = asked[:1], 2
    groups = sample(engine, encoder, asked, short, completions)
    for group in groups:
        for number, one in enumerate(group.responses):
            one.reward = float(number == 0)
    decide(groups, drop_truncated=False)
    for group in groups:
        for one in group.branches:
            own = one.columns["sampler_logprobs"]
            one.columns |= {"old_logprobs": own, "reference_logprobs": own}
            one.columns |= {"values": np.zeros_like(own), "returns": np.full_like(own, one.reward)}
            one.columns["advantages"] = np.full_like(own, 1.0 if one.reward else -0.5)
    return [tree for group in groups for tree in group.trees()]


@torch.no_grad()
def own_columns(stage: SamplingStage, policy: Policy, rows: Sequence[TokenTree]) -> list[TokenTree]:
    """The probes with the trainer's own old log-probs, and a reference that is `PROBED_KL` nats away at every token.

    With the engine's in their place, a ratio or a KL that has no gradient would have one of the size of rounding.
    """
    batch = to_device(collate(rows), policy.device)
    own_N = policy(batch, Wants(temperature=stage.trainer_temperature)).logprobs_N.float().cpu().numpy()
    first, found = 0, []
    for tree in rows:
        branches = []
        for branch in tree.branches:
            old = own_N[first : first + len(branch.ids)]
            first += len(branch.ids)
            others = {"old_logprobs": old, "reference_logprobs": old - PROBED_KL, "teacher_logprobs": old + PROBED_KL}
            branches.append(replace(branch, columns={**branch.columns, **others}))
        found.append(replace(tree, branches=tuple(branches)))
    return found


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
    lost = sum(counts["dropped"].values())
    evidence = {key: counts[key] for key in ("read", "rows", "held_out_rows", "dropped")}
    detail = f"{counts['rows']:,} tasks to train on, {counts['held_out_rows']:,} held out, {lost:,} dropped"
    detail = "; ".join([detail, *counts.get("notes", ())])
    if lost > 0.05 * counts["read"]:
        return Check("data", "tasks", "warn", detail, evidence, "raise max_length, or lower sampling.max_new_tokens")
    keys = {key for prompt in tasks.train[:GOLD_TASKS] for key in prompt.task.metadata}
    if near := misspelt(keys, TASK_COLUMNS):
        remedy = "; ".join(
            f"`{name}` is kept as metadata only: did you mean `{meant}`?" for name, meant in near.items()
        )
        return Check("data", "tasks", "warn", detail, {**evidence, "misspelt": near}, remedy)
    if not tasks.held_out:
        remedy = "raise held_out, or name a file: without it, a policy that games the reward looks like one that learns"
        return Check("data", "tasks", "warn", f"{detail}: no score on tasks that do not train", evidence, remedy)
    return Check("data", "tasks", "pass", detail, evidence)


def check_gold(prompts: Sequence[Prompt], rubric: Rubric, *, every: bool) -> Check:
    """Every verifier accepts the rows' own answers: no model can be right where it does not."""
    tried = prompts if every else prompts[:GOLD_TASKS]
    verifiers = [scorer for scorer in rubric.scorers if (scorer.inner or scorer).gold is not None]
    title = "verifiers accept the rows' own answers"
    if not verifiers:
        return Check("gold", title, "pass", "no reward verifies an answer")
    failures: list[GoldFailure] = []
    silent: list[Task] = []
    for first in range(0, len(tried), GOLD_TASKS):
        tasks = [prompt.task for prompt in tried[first : first + GOLD_TASKS]]
        failures += gold_check(tasks, verifiers)
        silent += unjudged(tasks, verifiers)
    evidence = {
        "tasks": len(tried),
        "unjudged": len(silent),
        "failures": [str(failure) for failure in failures[:20]],
    }
    judged = len(tried) - len(silent)
    if not judged:
        return _no_row_judged(silent, verifiers, evidence)
    only = len(verifiers) == len(rubric.scorers)
    without = f"; {len(silent):,} rows have no answer that could be checked, such as {silent[0].row}" if silent else ""
    if not failures:
        status: preflight.Status = "warn" if silent and only else "pass"
        remedy = "give these rows an `answer` or remove them: no completion of theirs gets a reward"
        said = f"all of {judged:,} tasks{without}"
        return Check("gold", title, status, said, evidence, remedy if status == "warn" else None)
    status = "fail" if len(failures) >= judged else "warn"
    remedy = "correct the answers of these rows or remove them, or choose another reward"
    said = f"{len(failures):,} of {judged:,} fail; {failures[0]}{without}"
    return Check("gold", title, status, said, evidence, remedy)


def _no_row_judged(tasks: Sequence[Task], verifiers: Sequence[Scorer], evidence: dict[str, Any]) -> Check:
    """Every reward would be None, and nothing would be learned: mostly a column that has another name."""
    others = sorted({key for task in tasks for key in task.metadata})
    likely = next((path for task in tasks if (path := answer_path(task.metadata)) is not None), None)
    wanted = likely if likely is not None else "YOUR_COLUMN"
    needed = dict.fromkeys((scorer.inner or scorer).needs for scorer in verifiers)
    names = " and ".join(f"`{scorer.name}`" for scorer in verifiers)
    detail = (
        f"{names} can judge none of {len(tasks):,} rows: they have no {' and no '.join(needed)}; "
        f"besides the prompt, {tasks[0].row} has {quoted(tasks[0].metadata) if tasks[0].metadata else 'no column'}"
    )
    remedy = (
        f"name the column that holds the answers, `data: {{path: ..., columns: {{answer: {wanted}}}}}`"
        if "answer" in needed
        else "give the rows what is missing (docs/rewards.md), or choose another reward"
    )
    return Check(
        "gold", "verifiers accept the rows' own answers", "fail", detail, {**evidence, "columns": others}, remedy
    )
