"""Tiny recipes for runs on ranks: a model of one layer, rows of a few words, three or four steps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.online import save_start

SUITES = [
    {"name": "asked", "kind": "match", "prompts": "asked.jsonl", "pattern": "[a-m]", "sampling": {"max_new_tokens": 5}},
    {"name": "own", "kind": "perplexity", "prompts": "asked.jsonl", "sampling": {"max_new_tokens": 4}},
]
COMMON: dict[str, Any] = {
    "learning_rate": 3e-3,
    "schedule": {"kind": "constant", "warmup_ratio": 0.0},
    "compute": {"tokens_per_microbatch": 96},
    "checkpoint": {"every_steps": 2, "keep": 3},
    "preflight": {"on_failure": "warn"},
}
ROWS: dict[str, Any] = {**COMMON, "steps": 3, "rows_per_step": 6, "held_out": 0.2, "log": {"held_out_every": 2}}
ONLINE: dict[str, Any] = {
    **COMMON,
    "steps": 2,
    "prompts_per_step": 4,
    "completions_per_prompt": 3,
    "sampling": {"max_new_tokens": 5},
    "held_out": 0.25,
    "examine": {"every_steps": 2},
    "data": {"path": "tasks.jsonl"},
}


def write_rows(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pairs = [
        {"prompt": f"Is it {i}?", "chosen": "Yes" + "s" * (i % 5), "rejected": "No" + "o" * (i % 3)} for i in range(24)
    ]
    files: Mapping[str, list[dict[str, Any]]] = {
        "pairs.jsonl": pairs,
        "demos.jsonl": [{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in pairs],
        "more.jsonl": [{"prompt": f"{i} or so?", "completion": "Maybe " + "x" * (i % 4)} for i in range(16)],
        "feedback.jsonl": [
            {"prompt": pair["prompt"], "completion": pair["chosen"], "label": i % 3 > 0} for i, pair in enumerate(pairs)
        ],
        "steps.jsonl": [
            {
                "prompt": f"Count {i}.",
                "completions": ["One.", "Two" + "o" * (i % 3)],
                "labels": [True, i % 2 == 0],
            }
            for i in range(20)
        ],
        "tasks.jsonl": [{"prompt": f"{i}?", "answer": str(i)} for i in range(16)],
        "asked.jsonl": [{"prompt": f"Who is {i}?", "answer": "Pia"} for i in (*range(5), 1)],
    }
    for name, rows in files.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rewards.py").write_text(
        "def early(prompt, completion, task):\n"
        "    return sum(letter < 'P' for letter in completion) / max(1, len(completion))\n\n\n"
        "def broken(prompt, completion, task):\n"
        "    raise ValueError('no number in it')\n"
    )


def write_recipe(folder: Path, stages: list[dict[str, Any]], suites: list[dict[str, Any]] | None = None) -> Path:
    """A recipe over `folder/start`, made here with its rows."""
    write_rows(folder)
    if not (folder / "start").exists():
        save_start(folder / "start")
        save_start(folder / "teacher", seed=5)
    content = {
        "schema": 1,
        "name": "tiny",
        "model": str(folder / "start"),
        "evaluate": {"suites": SUITES if suites is None else suites},
        "stages": [dict(stage) for stage in stages],
    }
    path = folder / "tiny.yaml"
    for stage in content["stages"]:
        stage.setdefault("starts_from", "start")  # each by itself, so that one's rounding is none of another's
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


UNSAVED = {"export": "none"}
"""What a stage has come to is in its held-out figures; reading a save back takes longer than such a stage."""
STAGES: dict[str, dict[str, Any]] = {
    "sft": {**ROWS, "method": "sft", "data": {"path": "demos.jsonl"}},
    "dpo": {**ROWS, "method": "dpo", "data": {"path": "pairs.jsonl"}},
    "kto": {**ROWS, **UNSAVED, "method": "kto", "data": {"path": "feedback.jsonl"}},
    "reward": {**ROWS, "method": "reward", "data": {"path": "pairs.jsonl"}, "normalise": "whiten"},
    "process": {
        **ROWS,
        **UNSAVED,
        "method": "reward",
        "name": "process",
        "head": "steps",
        "objective": "step_labels",
        "data": {"path": "steps.jsonl"},
    },
    "mixture": {
        **ROWS,
        **UNSAVED,
        "method": "sft",
        "name": "mixture",
        "data": {"sources": [{"path": "demos.jsonl", "weight": 2}, {"path": "more.jsonl", "weight": 1}]},
    },
    "grpo": {**ONLINE, **UNSAVED, "method": "grpo", "rewards": [{"kind": "function", "function": "rewards.py:early"}]},
    "ppo": {**ONLINE, **UNSAVED, "method": "ppo", "rewards": [{"kind": "function", "function": "rewards.py:early"}]},
    "online_dpo": {
        **ONLINE,
        **UNSAVED,
        "method": "online_dpo",
        "rewards": [{"kind": "function", "function": "rewards.py:early"}],
    },
    "rft": {
        **ONLINE,
        **UNSAVED,
        "method": "rft",
        "least_reward": 0.1,
        "rewards": [{"kind": "function", "function": "rewards.py:early"}],
    },
    "gkd": {**ONLINE, **UNSAVED, "method": "gkd", "teacher": "teacher"},
}
