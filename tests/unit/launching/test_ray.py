"""A job on a real Ray cluster of two nodes on this machine, in the environment that `make test-ray` makes."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import ConfigError
from tests.unit.launching.test_local import ROOT, _rank_of, left_over, until_step

pytest.importorskip("ray", reason="`make test-ray` installs Ray apart")
# What Ray does at its own import and end is not ours to mend.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    from ray.cluster_utils import Cluster

    os.environ["PYTHONPATH"] = str(ROOT)
    memory = 80_000_000
    here = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": memory},
    )
    here.add_node(num_cpus=1, object_store_memory=memory)
    yield here.address
    here.shutdown()


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path) -> Iterator[None]:
    yield
    deadline = time.monotonic() + 20
    while left_over(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left_over(tmp_path) == []


def run(address: str, how: str, folder: Path, **more: Any) -> tuple[int, str]:
    from posttrain.launching.ray_cluster import RayLaunch, launch_on_ray

    said: list[str] = []
    wanted = RayLaunch(**{"nodes": 2, "processes_per_node": 1, "address": address, "module": "tests.toy_job", **more})
    code = launch_on_ray([how, str(folder)], wanted, said.append)
    return code, "\n".join(said)


def test_two_nodes(cluster: str, tmp_path: Path) -> None:
    assert run(cluster, "well", tmp_path) == (0, "well: start 1")
    assert (tmp_path / "logs" / "rank-1.log").exists()


def test_the_error_of_a_rank_is_said_once(cluster: str, tmp_path: Path) -> None:
    code, said = run(cluster, "raise", tmp_path)
    assert code == 1
    assert (
        len(re.findall(r"rank 1 of 2 on \S+ failed \(`update`, .*\): ValueError: no number in the answer", said)) == 1
    )


def test_a_killed_rank_and_a_restart(cluster: str, tmp_path: Path) -> None:
    code, said = run(cluster, "kill_once", tmp_path, restarts=1)
    assert code == 0
    assert "starting all 2 processes again (1 of 1 restarts)" in said
    assert re.search(r"rank 1 of 2 on \S+ failed \(`update`, .*\): its process is gone", said)
    assert "well: start 2 after rank 1 of 2" in said


def test_a_signal_stops_all_between_two_steps(cluster: str, tmp_path: Path) -> None:
    def send() -> None:
        until_step(tmp_path)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=send)
    thread.start()
    code, said = run(cluster, "well", tmp_path)
    thread.join()
    assert code == 143 and re.fullmatch(r"stopped after step \d+ of 40", said)


def test_an_actor_that_dies_is_named_by_its_rank(cluster: str, tmp_path: Path) -> None:
    import psutil

    def kill() -> None:
        until_step(tmp_path)
        rank = next(pid for pid in left_over(tmp_path) if _rank_of(pid) == "1")
        psutil.Process(rank).parent().kill()

    thread = threading.Thread(target=kill)
    thread.start()
    code, said = run(cluster, "well", tmp_path)
    thread.join()
    assert code == 1 and re.search(r"rank 1 of 2 on the Ray cluster failed \(.*\): its Ray actor failed", said)


def test_a_cluster_without_room(cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from posttrain.launching import ray_cluster

    monkeypatch.setattr(ray_cluster, "PLACING_SECONDS", 2.0)
    with pytest.raises(ConfigError, match="no room") as refused:
        run(cluster, "well", tmp_path, nodes=3)
    assert "on each of 3 machines" in str(refused.value.expected)


def test_no_cluster(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no Ray cluster here"):
        run("127.0.0.1:6399", "well", tmp_path)
