"""T75: a machine without GPU libraries imports the package, shows its help and trains SFT and DPO on its CPU.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOREIGN = (
    *("vllm", "sglang", "ray", "deepspeed", "flash_attn", "flashinfer", "xformers", "triton", "bitsandbytes", "apex"),
    *("transformer_engine", "liger_kernel", "unsloth", "trl", "wandb", "mlflow", "tensorboard"),
)
"""Engines, CUDA-only packages, other trainers and trackers: none of them is on a plain machine."""

BLOCKED = f"""
import sys

sys.modules.update(dict.fromkeys({FOREIGN!r}))
"""
"""Whatever this machine has: to the code that follows, these packages are not installed."""

EVERY_MODULE = """
import importlib, pkgutil, posttrain
for module in pkgutil.walk_packages(posttrain.__path__, "posttrain."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print(*sorted(name for name, module in sys.modules.items() if module is not None and "." not in name))
"""

TRAINING = """
import json, pathlib, posttrain as pt

folder = pathlib.Path(sys.argv[1])
said = folder / "said.jsonl"
said.write_text("".join(json.dumps({"prompt": f"Say {i}.", "completion": f"It is {i}."}) + "\\n" for i in range(16)))
pairs = folder / "pairs.jsonl"
pairs.write_text(
    "".join(json.dumps({"prompt": f"Say {i}.", "chosen": f"It is {i}.", "rejected": "No."}) + "\\n" for i in range(16))
)
quick = {"steps": 3, "rows_per_step": 8, "compute": {"device": "cpu"}}
sft = pt.train(pt.SFT(learning_rate=1e-3, **quick), "embedded", said, out=folder / "runs" / "sft")
dpo = pt.train(pt.DPO(learning_rate=1e-3, beta=0.1, **quick), sft.model, pairs, out=folder / "runs" / "dpo")
losses = {run.stage: [line.values["loss"] for line in run.lines("train")] for run in (sft, dpo)}
print(json.dumps({"losses": losses, "models": [str(run.model) for run in (sft, dpo)]}))
"""


def plain(code: str, *arguments: str) -> str:
    """Run it in a process of its own that sees no card and none of the foreign packages."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED + code, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_blocked_package_is_absent() -> None:
    """The test's own instrument: it must be able to fail."""
    with pytest.raises(AssertionError, match="import of triton halted"):
        plain("import triton")


def test_every_module_is_imported_without_them() -> None:
    loaded = plain(EVERY_MODULE).split()
    assert "posttrain" in loaded and "torch" in loaded
    assert not set(FOREIGN) & set(loaded)


def test_help_needs_no_heavy_library() -> None:
    """The command line answers before torch, transformers or a card is touched."""
    said = plain(
        """
from typer.testing import CliRunner
from posttrain.cli.app import app
result = CliRunner().invoke(app, ["--help"])
assert result.exit_code == 0 and "quickstart" in result.output
print("torch" in sys.modules, "transformers" in sys.modules)
"""
    )
    assert said.split() == ["False", "False"]


@pytest.mark.slow
def test_sft_and_dpo_train_on_the_cpu(tmp_path: Path) -> None:
    record = json.loads(plain(TRAINING, str(tmp_path)).splitlines()[-1])
    assert list(record["losses"]) == ["sft", "dpo"]
    assert all(len(losses) == 3 for losses in record["losses"].values())
    assert record["losses"]["dpo"][0] == pytest.approx(0.693147, abs=1e-5)
    assert record["losses"]["sft"][-1] < record["losses"]["sft"][0]
    assert all((Path(folder) / "model.safetensors").exists() for folder in record["models"])
