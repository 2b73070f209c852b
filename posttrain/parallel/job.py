"""What a launcher says to a process about its job, in the environment: torchrun's variables. No torch is loaded here.

job_of(os.environ)      # Job(rank=2, size=4, local_rank=2, local_size=4, address="localhost", port=29400, ...)
job_of({})              # None: a process of its own
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from posttrain.errors import ConfigError

OWN_LAUNCHER = "POSTTRAIN_LAUNCHER"
"""Set for processes that posttrain itself has started: which of its launchers it was."""


@dataclass(frozen=True, slots=True)
class Job:
    """One rank of a job: Job(rank=5, size=8, local_rank=1, local_size=4, address="node1", port=29400, attempt=0,
    restarts=3, name="9f2c", launcher="torchrun")."""

    rank: int
    size: int
    local_rank: int
    """Among the processes of this machine; the number of its GPU."""
    local_size: int
    address: str
    port: int
    attempt: int
    """How often the job was started again before."""
    restarts: int
    """How often it may be."""
    name: str
    launcher: str

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def job_of(environment: Mapping[str, str]) -> Job | None:
    """The job that the environment describes; None where `RANK` or `WORLD_SIZE` is missing.

    Raises:
        ConfigError: a variable is missing, no whole number, or out of range; names it.
    """
    if "RANK" not in environment or "WORLD_SIZE" not in environment:
        return None
    size = _whole(environment, "WORLD_SIZE", least=1)
    rank = _whole(environment, "RANK", least=0, below=size)
    local_size = _whole(environment, "LOCAL_WORLD_SIZE", least=1, default=1)
    is_elastic = "TORCHELASTIC_RUN_ID" in environment
    return Job(
        rank=rank,
        size=size,
        local_rank=_whole(environment, "LOCAL_RANK", least=0, below=local_size, default=0),
        local_size=local_size,
        address=_text(environment, "MASTER_ADDR"),
        port=_whole(environment, "MASTER_PORT", least=1, below=65_536),
        attempt=_whole(environment, "TORCHELASTIC_RESTART_COUNT", least=0, default=0),
        restarts=_whole(environment, "TORCHELASTIC_MAX_RESTARTS", least=0, default=0),
        name=environment.get("TORCHELASTIC_RUN_ID", "job"),
        launcher=environment.get(OWN_LAUNCHER, "torchrun" if is_elastic else "the environment"),
    )


def _text(environment: Mapping[str, str], name: str) -> str:
    if not (value := environment.get(name, "").strip()):
        raise _refusal(name, None, "the first process's machine" if name == "MASTER_ADDR" else "a whole number")
    return value


def _whole(
    environment: Mapping[str, str], name: str, *, least: int, below: int | None = None, default: int | None = None
) -> int:
    if default is not None and name not in environment:
        return default
    text = _text(environment, name)
    bound = f"a whole number from {least}" + ("" if below is None else f" to {below - 1}")
    try:
        value = int(text)
    except ValueError:
        raise _refusal(name, text, bound) from None
    if value < least or (below is not None and value >= below):
        raise _refusal(name, text, bound)
    return value


def _refusal(name: str, found: str | None, expected: str) -> ConfigError:
    what = "missing" if found is None else "wrong"
    return ConfigError(
        f"the environment names a job of several processes, and its `{name}` is {what}",
        found=found,
        expected=expected,
        remedy="start it with `posttrain run RECIPE --processes N` or with torchrun; for a process of its own, unset "
        "RANK and WORLD_SIZE",
    )
