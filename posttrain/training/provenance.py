"""When and where a run ran, as its run folder says."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import psutil
import torch

from posttrain.runs.records.stage import Machine


def now() -> str:
    """2026-03-01T12:00:00+00:00"""
    return datetime.now(UTC).isoformat(timespec="seconds")


def environment(device: torch.device | None = None) -> Machine:
    """What a figure of this run was measured on.

    Args:
        device: that the stage computes on; the machine's own choice if not given.
    """
    cuda = torch.cuda.is_available() and (device is None or device.type == "cuda")
    return Machine(
        python=platform.python_version(),
        torch=str(torch.__version__),
        transformers=metadata.version("transformers"),
        platform=platform.platform(),
        cpu=_processor(),
        device=torch.cuda.get_device_name(device) if cuda else device.type if device is not None else "cpu",
        threads=torch.get_num_threads(),
        memory_gb=round(psutil.virtual_memory().total / 1e9, 1),
    )


def _processor() -> str:
    """AMD EPYC: the model's name where Linux tells it, else the architecture."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        if names:
            return names[0]
    return platform.processor() or platform.machine()
