"""What saving, reading and exporting a model that ranks share costs: a random Llama of about 1 GB, made here.

    python -m benchmarks.sharded_checkpoint                   # 1, 2 and 4 ranks
    python -m benchmarks.sharded_checkpoint --ranks 4 --layers 8 --export-only

Prints one JSON object for each number of ranks: seconds, and by how much the anonymous memory of the worst rank grew at
most while it saved (a copy of what it writes is part of it), read, and exported; `_file_mb` is the same of pages of
files that it has mapped, which are the system's and not its own. `held` is what a rank has in memory before: its share
of weights and moments. One rank is one process without torch.distributed, whose files are whole. The fresh process that
reads the export back loads a whole model and is counted apart. `layer` and `end` are the largest parts of the model.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.merge_stream import make_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--export-only", action="store_true", help="neither saves nor reads a checkpoint")
    arguments = parser.parse_args()
    import torch.multiprocessing as processes

    scratch = Path(tempfile.mkdtemp(prefix="sharded-checkpoint-"))
    try:
        maker = processes.get_context("spawn").Process(target=make_model, args=(scratch / "start", arguments.layers, 0))
        maker.start()
        maker.join()
        for size in arguments.ranks:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            processes.spawn(_measure, (size, port, scratch, arguments.export_only), nprocs=size)
            for made in ("checkpoints", "model"):
                shutil.rmtree(scratch / made, ignore_errors=arguments.export_only)
    finally:
        shutil.rmtree(scratch)


def _measure(rank: int, size: int, port: int, scratch: Path, export_only: bool) -> None:
    import torch
    from torch import distributed as dist

    from posttrain.config.compute import Compute, Mesh
    from posttrain.config.settings import OptimizerSettings, Schedule
    from posttrain.models.folders.export_shared import begin_shared_save
    from posttrain.models.folders.loading import load
    from posttrain.models.sharding.mesh import sharding_of
    from posttrain.models.sharding.shards import mesh_of
    from posttrain.models.tree.logprobs import Policy
    from posttrain.parallel.world import world
    from posttrain.training import checkpoint, sharded_checkpoint
    from posttrain.training.optimizer import Optimizer

    torch.set_num_threads(1)
    if size > 1:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": str(size)}
        dist.init_process_group("gloo")
    cpu = torch.device("cpu")
    spread = sharding_of(Compute(mesh=Mesh(shard=size, replicate=1)), cpu, None)
    empty = _resident("RssAnon:")
    loaded = load(scratch / "start", dtype=torch.float32, sharding=spread)
    for parameter in loaded.model.parameters():
        parameter.requires_grad_(True)
    policy = Policy(loaded.model, sharding=spread)
    optimizer = Optimizer(
        policy.model, OptimizerSettings(), learning_rate=1e-4, schedule=Schedule(kind="constant"), steps=9
    )
    for _, parameter in optimizer.named:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(0)
    state = {"random_state": checkpoint.random_state()}
    parts = checkpoint.parts_of(policy.model, optimizer, {})
    named = {name: parameter.numel() * 4 / 1e6 for name, parameter in policy.model.named_parameters()}
    figures: dict[str, Any] = {
        "ranks": size,
        "held_mb": (_resident("RssAnon:") - empty) / 1e6,
        "model_mb": sum(named.values()),
        "layer_mb": sum(mb for name, mb in named.items() if ".layers.0." in name),
        "end_mb": max(mb for name, mb in named.items() if ".layers." not in name),
    }

    def save() -> None:
        folder = scratch / "checkpoints"
        if mesh_of(parameter for _, parameter in optimizer.named) is None:
            checkpoint.save(folder, step=1, model=policy.model, optimizer=optimizer, state=state, keep=1)
            return
        begun = time.perf_counter()
        writing = sharded_checkpoint.begin(folder, 1, checkpoint.tensors_of(parts), state, 1)
        figures["save_blocks_s"] = round(time.perf_counter() - begun, 2)
        writing.result()

    def read() -> None:
        kept, bad = checkpoint.read_together(scratch / "checkpoints" / "step-00000001", world())
        assert not bad
        checkpoint.restore(kept, policy.model, optimizer)
        world().barrier()

    def export() -> None:
        pending = begin_shared_save(
            policy.model, loaded.tokenizer, scratch / "model", base=loaded.base, sharding=loaded.sharding
        )
        figures["export_writes_s"] = round(time.perf_counter() - figures.pop("begun"), 2)
        pending.wait()

    acts = {"save": save, "read": read, "export": export}
    for name, act in acts.items() if not export_only else [("export", export)]:
        figures |= _timed(name, act, figures)
    worst = {key: max(part[key] for part in world().gather(figures)) for key in figures}
    if rank == 0:
        print(json.dumps({key: round(value, 1) for key, value in worst.items() if key != "begun"}), flush=True)
    if size > 1:
        dist.destroy_process_group()


def _timed(name: str, act: Callable[[], None], figures: dict[str, Any]) -> dict[str, float]:
    began = figures["begun"] = time.perf_counter()
    with _grown() as most:
        act()
    return {
        f"{name}_s": time.perf_counter() - began,
        f"{name}_mb": most["RssAnon:"] / 1e6,
        f"{name}_file_mb": most["RssFile:"] / 1e6,
    }


@contextmanager
def _grown() -> Iterator[dict[str, int]]:
    """By how much each kind of memory grew at most; the kernel keeps a high-water mark of their sum alone."""
    before = {kind: _resident(kind) for kind in ("RssAnon:", "RssFile:")}
    most = dict.fromkeys(before, 0)
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.005):
            for kind, start in before.items():
                most[kind] = max(most[kind], _resident(kind) - start)

    watching = threading.Thread(target=look)
    watching.start()
    try:
        yield most
    finally:
        over.set()
        watching.join()


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(name))) * 1024


if __name__ == "__main__":
    main()
