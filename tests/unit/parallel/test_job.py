"""What torchrun's variables say of a process, and which of them are refused."""

from __future__ import annotations

import pytest

from posttrain.errors import ConfigError
from posttrain.parallel.job import Job, job_of

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "29400",
    "TORCHELASTIC_RUN_ID": "9f2c",
    "TORCHELASTIC_RESTART_COUNT": "1",
    "TORCHELASTIC_MAX_RESTARTS": "3",
}


def test_torchruns_variables() -> None:
    assert job_of(TORCHRUN) == Job(5, 8, 1, 4, "node1", 29400, 1, 3, "9f2c", "torchrun")
    assert job_of({**TORCHRUN, "POSTTRAIN_LAUNCHER": "ray"}).launcher == "ray"  # type: ignore[union-attr]


def test_a_process_of_its_own() -> None:
    assert job_of({}) is None
    assert job_of({"RANK": "0", "MASTER_ADDR": "node1"}) is None  # somebody else's variable


def test_a_plain_scheduler_names_no_local_rank() -> None:
    """One process a container, as Kubernetes' training operator starts them."""
    job = job_of({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "first", "MASTER_PORT": "23456"})
    assert job is not None and (job.local_rank, job.local_size, job.attempt, job.restarts) == (0, 1, 0, 0)
    assert job.launcher == "the environment" and not job.is_main


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("RANK", "8", "8"),
        ("RANK", "-1", "-1"),
        ("WORLD_SIZE", "0", "0"),
        ("WORLD_SIZE", "eight", "eight"),
        ("LOCAL_RANK", "4", "4"),
        ("MASTER_PORT", "70000", "70000"),
        ("MASTER_ADDR", " ", None),
        ("MASTER_PORT", None, None),
    ],
)
def test_what_is_wrong_is_named(name: str, value: str | None, found: str | None) -> None:
    environment = {key: text for key, text in {**TORCHRUN, name: value}.items() if text is not None}
    with pytest.raises(ConfigError) as refused:
        job_of(environment)
    assert f"`{name}`" in refused.value.problem and refused.value.found == found
