"""A run folder with one online stage, made from formulas: rollouts.jsonl, examinations.jsonl, metrics.jsonl.

folder = write_online_run(tmp_path / "run", OnlinePlan(steps=12))       # a policy that learns sums

Standard library only and the same bytes for the same plan.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class OnlinePlan:
    """What the fake run shall show."""

    steps: int = 12
    prompts: int = 4
    completions: int = 4
    tasks: int = 10
    """Fewer than steps x prompts are asked again and again."""
    held_out: int = 20
    every: int = 4
    start: float = 0.2
    end: float = 0.9
    """Chances of a right answer."""
    parts: bool = False
    ppo: bool = False
    best: int | None = None
    """The step whose weights were kept; the last examination's, if None."""
    keep: bool = True
    status: str = "done"


def write_online_run(folder: Path, plan: OnlinePlan | None = None) -> Path:
    """Write a finished run with one stage, "grpo", and return its folder."""
    plan = plan or OnlinePlan()
    stage = folder / "grpo"
    stage.mkdir(parents=True)
    entry = {"name": "grpo", "method": "grpo", "status": plan.status, "seconds": 30.0}
    (folder / "run.json").write_text(json.dumps({"schema": 1, "status": plan.status, "stages": [entry]}))
    about: dict[str, Any] = {
        **entry,
        "steps": plan.steps,
        "data": {"read": 30, "kept": 30, "held_out_rows": plan.held_out},
    }
    if plan.keep and plan.status == "done":
        about["best"] = {"step": plan.steps if plan.best is None else plan.best, "score": plan.end}
    (stage / "stage.json").write_text(json.dumps(about))
    (stage / "preflight.json").write_text(json.dumps({"checks": []}))
    write_lines(stage / "rollouts.jsonl", rollouts(plan))
    write_lines(stage / "examinations.jsonl", examinations(plan))
    write_lines(stage / "metrics.jsonl", metrics(plan))
    return folder


def write_lines(path: Path, lines: Iterator[dict[str, Any]] | list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def chance(plan: OnlinePlan, step: int) -> float:
    return plan.start + (plan.end - plan.start) * step / plan.steps


def rollouts(plan: OnlinePlan) -> Iterator[dict[str, Any]]:
    stream = random.Random(0)
    for step in range(1, plan.steps + 1):
        for place in range(plan.prompts):
            task = (step * plan.prompts + place) % plan.tasks
            for number in range(plan.completions):
                right = stream.random() < chance(plan, step)
                yield completion(plan, step, task, number, right, stream)


def completion(
    plan: OnlinePlan, step: int, task: int, number: int, right: bool, stream: random.Random
) -> dict[str, Any]:
    tokens = 4 + step + stream.randint(0, 4)
    logprobs = [-0.5] * tokens
    parts = {"math": float(right), "length": 1.0 / tokens} if plan.parts else {"math": float(right)}
    return {
        "step": step,
        "version": step - 1,
        "row": f"/data/tasks.jsonl, row {task + 1}",
        "prompt": f"What is {task} + 2?",
        "answer": str(task + 2),
        "completion": f"It is {task + 2 if right else task + 3}.",
        "number": number,
        "finish": "length" if tokens > 4 + step + 3 else "stop_token",
        "reward": sum(parts.values()) if plan.parts else float(right),
        "parts": parts,
        "prompt_ids": [1, 2],
        "ids": list(range(tokens)),
        "mask": [True] * tokens,
        "sampler_logprobs": logprobs,
        "old_logprobs": [-0.4] * tokens,
        "advantages": [0.5 if right else -0.5] * tokens,
    }


def examinations(plan: OnlinePlan) -> Iterator[dict[str, Any]]:
    for step in sorted({*range(0, plan.steps + 1, plan.every), plan.steps}):
        stream = random.Random(1)  # the same luck each time: tasks differ, and the policy decides
        for task in range(plan.held_out):
            right = stream.random() < chance(plan, step)
            yield {
                "step": step,
                "row": f"/data/tasks.jsonl, row {task + 100}",
                "prompt": f"What is {task} + 100?",
                "answer": str(task + 100),
                "completion": str(task + 100 if right else 0),
                "finish": "stop_token",
                "score": float(right),
                "parts": {"math": float(right)},
            }


def metrics(plan: OnlinePlan) -> Iterator[dict[str, Any]]:
    for step in range(plan.steps + 1):
        if step:
            values = {
                "loss": 0.0,
                "reward": chance(plan, step),
                "reward_deviation": 0.4,
                "reward/math": chance(plan, step),
                "zero_signal_share": 0.1,
                "kl_k1_reference": 0.01 * step,
                "kl_k3_reference": 0.01 * step,
                "kl_sequence_reference": 0.1 * step,
                "clip_share_high": 0.01,
                "entropy_sampled": 1.0 / step,
                "length_sampled": 4.0 + step,
                "length_generated": 4.0 + step,
                "truncated_share": 0.1,
                "duplicate_share": 0.2,
                "abstained_share": 0.0,
                "sampler_effective_size": 1.0000000001,
                "seconds_generate": 2.0,
                "seconds_update": 1.0,
                "seconds_sync": 1e-6,
                "groups": float(plan.prompts),
                "groups_trained": float(plan.prompts),
            }
            values |= {"value_loss": 0.1, "value_explained_variance": -0.2} if plan.ppo else {}
            values |= {"reward/length": 0.1} if plan.parts else {}
            yield {"step": step, "epoch": step / 10, "seconds": 3.0 * step, "split": "train", "values": values}
        if step % plan.every == 0 or step == plan.steps:
            score = sum(line["score"] for line in examinations(plan) if line["step"] == step) / plan.held_out
            held_out = {"score": score, "solved_share": score, "truncated_share": 0.0}
            yield {"step": step, "epoch": step / 10, "seconds": 3.0 * step, "split": "held_out", "values": held_out}
