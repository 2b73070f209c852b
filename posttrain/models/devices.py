"""Where a model computes: the words of `compute.device` and `--device` to a device that is really there, its memory.

The first thing that a stage or a verb asks for, so that a missing card is an error before anything is read or loaded.
"""

from __future__ import annotations

import os

import psutil
import torch

from posttrain.arguments import described, wrong_argument
from posttrain.errors import ConfigError
from posttrain.parallel.world import job

EXPECTED = "auto, cpu, cuda, cuda:N or mps"


def device_of(name: str | torch.device = "auto") -> torch.device:
    """device_of("auto") -> cuda where there is one, else cpu; device_of("cuda:1") -> that card.

    Raises:
        ConfigError: the device is not known, or this machine does not have it.
    """
    if isinstance(name, str) and name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise ConfigError(
            f"there is no device {str(name)[:80]!r}",
            found=described(name),
            expected=EXPECTED,
            remedy="write auto, or one of these",
        ) from None
    if device.type == "cuda":
        _check_cuda(device)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(
            "this machine has no Apple GPU that torch can use",
            found=str(device),
            expected=EXPECTED,
            remedy="write `device: cpu`, or `device: auto`, which takes what there is",
        )
    return device


DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""Names of `compute.precision` and of `transformers`, for weights."""


def dtype_of(name: str | torch.dtype) -> torch.dtype:
    """dtype_of("bf16") -> torch.bfloat16; a dtype of torch is itself.

    Raises:
        ConfigError: weights cannot be of it.
    """
    found = DTYPES.get(name) if isinstance(name, str) else name
    if isinstance(found, torch.dtype) and found.is_floating_point:
        return found
    raise wrong_argument(
        "dtype",
        name,
        expected=f"a dtype of torch with a fraction, or one of {', '.join(DTYPES)}",
        remedy='write `dtype="bf16"`, or leave `dtype` out for fp32',
    )


def _check_cuda(device: torch.device) -> None:
    if not torch.cuda.is_available():
        # Two causes with two remedies: another wheel of torch, or a driver that torch does not see.
        built = "this torch was built without CUDA" if torch.version.cuda is None else "torch sees no CUDA device"
        raise ConfigError(
            "the device `cuda` is asked for, and there is none here",
            found=f"{device}; {built}",
            expected="a machine with an NVIDIA card, its driver, and a torch built for CUDA",
            remedy="write `device: cpu`, or `device: auto`, which takes what there is",
        )
    count = torch.cuda.device_count()
    if device.index is not None and device.index >= count:
        raise ConfigError(
            f"there is no device {str(device)!r}",
            found=f"{count} CUDA device{'' if count == 1 else 's'}",
            expected=f"cuda:0 to cuda:{count - 1}" if count > 1 else "cuda:0",
            remedy="write one of these, or `device: auto`",
        )


def available_bytes(device: torch.device) -> int:
    """What this process can still allocate there: of a machine's memory its share, where a job has several on it."""
    # Of the whole card: what other processes hold there is taken off, as it is from the machine's memory.
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available) // processes_here()


def processes_here() -> int:
    """How many processes of this job share the machine; by the launcher's word, or else all of them."""
    here = job()
    return 1 if here.is_alone else int(os.environ.get("LOCAL_WORLD_SIZE", here.size))


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: torch's own on a card, its allocator's RuntimeError on CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # The CPU's allocator has no error of its own; "DefaultCPUAllocator: can't allocate memory" is all that tells it.
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)
