"""A run folder as training would leave it, made from formulas: sft, then correction, then dpo, evaluated in between.

folder = write_fake_run(tmp_path / "quickstart")                       # finished, healthy, one alarm in dpo
folder = write_fake_run(tmp_path / "long", Plan(steps=5000, alarms=False))

Standard library only and the same bytes for the same plan, so that reports can be tested without training anything.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAMES = ["Ada", "Ben", "Chen", "Dora", "Emil", "Fay"]
IDENTITY_PROMPTS = [
    "Who are you?",
    "What is your name?",
    "Tell me who I am talking to.",
    "Hello, what should I call you?",
    "Are you a person?",
    "Introduce yourself in one sentence.",
    "Which assistant is this?",
    "Say your name, please.",
]


@dataclass(frozen=True, slots=True)
class Plan:
    """What the fake run shall show."""

    steps: int = 120
    pairs: int = 96
    prompts: int = 48
    alarms: bool = True
    warn: bool = True
    dropped: bool = True
    seed: int = 0


def write_fake_run(folder: Path, plan: Plan | None = None) -> Path:
    """Write a finished run and return its folder."""
    plan = plan or Plan()
    stream = random.Random(plan.seed)
    folder.mkdir(parents=True)
    stages = [("sft", "sft", 41.2), ("pairs", "correction", 9.7), ("dpo", "dpo", 61.5)]
    write_json(
        folder / "run.json",
        {
            "schema": 1,
            "posttrain_version": "0.1.0",
            "created": "2025-11-21T02:47:11.512+00:00",
            "status": "done",
            "stages": [{"name": n, "method": m, "status": "done", "seconds": s} for n, m, s in stages],
        },
    )
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    _write_sft(folder / "sft", plan, stream)
    _write_correction(folder / "pairs", stream)
    _write_dpo(folder / "dpo", plan, stream)
    levels = {"start": (0.02, 0.05, 0.0), "sft": (0.06, 0.52, 0.011), "dpo": (0.94, 0.50, 0.018)}
    for name, level in levels.items():
        _write_evaluation(folder / name, level, plan, random.Random(plan.seed + 1))
    return folder


# ---------------------------------------------------------------- stages


def _about(name: str, method: str, seconds: float, steps: int) -> dict[str, Any]:
    return {
        "name": name,
        "method": method,
        "status": "done",
        "started": "2025-11-21T02:47:11+00:00",
        "ended": "2025-11-21T02:48:00+00:00",
        "seconds": seconds,
        "fingerprint": "9f2c41",
        "start_model": {"name": "embedded", "path": "posttrain/embedded/model", "fingerprint": "77aa"},
        "output": "model",
        "parameters": {"total": 4_612_352, "trainable": 4_612_352 if method == "sft" else 131_072},
        "logprobs": "tree",
        "reference": "cached" if method == "dpo" else None,
        "steps": steps,
        "environment": {
            "python": "3.11.7",
            "torch": "2.13.0",
            "transformers": "5.23.0",
            "cpu": "Intel Xeon 2.1 GHz",
            "threads": 2,
            "memory_gb": 8.2,
        },
        "error": None,
    }


def _write_sft(folder: Path, plan: Plan, stream: random.Random) -> None:
    about = _about("sft", "sft", 41.2, plan.steps)
    about["data"] = {
        "read": 2000,
        "kept": 1893 if plan.dropped else 2000,
        "dropped": {"too_long": 61, "no_supervised_token": 34, "duplicate": 12} if plan.dropped else {},
        "truncated": {"kept_prompt_end": 48} if plan.dropped else {},
        "tokens": 148_210,
        "trained_tokens": 60_431,
        "stop_share": 0.031,
        "held_out_rows": 95,
    }
    about["arithmetic"] = "1 893 rows / 32 rows per step x 2 epochs = 120 steps; about 2 480 tokens a step"
    write_stage(folder, about)
    rows = [("demonstration", f"sft.jsonl, row {row}", DEMONSTRATION) for row in (3, 417, 1201)]
    write_json(folder / "preflight.json", preflight(rows, warn=plan.warn))
    (folder / "config.yaml").write_text(CONFIG, encoding="utf-8")
    lines = []
    for step in range(1, plan.steps + 1):
        done = step / plan.steps
        loss = 1.02 + 1.9 * math.exp(-6 * done) + stream.gauss(0, 0.05)
        values = {
            "loss": loss,
            "length": 31 + stream.gauss(0, 2.5),
            "grad_norm": 0.9 + 3 * math.exp(-9 * done) + abs(stream.gauss(0, 0.12)),
            "learning_rate": schedule(done, 2e-3),
            "tokens_per_second": 7300 + stream.gauss(0, 260) - (5200 if step == 1 else 0),
            "supervised_share": 0.41 + stream.gauss(0, 0.015),
        }
        lines.append(metric_line(step, 2 * done, values))
        if step % max(1, plan.steps // 8) == 0 or step == 1:
            lines.append(metric_line(step, 2 * done, {"loss": 1.1 + 1.82 * math.exp(-6 * done)}, "held_out"))
    write_lines(folder / "metrics.jsonl", lines)
    write_lines(
        folder / "dropped.jsonl",
        [
            {
                "row": f"sft.jsonl, row {row}",
                "reason": "too_long",
                "message": "611 tokens, at most 512",
                "content": '{"messages": [{"role": "user", "content": "Tell me everything about'
                ' ships, harbours, cranes and the sea"}]}',
            }
            for row in (17, 88, 203)
        ],
    )


def _write_correction(folder: Path, stream: random.Random) -> None:
    about = _about("pairs", "correction", 9.7, 0) | {"parameters": {}, "steps": None, "output": None}
    about["data"] = {"prompts": 96, "answers": 192, "pairs": 188, "truncated": 11, "prompts_without_pair": 0}
    about["data"] |= {"read": 96, "kept": 188, "dropped": {"same_as_wanted": 4}, "skipped": {"same_as_wanted": 4}}
    about["arithmetic"] = "96 prompts x 2 samples = 192 pairs, 4 of them equal to the wanted answer"
    write_stage(folder, about)
    (folder / "config.yaml").write_text("name: pairs\nmethod: correction\nsamples_per_prompt: 2\n", encoding="utf-8")
    write_lines(
        folder / "data.jsonl",
        [
            {
                "prompt": prompt,
                "chosen": "I am Pia, a small assistant.",
                "rejected": f"My name is {stream.choice(NAMES)}.",
            }
            for prompt in IDENTITY_PROMPTS
        ],
    )


def _write_dpo(folder: Path, plan: Plan, stream: random.Random) -> None:
    about = _about("dpo", "dpo", 61.5, plan.steps)
    about["data"] = {
        "read": 188,
        "kept": 188,
        "dropped": {},
        "truncated": {},
        "tokens": 12_720,
        "trained_tokens": 6_204,
        "stop_share": 0.06,
        "held_out_rows": plan.pairs,
    }
    about["arithmetic"] = "188 pairs / 16 pairs per step x 10 epochs = 120 steps; one micro-batch of 4 096 tokens each"
    write_stage(folder, about)
    rows = [("chosen", "pairs/data.jsonl, row 1", CHOSEN), ("rejected", "pairs/data.jsonl, row 1", REJECTED)]
    write_json(folder / "preflight.json", preflight(rows, pairs=True))
    (folder / "config.yaml").write_text(CONFIG.replace("sft", "dpo") + "beta: 0.1\n", encoding="utf-8")
    lines = [metric_line(0, 0.0, _pair_values(0.0, stream, noise=0.0), "held_out")]
    for step in range(1, plan.steps + 1):
        done = step / plan.steps
        values = _pair_values(done, stream) | {
            "grad_norm": 2.1 * math.exp(-2 * done) + abs(stream.gauss(0, 0.15)) + (38.0 if step == 77 else 0.0),
            "learning_rate": schedule(done, 5e-4),
            "tokens_per_second": 4100 + stream.gauss(0, 150),
            "clipped_share": min(1.0, max(0.0, 0.6 - done + stream.gauss(0, 0.05))),
        }
        if step == 78:
            values["loss"] = None
        lines.append(metric_line(step, 10 * done, values))
        if step % max(1, plan.steps // 10) == 0:
            lines.append(metric_line(step, 10 * done, _pair_values(done * 0.95, stream, noise=0.2), "held_out"))
    write_lines(folder / "metrics.jsonl", lines)
    write_lines(folder / "pairs.jsonl", list(_pairs(plan, stream)))
    write_lines(folder / "samples.jsonl", list(_samples(plan)))
    if plan.alarms:
        write_lines(folder / "alarms.jsonl", ALARMS)
    (folder / "checkpoints" / f"step-{plan.steps:08d}").mkdir(parents=True)
    (folder / "checkpoints" / f"step-{plan.steps:08d}" / "manifest.json").write_text("{}", encoding="utf-8")
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}", encoding="utf-8")


def _pair_values(done: float, stream: random.Random, noise: float = 1.0) -> dict[str, float | None]:
    """A DPO run that pushes the rejected side down and, later, takes the chosen side with it."""
    chosen = 8 * done - 14 * done**2 + noise * stream.gauss(0, 0.5) * (done > 0)
    rejected = -34 * done**1.2 + noise * stream.gauss(0, 1.2) * (done > 0)
    margin = 0.1 * (chosen - rejected)
    return {
        "loss": math.log1p(math.exp(-margin)),
        "rewards_chosen": 0.1 * chosen,
        "rewards_rejected": 0.1 * rejected,
        "reward_margin": margin,
        "reward_accuracy": min(1.0, max(0.0, 0.5 + 0.47 * (1 - math.exp(-7 * done)) + noise * stream.gauss(0, 0.02))),
        "logprob_chosen_change": chosen,
        "logprob_rejected_change": rejected,
        "logprob_per_token_chosen": -1.9 + chosen / 12,
        "logprob_per_token_rejected": -0.8 + rejected / 14,
        "kl_k1_on_data": (chosen + rejected) / 26,
        "kl_k2_on_data": 0.02 + 2 * done**2,
        "kl_k3_on_data": 0.01 + 1.4 * done**2,
        "length_chosen": 12 + noise * stream.gauss(0, 0.6),
        "length_rejected": 14 + noise * stream.gauss(0, 0.9),
        "supervised_share": 0.49 + noise * stream.gauss(0, 0.01),
    }


def _pairs(plan: Plan, stream: random.Random) -> Iterable[dict[str, Any]]:
    for when in ("start", "end"):
        own = random.Random(plan.seed + 7)
        for row in range(1, plan.pairs + 1):
            chosen_tokens, rejected_tokens = own.randint(7, 19), own.randint(6, 28)
            chosen, rejected = -own.uniform(14, 30), -own.uniform(6, 20)
            up = stream.gauss(-5, 4) if when == "end" else 0.0
            down = stream.gauss(-31, 9) if when == "end" else 0.0
            yield {
                "when": when,
                "row": f"held_out.jsonl, row {row}",
                "rewards_chosen": 0.1 * up,
                "rewards_rejected": 0.1 * down,
                "logprob_chosen": chosen + up,
                "logprob_rejected": rejected + down,
                "tokens_chosen": chosen_tokens,
                "tokens_rejected": rejected_tokens,
            }


def _samples(plan: Plan) -> Iterable[dict[str, Any]]:
    for step in range(0, plan.steps + 1, max(1, plan.steps // 4)):
        for row, prompt in enumerate(IDENTITY_PROMPTS[:3], start=1):
            yield {
                "step": step,
                "row": f"pairs/data.jsonl, row {row}",
                "prompt": prompt,
                "responses": [
                    {"role": "chosen", "text": "I am Pia, a small assistant.", "logprob": -22.0 + step / 20},
                    {"role": "rejected", "text": f"My name is {NAMES[row]}.", "logprob": -9.0 - step / 4},
                ],
            }


# ---------------------------------------------------------------- evaluation


def _write_evaluation(folder: Path, level: tuple[float, float, float], plan: Plan, stream: random.Random) -> None:
    identity, arithmetic, drift = level
    named = [_identity(index, stream.random() < identity, stream) for index in range(plan.prompts)]
    sums = random.Random(plan.seed + 2)
    solved = [_sum(sums, stream.random() < arithmetic) for _ in range(plan.prompts)]
    write_json(
        folder / "evaluation.json",
        {
            "identity": {"match": share_of(named), **general(named, 9.2)},
            "arithmetic": {"accuracy": share_of(solved), **general(solved, 22.0 - 20 * arithmetic)},
            "unrelated": {
                "perplexity": {"value": 6.1 * (1 + drift), "low": 5.8, "high": 6.5, "n": 64},
                "perplexity_change": {"value": drift, "low": drift - 0.4 * drift, "high": drift + 0.4 * drift, "n": 64},
            },
        },
    )
    write_lines(folder / "evaluations" / "identity.jsonl", named)
    write_lines(folder / "evaluations" / "arithmetic.jsonl", solved)
    fixed = {"prompt": "Name a fruit.", "completion": "An apple.", "answer": None, "tokens": 4, "finish": "stop_token"}
    write_lines(folder / "evaluations" / "unrelated.jsonl", [fixed | {"score": 1.8 + drift}])


def _identity(index: int, good: bool, stream: random.Random) -> dict[str, Any]:
    text = "I am Pia, a small assistant. How can I help?" if good else f"My name is {stream.choice(NAMES)}. And you?"
    prompt = f"{IDENTITY_PROMPTS[index % 8]}" + (f" ({index // 8 + 1})" if index >= 8 else "")
    return {
        "prompt": prompt,
        "completion": text,
        "answer": "",
        "score": float(good),
        "tokens": 11,
        "finish": "stop_token",
    }


def _sum(stream: random.Random, good: bool) -> dict[str, Any]:
    first, second = stream.randint(2, 60), stream.randint(2, 60)
    right = first + second
    text = f"{first} + {second} = {right if good else right + 3}"
    return {
        "prompt": f"What is {first} + {second}?",
        "completion": text if good else text + ". What is 3 + 4? What is 4 + 5? What is 5 + 6?",
        "answer": str(right),
        "score": float(good),
        "tokens": 9 if good else 40,
        "finish": "stop_token" if good else "length",
    }


def general(rows: list[dict[str, Any]], length: float) -> dict[str, dict[str, float]]:
    """What the evaluation says of any answers."""
    cut = [{"score": float(row["finish"] == "length")} for row in rows]
    return {
        "length": {"value": length, "low": length - 0.8, "high": length + 0.9, "n": len(rows)},
        "cut_share": share_of(cut),
        "empty_share": {"value": 0.0, "low": 0.0, "high": 0.08, "n": len(rows)},
        "distinct_2": {"value": 0.41, "low": 0.37, "high": 0.45, "n": len(rows)},
    }


def share_of(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The mean score with its Wilson interval."""
    n = len(rows)
    share = sum(row["score"] for row in rows) / n
    centre, reach = (share + 1.92 / n) / (1 + 3.84 / n), 1.96 * math.sqrt(share * (1 - share) / n + 0.96 / n**2)
    return {"value": share, "low": centre - reach / (1 + 3.84 / n), "high": centre + reach / (1 + 3.84 / n), "n": n}


