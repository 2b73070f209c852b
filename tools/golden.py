"""Golden runs: what a set of small runs computes, bit for bit, before and after the code was moved or rewritten.

    python -m tools.golden run FOLDER          # runs all recipes below into FOLDER, a few minutes on two cores
    python -m tools.golden compare OLD NEW     # exit 1 and the differing values, if there are any

A refactoring changes no number: metrics, samples, rollouts, examinations, evaluations and every weight stay what they
were. Take both folders on one machine and with one number of threads, since processors round differently. What the
clock decides (seconds, tokens a second, dates) is left out; so is a key that only the new run has, which is reported
and no failure: a record may grow.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from posttrain.config import find_recipe, load_recipe
from posttrain.training.pipeline import run_recipe

QUICKSTART = "quickstart"

PPO_AND_PAIRS = """
schema: 1
name: golden
model: embedded
seed: 3
evaluate:
  suites:
    - {name: arithmetic, kind: number, prompts: package://heldout_arithmetic.jsonl, limit: 20,
       sampling: {temperature: 0.0, max_new_tokens: 40}}
stages:
  - {name: sft, method: sft, data: package://demonstrations.jsonl, steps: 20, rows_per_step: 16,
     learning_rate: 1.0e-3, max_length: 256, held_out: 0.05}
  - {name: kto, method: kto, data: FOLDER/feedback.jsonl, steps: 4, rows_per_step: 8, learning_rate: 1.0e-4,
     max_length: 256, held_out: 0, adapter: {kind: lora, rank: 4}}
  - {name: mixed, method: mix, losses: [{loss: dpo, weight: 0.7}, {loss: sft, weight: 1.0}],
     data: package://preferences.jsonl, steps: 4, rows_per_step: 8, learning_rate: 1.0e-4, max_length: 256,
     held_out: 0.05, compute: {tokens_per_microbatch: 512}}
  - {name: beta, method: beta_dpo, data: package://preferences.jsonl, steps: 4, rows_per_step: 8,
     learning_rate: 1.0e-4, max_length: 256}
  - {name: corrected, method: correction, data: FOLDER/wanted.jsonl,
     sampling: {temperature: 1.0, max_new_tokens: 24}}
  - {name: displaced, method: dpo, data: {stage: corrected}, steps: 2, rows_per_step: 8, learning_rate: 1.0e-4,
     max_length: 256}
  - {name: ppo, method: ppo, data: package://tasks.jsonl, rewards: [{kind: math}], steps: 3, prompts_per_step: 6,
     completions_per_prompt: 4, updates_per_rollout: 2, sampling: {temperature: 1.0, max_new_tokens: 32},
     learning_rate: 5.0e-5, held_out: 0.02, examine: {every_steps: 2}}
  - {name: rft, method: rft, data: package://tasks.jsonl, rewards: [{kind: math}], steps: 2, prompts_per_step: 6,
     completions_per_prompt: 4, sampling: {temperature: 1.0, max_new_tokens: 32}, learning_rate: 5.0e-5}
  - {name: online_pairs, method: online_dpo, data: package://tasks.jsonl, rewards: [{kind: math}], steps: 2,
     prompts_per_step: 6, completions_per_prompt: 4, sampling: {temperature: 1.0, max_new_tokens: 32},
     learning_rate: 5.0e-5}
  - {name: distilled, method: gkd, teacher: embedded, data: package://tasks.jsonl, steps: 2, prompts_per_step: 4,
     completions_per_prompt: 2, sampling: {temperature: 1.0, max_new_tokens: 24}, learning_rate: 5.0e-5}
"""
"""What the quickstart does not walk through: PPO and its value model, imitation, pairs of its own samples, a teacher,
adapters, unpaired feedback, a mix of objectives, one with a memory, corrections, and steps of many micro-batches."""

FEEDBACK = [
    {"prompt": f"What is {a} plus {b}?", "completion": f"It is {a + b + wrong}.", "label": not wrong}
    for a in range(3, 15)
    for b, wrong in ((4, 0), (9, 1))
]

WANTED = [{"prompt": row["prompt"], "completion": row["completion"]} for row in FEEDBACK if row["label"]]

CLOCK = re.compile(
    r"second|time|date|started|ended|memory|path|fingerprint|identity|environment|folder|file|hash|version|schema|"
    r"stamp|bytes|_at$|^pid$|host|probe|route"
)
"""Keys of what a clock, a machine or the place of a folder decides."""

FOLDERS = re.compile(r"(?<![\w.:])/(?:[^\s\"'/]+/)+")
"""An absolute path up to the file's name: rows are named after files, and two checkouts lie in two folders."""

LINES = ("metrics", "samples", "rollouts", "examinations", "alarms", "pairs", "dropped", "reward_scores")
RECORDS = ("evaluation", "reward_evaluation", "summary", "cross_scores", "pass_at_k", "stage")


def run(folder: Path) -> None:
    """Run every recipe into `folder`, which must not exist yet."""
    folder.mkdir(parents=True)
    for name, rows in (("feedback", FEEDBACK), ("wanted", WANTED)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    (folder / "golden.yaml").write_text(PPO_AND_PAIRS.replace("FOLDER", str(folder)))
    for name in (QUICKSTART, str(folder / "golden.yaml")):
        run_recipe(load_recipe(find_recipe(name), [f"out='{folder / Path(name).stem}'"]), fresh=True)


def facts(folder: Path) -> dict[str, str]:
    """Every number and text of a folder of runs: {"quickstart/dpo/metrics:3:loss": "0.69", ...}."""
    found: dict[str, str] = {}
    for kind in LINES:
        for path in sorted(folder.rglob(f"{kind}.jsonl")):
            for place, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
                found.update(_leaves(f"{path.relative_to(folder).with_suffix('')}:{place}", json.loads(line)))
    for kind in RECORDS:
        for path in sorted(folder.rglob(f"{kind}.json")):
            if "checkpoints" in path.parts or "model" in path.parts:
                continue
            found.update(_leaves(str(path.relative_to(folder).with_suffix("")), json.loads(path.read_text())))
    for path in sorted(folder.rglob("*.safetensors")):
        if path.parent.name == "model" or path.parent.parent.name == "model":
            found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _leaves(place: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if not CLOCK.search(str(key)):
                yield from _leaves(f"{place}:{key}", inner)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _leaves(f"{place}:{index}", inner)
    else:
        yield place, FOLDERS.sub("", json.dumps(value))


def compare(old: Path, new: Path) -> int:
    """Print what differs; 0 where the new run says all that the old one said."""
    before, after = facts(old), facts(new)
    gone = sorted(before.keys() - after.keys())
    changed = sorted(key for key in before.keys() & after.keys() if before[key] != after[key])
    more = sorted(after.keys() - before.keys())
    for title, keys in (("gone", gone), ("changed", changed), ("new", more)):
        print(f"{title}: {len(keys):,}")
        for key in keys[:40]:
            print(f"  {key}: {before.get(key, '-')[:60]} -> {after.get(key, '-')[:60]}")
    print(f"{len(before.keys() & after.keys()) - len(changed):,} values are the same, bit for bit")
    return 1 if gone or changed or not before else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.golden", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("run").add_argument("folder", type=Path)
    both = verbs.add_parser("compare")
    both.add_argument("old", type=Path)
    both.add_argument("new", type=Path)
    given = parser.parse_args()
    if given.verb == "run":
        run(given.folder.absolute())
        return 0
    return compare(given.old, given.new)


if __name__ == "__main__":
    sys.exit(main())
