"""Whether all ranks run the same program on the same input, asked before anything is computed.

    require_same(program_facts() | {"recipe": "9f2c..."}, world())

Ranks that differ do not fail: each computes its share of another run, and the sum is a model that nobody asked for.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path

import torch

from posttrain.errors import ConfigError
from posttrain.parallel.world import World

SAMPLES, SAMPLE_BYTES = 32, 1 << 20
"""How much of a large file is read: as many pieces, evenly over its length, of that size."""


def require_same(facts: Mapping[str, str], here: World) -> None:
    """Compare facts with those of all ranks; collective.

    Raises:
        ConfigError: on every rank, if a rank's differ from those of rank 0; names the ranks, with both values.
    """
    everyone = here.gather((platform.node(), dict(facts)))
    host, expected = everyone[0]
    lines: list[str] = []
    differing: dict[int, list[str]] = {}
    for rank, (other, found) in enumerate(everyone[1:], start=1):
        if names := [name for name in sorted(expected.keys() | found.keys()) if found.get(name) != expected.get(name)]:
            differing[rank] = names
            lines += [f"rank {rank} on {other}: {name} {_shown(found, name)}" for name in names]
    if not differing:
        return
    all_names = sorted({name for names in differing.values() for name in names})
    error = ConfigError(
        f"the processes of this job are not the same: {', '.join(map(str, list(differing)[:8]))} of {here.size} differ",
        found="; ".join(lines[:8]) + (f"; and {len(lines) - 8} more" if len(lines) > 8 else ""),
        expected=f"as on rank 0 on {host}: " + ", ".join(f"{name} {_shown(expected, name)}" for name in all_names),
        remedy="give all machines the same environment, the same recipe and the same files; nothing was computed",
    )
    error.ranks = tuple(differing)
    raise error


def _shown(facts: Mapping[str, str], name: str) -> str:
    value = facts.get(name, "(none)")
    # A hash says by its beginning that it differs.
    return value[:12] if len(value) == 64 and value.isalnum() else value.replace(" ", "_")


def program_facts() -> dict[str, str]:
    """What computes: the packages, posttrain's own sources, and how this machine's torch does arithmetic."""
    facts = {name: metadata.version(name) for name in ("posttrain", "torch", "transformers", "peft", "tokenizers")}
    facts["python"] = ".".join(platform.python_version_tuple()[:2])
    facts["source"] = source_hash()
    facts["default dtype"] = str(torch.get_default_dtype())
    facts["matmul precision"] = torch.get_float32_matmul_precision()
    facts["processor"] = f"{platform.machine()}/{torch.backends.cpu.get_cpu_capability()}"
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        facts["device"] = f"{torch.cuda.get_device_name()} ({major}.{minor})"
        facts["tf32"] = str(torch.backends.cuda.matmul.allow_tf32)
        facts["bf16"] = str(torch.cuda.is_bf16_supported())
    return facts


@cache
def source_hash() -> str:
    """sha256 over posttrain's own .py files: a checkout that somebody edits keeps its version."""
    package = Path(__file__).parent.parent
    found = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        found.update(path.relative_to(package).as_posix().encode())
        found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


def file_hash(path: Path) -> str:
    """sha256 of a file's length and content; of one above 64 MiB, of 32 pieces of 1 MiB evenly over it, so that every
    rank can afford it. Two large files that differ between the pieces alone are not told apart."""
    size = path.stat().st_size
    found = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= 2 * SAMPLES * SAMPLE_BYTES:
            while piece := file.read(SAMPLE_BYTES):
                found.update(piece)
        else:
            for sample in range(SAMPLES):
                file.seek((size - SAMPLE_BYTES) * sample // (SAMPLES - 1))
                found.update(file.read(SAMPLE_BYTES))
    return found.hexdigest()