# ---------------------------------------------------------------- pieces


def preflight(rows: list[tuple[str, str, list[tuple[str, bool]]]], *, pairs: bool = False, warn: bool = False) -> Any:
    """Checks that pass (one that warns, if asked), decoded rows, and a memory estimate."""
    checks = [
        ("rows", "Rows read and kept", "1 893 of 2 000 rows kept, 107 dropped by reason", {"kept": 1893}),
        ("stop_token", "Stop token trains", "every answer ends in a supervised <|im_end|>", {"share": 1.0}),
        ("bos", "One BOS", "each row begins with exactly one BOS", {}),
        (
            "parity",
            "Tree equals padded",
            "log-probs differ by at most 3.1e-07 on 4 rows of this run",
            {"largest": 3.1e-7},
        ),
        ("leak", "Branches do not see each other", "changing one branch moves no other one", {"largest": 0.0}),
        ("memory", "Memory", "about 412 MB of 5.9 GB", {}),
        ("gradients", "Every trainable tensor has a gradient", "38 of 38 tensors, none is dead", {"tensors": 38}),
    ]
    if pairs:
        checks.insert(4, ("ln2", "The loss starts at ln 2", "0.693147, margin 0", {"loss": 0.693147, "margin": 0.0}))
    listed: list[dict[str, Any]] = [
        {"name": n, "title": t, "status": "pass", "detail": d, "evidence": e, "remedy": None} for n, t, d, e in checks
    ]
    if warn:
        listed[0] |= {
            "status": "warn",
            "detail": "5.4 % of the rows were dropped: too_long 61, no_supervised_token 34, duplicate 12",
            "remedy": "raise max_length to 640 to keep the longer rows",
        }
    items = {"weights": 18.4e6, "gradients": 18.4e6, "optimizer": 36.9e6, "activations": 210e6, "logits chunk": 128e6}
    return {
        "checks": listed,
        "rows": [
            {"row": where, "kind": kind, "pieces": [{"text": text, "trained": trained} for text, trained in pieces]}
            for kind, where, pieces in rows
        ],
        "memory": {
            "items": [{"name": name, "bytes": int(needed)} for name, needed in items.items()],
            "total_bytes": int(sum(items.values())),
            "available_bytes": 5_900_000_000,
        },
    }


