"""A new offline loss is one file and one row: recipes, checks, training and records know it from there.

The package is copied (by links), a file with a link function is put beside the others, and a row beside the rows of the
pairwise table. A recipe then trains with the new method by name.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import posttrain

PACKAGE = Path(posttrain.__file__).parent
TABLE = "losses/pairwise.py"

NEW_FILE = '''"""A link that makes more of a clear lead: -log sigmoid(lead + lead^3)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from posttrain.losses.links import Rewards
from posttrain.losses.responses import Parameters


def cubic(rewards: Rewards, parameters: Parameters) -> Tensor:
    return -F.logsigmoid(rewards.lead_Q + rewards.lead_Q**3)
'''
NEW_ROW = """        "cubic_dpo": PairwiseRow(
            scores.LOG_RATIO_SUM,
            cubic.cubic,
            {"beta": 0.1},
            "a loss that somebody adds",
        ),
"""
RECIPE = """
schema: 1
name: new
model: embedded
stages:
  - {name: mine, method: cubic_dpo, beta: 0.2, data: package://preferences.jsonl, steps: 2, rows_per_step: 4,
     held_out: 0, learning_rate: 1.0e-4, max_length: 128}
"""


def package_with_the_loss(folder: Path) -> Path:
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, folder / "posttrain", copy_function=os.symlink, ignore=ignored)
    (folder / "posttrain/losses/cubic.py").write_text(NEW_FILE)
    text = (PACKAGE / TABLE).read_text(encoding="utf-8")
    start = "PAIRWISE: Mapping[str, PairwiseRow] = MappingProxyType(\n    {\n"
    known = "from posttrain.losses import dynamic_beta, links, scores\n"
    assert text.count(start) == text.count(known) == 1
    text = text.replace(known, "from posttrain.losses import cubic, dynamic_beta, links, scores\n")
    (folder / "posttrain" / TABLE).unlink()
    (folder / "posttrain" / TABLE).write_text(text.replace(start, start + NEW_ROW), encoding="utf-8")
    return folder


def test_a_new_offline_loss_trains_from_a_recipe(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(package_with_the_loss(tmp_path / "package"))}
    (tmp_path / "new.yaml").write_text(RECIPE)
    command = [sys.executable, "-m", "posttrain", "run", "new.yaml", "--out", "run"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    stage = tmp_path / "run" / "new" / "mine"
    steps = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    values = [record["values"] for record in steps if record["split"] == "train"]
    assert math.isclose(values[0]["loss"], math.log(2), abs_tol=1e-6)  # the policy is its start
    assert values[1]["reward_margin"] > 0 and values[1]["loss"] < math.log(2)
    preflight = json.loads((stage / "preflight.json").read_text())
    assert {check["name"] for check in preflight["checks"]} >= {"identity", "gradient"}


def test_the_tables_of_methods_follow_the_row(tmp_path: Path) -> None:
    script = (
        "from posttrain.config import Preference\n"
        "from posttrain.training.objectives import ALGORITHMS, METHODS, algorithm, objective_of\n"
        "from posttrain.types import Comparison\n"
        "assert METHODS['cubic_dpo'].kind is Comparison and 'cubic_dpo' in ALGORITHMS\n"
        "objective = objective_of(Preference('cubic_dpo', beta=0.3))\n"
        "assert objective.parameters == {'beta': 0.3} and objective.needs_reference\n"
        "assert algorithm('cubic_dpo').parameters == {'beta': 0.1}\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(package_with_the_loss(tmp_path / "package"))}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
