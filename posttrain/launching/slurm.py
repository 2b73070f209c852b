"""A job of Slurm: a script that a person can read, and `sbatch` for who does not want to.

    script = sbatch_script(SlurmJob(("mine.yaml",), "mine", nodes=4, processes_per_node=8, ...))

One task a machine, which is torchrun; they find each other at the first machine of the job. Before the time is up, and
where the job is preempted, the processes save at the end of the step under way, and the job is queued again.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from posttrain.errors import ConfigError, PosttrainError
from posttrain.runs.files import write_text

STOP_BEFORE = 300
"""Seconds before the end of its time at which Slurm asks the job to stop: a step, a checkpoint and the report."""
FIXED = ("nodes", "ntasks-per-node")
"""Options of sbatch that follow from the command's own."""

_OPTION = re.compile(r"[a-z][a-z0-9-]*")


@dataclass(frozen=True, slots=True)
class SlurmJob:
    """SlurmJob(("run", "mine.yaml"), "mine", nodes=4, processes_per_node=8, folder=Path("/home/me/work"),
    log="mine-%j.log", options={"partition": "gpu", "time": "24:00:00"})"""

    arguments: tuple[str, ...]
    """Of posttrain."""
    name: str
    nodes: int
    processes_per_node: int
    folder: Path
    """Where the command runs."""
    log: str
    """Where Slurm writes what the job says; its folder must be there when the job starts."""
    restarts: int = 0
    options: Mapping[str, str] = field(default_factory=dict)
    """More options of sbatch, and other values for those that the script has."""


def options_of(settings: list[str]) -> dict[str, str]:
    """options_of(["partition=gpu", "exclusive="]) -> {"partition": "gpu", "exclusive": ""}

    Raises:
        ConfigError: names what is no option of sbatch, or one that follows from another option of the command.
    """
    found: dict[str, str] = {}
    for setting in settings:
        key, sign, value = setting.partition("=")
        key = key.removeprefix("--")
        if not sign or not _OPTION.fullmatch(key) or "\n" in value:
            raise ConfigError(
                "`--set` takes an option of sbatch with its value",
                found=setting,
                expected="KEY=VALUE, as in partition=gpu",
                remedy="write `--set partition=gpu`; an option without a value ends with `=`: `--set exclusive=`",
            )
        if key in FIXED:
            raise ConfigError(
                f"`{key}` is not to be set twice",
                found=f"--set {setting}",
                remedy="give `--nodes`; each machine has one task, which starts `--processes-per-node` processes",
            )
        found[key] = value
    return found


def sbatch_script(job: SlurmJob) -> str:
    """The whole script."""
    count = job.nodes * job.processes_per_node
    options = {
        "job-name": f"posttrain-{job.name}",
        "nodes": str(job.nodes),
        "ntasks-per-node": "1",
        "output": job.log,
        "open-mode": "append",
        "requeue": "",
        "signal": f"B:TERM@{STOP_BEFORE}",
        **job.options,
    }
    lines = "\n".join(f"#SBATCH --{key}{f'={shlex.quote(value)}' if value else ''}" for key, value in options.items())
    return SCRIPT.format(
        title=f"posttrain {shlex.join(job.arguments)}: {count} processes on {job.nodes} machines",
        options=lines,
        folder=shlex.quote(str(job.folder)),
        processes=job.processes_per_node,
        nodes=job.nodes,
        restarts=job.restarts,
        stop_seconds=STOP_BEFORE - 20,
        python=shlex.quote(sys.executable),
        arguments=shlex.join(job.arguments),
    )


SCRIPT = """#!/bin/bash
# {title}
{options}

set -euo pipefail
cd {folder}

# The processes find each other at the first machine, on a port of this job's own.
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
first=${{hosts%%$'\\n'*}}
port=$((20000 + SLURM_JOB_ID % 20000))

# Cores are shared among the processes of a machine; torchrun would give each of them one.
threads=$((${{SLURM_CPUS_ON_NODE:-{processes}}} / {processes}))
export OMP_NUM_THREADS=${{OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}}

# Asked to stop, by Slurm before the time is up or by a preemption: pass it on, and wait for the checkpoint.
stopped=no
stop() {{
    stopped=yes
    kill -TERM "$step" 2> /dev/null || true
}}
trap stop TERM
# How long torchrun waits for its processes, before it kills them and the checkpoint is lost.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT={stop_seconds}

srun --kill-on-bad-exit=1 \\
    {python} -m torch.distributed.run \\
    --nnodes {nodes} --nproc-per-node {processes} --max-restarts {restarts} \\
    --rdzv-backend c10d --rdzv-endpoint "$first:$port" --rdzv-id "$SLURM_JOB_ID.${{SLURM_RESTART_COUNT:-0}}" \\
    -m posttrain {arguments} &
step=$!

# A signal ends a `wait` early, so once more until the step is over.
code=0
wait "$step" || code=$?
while kill -0 "$step" 2> /dev/null; do
    code=0
    wait "$step" || code=$?
done

if [ "$stopped" = yes ] && [ "$code" -ne 0 ]; then
    echo "stopped before the end; queued again, to go on from the last checkpoint"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def submit(script: str, path: Path) -> str:
    """Write the script and hand it to sbatch; gives what sbatch says.

    Raises:
        ConfigError: there is no sbatch here, or it refuses the script.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, script)
    try:
        done = subprocess.run(["sbatch", str(path)], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        remedy = "run it on a machine of the cluster from which jobs start"
        raise _refused("there is no `sbatch` here", None, remedy) from None
    if done.returncode:
        raise _refused("sbatch refuses the job", done.stderr.strip(), "change its options with `--set KEY=VALUE`")
    return done.stdout.strip()


def _refused(problem: str, found: str | None, remedy: str) -> PosttrainError:
    return ConfigError(problem, found=found, remedy=f"{remedy}; without `--submit` the script is printed")