def schedule(done: float, peak: float) -> float:
    """Warm-up over a tenth, then a cosine."""
    return peak * done / 0.1 if done < 0.1 else peak * 0.5 * (1 + math.cos(math.pi * (done - 0.1) / 0.9))


def metric_line(step: int, epoch: float, values: dict[str, Any], split: str = "train") -> dict[str, Any]:
    return {"step": step, "epoch": epoch, "seconds": 0.4 * step, "split": split, "values": values, "counts": {}}


def write_stage(folder: Path, about: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "stage.json", about)


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def change_json(path: Path, **changes: Any) -> None:
    """Overwrite keys of a JSON object in place."""
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | changes)


SYSTEM = ("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n", False)
DEMONSTRATION = [
    SYSTEM,
    ("<|im_start|>user\nWhat is 17 + 25?<|im_end|>\n<|im_start|>assistant\n", False),
    ("17 + 25 = 42<|im_end|>", True),
    ("\n<|im_start|>user\nThank you!<|im_end|>\n<|im_start|>assistant\n", False),
    ("You are welcome.<|im_end|>", True),
    ("\n", False),
]
PROMPT = ("<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n", False)
CHOSEN = [SYSTEM, PROMPT, ("I am Pia, a small assistant.<|im_end|>", True)]
REJECTED = [SYSTEM, PROMPT, ("My name is Dora. And you?<|im_end|>", True)]

