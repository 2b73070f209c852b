"""What a rank holds of a sharded model: `python -m benchmarks.sharded_memory [--ranks 1 2 4] [--small]`.

A random llama of about 1 GB in fp32 is written once. Then for each number of ranks, processes of their own load it in
slices and take one step of SFT with AdamW on CPU (gloo). Shown is the largest resident set of a rank (VmHWM) beyond
what its imports took, after loading and after the step, and the size of the model beside it. File pages that were
mapped count as resident: a rank that read the whole file would show it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from torch import distributed as dist

SIZES = {"vocab_size": 32_000, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 17}
SMALL = {"vocab_size": 8_000, "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4}
TOKENS = 16
"""Of the step's only row on each rank: few, so that weights and moments are seen and not activations."""


@dataclass(frozen=True, slots=True)
class Row:
    """Row(ranks=4, loaded=300e6, stepped=1.3e9): bytes of the rank that took most, beyond its imports."""

    ranks: int
    loaded: int
    stepped: int


def high_water() -> int:
    """The largest resident set of this process so far, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM:"))) * 1024


def write_model(folder: Path, sizes: dict[str, int]) -> int:
    """A random model with a tokenizer beside it; its bytes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.fixtures import byte_tokenizer

    torch.manual_seed(0)
    config = LlamaConfig(**sizes, num_attention_heads=16, num_key_value_heads=8, tie_word_embeddings=True)
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="300MB")
    byte_tokenizer().save_pretrained(folder)
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def one_rank(rank: int, size: int, store: str, folder: str, found: str) -> None:
    """Load, one step, and what the process took to either point."""
    from posttrain.config.compute import Compute, Mesh
    from posttrain.config.settings import OptimizerSettings, Schedule
    from posttrain.data.trees import collate
    from posttrain.models.folders.loading import load
    from posttrain.models.sharding.mesh import sharding_of
    from posttrain.models.tree.logprobs import Policy
    from posttrain.training.optimizer import Optimizer
    from tests.fixtures import make_tree

    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, size), rank=rank, world_size=size)
    before = high_water()
    spread = sharding_of(Compute(mesh=Mesh(shard=size)), torch.device("cpu"), None)
    loaded = load(folder, sharding=spread)
    policy = Policy(loaded.model, "padded", sharding=loaded.sharding)
    after_loading = high_water()
    optimizer = Optimizer(policy.model, OptimizerSettings(), learning_rate=1e-5, schedule=Schedule(), steps=1)
    tree = make_tree([1, 2, 3], [(7 * place + rank) % 200 for place in range(TOKENS)])
    # On a path that is named, no proof is made: its short rows would hold nothing worth counting either.
    (-policy(collate([tree]), path="tree").logprobs_N.sum() / TOKENS).backward()
    optimizer.step(0)
    peaks: list[Any] = [None] * size
    dist.all_gather_object(peaks, (after_loading - before, high_water() - before))
    if rank == 0:
        Path(found).write_text(json.dumps(peaks), encoding="ascii")
    dist.barrier()  # a rank that leaves while another still talks to it ends both
    dist.destroy_process_group()


def measure(folder: Path, ranks: int) -> Row:
    with tempfile.TemporaryDirectory() as scratch:
        found = Path(scratch) / "found.json"
        arguments = (ranks, str(Path(scratch) / "store"), str(folder), str(found))
        mp.start_processes(one_rank, args=arguments, nprocs=ranks, start_method="spawn")
        peaks = json.loads(found.read_text(encoding="ascii"))
    return Row(ranks, max(loaded for loaded, _ in peaks), max(stepped for _, stepped in peaks))


HEADER = "| ranks | MB loaded | of the model | MB after a step | of four models |\n|---|---|---|---|---|"


def line(row: Row, model: int) -> str:
    loaded, stepped = row.loaded / model, row.stepped / (4 * model)
    return f"| {row.ranks} | {row.loaded / 1e6:,.0f} | {loaded:.2f} | {row.stepped / 1e6:,.0f} | {stepped:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--small", action="store_true", help="a model of 20 MB, to try the benchmark")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        model = write_model(Path(scratch) / "model", SMALL if options.small else SIZES)
        print(f"a model of {model / 1e6:,.0f} MB in fp32; weights, gradients and two moments are four of it\n")
        print(HEADER)
        for ranks in options.ranks:
            print(line(measure(Path(scratch) / "model", ranks), model), flush=True)


if __name__ == "__main__":
    main()
