"""Scores of a reward model that never was, and its stage in a fake run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.evaluate.cross_scoring import cross_scores, write_cross_scores
from posttrain.evaluate.reward import PairScores, evaluate_reward, write_reward_evaluation
from tests.fake_run import write_json

CATEGORIES = ("manners", "small talk", "arithmetic", "identity")


def pair_scores(margins: Any, seed: int = 0, *, lengths: Any = None) -> PairScores:
    """Pairs with these margins around rewards of mean 0; lengths are drawn apart from the rewards unless given."""
    rng = np.random.default_rng(seed)
    margins = np.asarray(margins, dtype=float)
    total = len(margins)
    centre = rng.normal(0.0, 0.3, total)
    chosen, rejected = rng.integers(6, 40, total), rng.integers(6, 40, total)
    if lengths is not None:
        chosen, rejected = lengths
    rows = [f"pairs.jsonl, row {row}" for row in range(1, total + 1)]
    categories = [CATEGORIES[index % 4] for index in range(total)]
    return PairScores.of(centre + margins / 2, centre - margins / 2, chosen, rejected, rows, categories)


def calibrated_margins(pairs: int, seed: int = 0, spread: float = 2.0) -> np.ndarray:
    """Margins whose sigmoid is the truth: each pair is labelled by a draw from its own probability."""
    rng = np.random.default_rng(seed)
    margins = rng.normal(0.0, spread, pairs)
    return np.where(rng.random(pairs) < 1 / (1 + np.exp(-margins)), margins, -margins)


def healthy_probes(scores: PairScores, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        name: scores.chosen_P - 2 - rng.random(len(scores.rows))
        for name in ("empty", "repeated", "off_topic", "refusal")
    }


def add_reward_stage(run: Path, pairs: int = 96) -> dict[str, Any]:
    """Put a stage `reward` into a fake run and the rewards of three policies beside it; returns its evaluation."""
    about = json.loads((run / "run.json").read_text(encoding="utf-8"))
    about["stages"].insert(1, {"name": "reward", "method": "reward", "status": "done", "seconds": 22.0})
    write_json(run / "run.json", about)
    folder = run / "reward"
    write_json(folder / "stage.json", {"name": "reward", "method": "reward", "status": "done", "seconds": 22.0})
    write_json(folder / "preflight.json", {"checks": [], "rows": []})
    write_json(folder / "metrics.jsonl", {"step": 1, "epoch": 1.0, "split": "train", "values": {"loss": 0.6}})
    scores = pair_scores(calibrated_margins(pairs))
    untrained = pair_scores(np.random.default_rng(1).normal(0, 0.1, pairs))
    probes = healthy_probes(scores) | {"repeated": scores.chosen_P + 0.5}
    record = evaluate_reward(scores, untrained=untrained, probes=probes, step=80)
    write_reward_evaluation(folder, record, scores, untrained=untrained)
    rng = np.random.default_rng(2)
    policies = ("start", "sft", "dpo")
    rewards = {
        judge: {policy: rng.normal(level, 1.0, 24).tolist() for policy, level in zip(policies, levels, strict=True)}
        for judge, levels in {"reward": (-1, 0, 2), "public": (0.5, 0.4, 0.3)}.items()
    }
    answers = {policy: [f"{policy} {index}" for index in range(24)] for policy in policies}
    write_cross_scores(run, cross_scores(answers, rewards))
    return record