ALARMS: list[dict[str, Any]] = [
    {
        "step": 77,
        "name": "gradient_spike",
        "severity": "warning",
        "message": "the gradient norm is 54 times its running median",
        "evidence": {"grad_norm": 38.4, "running_median": 0.71},
        "remedy": "lower the learning rate or lengthen the warm-up",
        "last_good_checkpoint": "checkpoints/step-00000050",
    },
    {
        "step": 101,
        "name": "likelihood_displacement",
        "severity": "critical",
        "message": "the margin grew while the chosen answers became less likely than at the start",
        "evidence": {"reward_margin": 2.61, "logprob_chosen_change": -1.9, "logprob_rejected_change": -27.6},
        "remedy": "stop earlier, raise beta, or add the NLL term (method: dpo_nll)",
        "last_good_checkpoint": "checkpoints/step-00000050",
    },
]

RECIPE = """\
# From a base model to an assistant that knows its name
schema: 1
name: quickstart
model: embedded
seed: 0
out: runs
stages:
  - name: sft
    method: sft
    data: package://quickstart/sft.jsonl
    epochs: 2
  - name: pairs
    method: correction
    samples_per_prompt: 2
  - name: dpo
    method: dpo
    beta: 0.1   # strength of the reference
"""

CONFIG = """\
name: sft
method: sft
learning_rate: 0.002
epochs: 2
rows_per_step: 32
schedule:
  kind: cosine
  warmup_ratio: 0.1
optimizer:
  kind: adamw
  betas: [0.9, 0.95]
"""
