"""How many ranks there are, and which of them share what: `--gpus 64 --nodes 8`, `--mesh shard=8,replicate=8`.

Ranks of one shard group hold a share of the weights each (FSDP2); groups that are replicas hold the same and sum their
gradients (HSDP).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from posttrain.errors import ConfigError
from posttrain.models.sharding.mesh import mesh_sizes


@dataclass(frozen=True, slots=True)
class Mesh:
    """Mesh(shard=8, replicate=4, nodes=4): 32 ranks, eight on each of four machines."""

    shard: int = 1
    replicate: int = 1
    nodes: int = 1

    @property
    def ranks(self) -> int:
        return self.shard * self.replicate

    @property
    def per_node(self) -> int:
        return self.ranks // self.nodes

    def __str__(self) -> str:
        return f"{{shard: {self.shard}, replicate: {self.replicate}}}"


def mesh_of(text: str | None = None, *, gpus: int | None = None, nodes: int = 1, device: str = "cuda") -> Mesh:
    """The mesh that was asked for; without `text` the one that `compute.mesh: auto` takes.

    Args:
        text: "shard=8,replicate=4"; what is left out is found from the number of cards.
        gpus: ranks in all; without it as many as `text` says, else one.
        nodes: machines that they are spread over evenly.
        device: cuda shards within a machine and replicates across; cpu replicates.

    Raises:
        ConfigError: the numbers do not go together.
    """
    asked = _parsed(text) if text else {}
    ranks = gpus if gpus is not None else asked.get("shard", 1) * asked.get("replicate", 1) if asked else nodes
    if ranks < 1 or nodes < 1:
        raise ConfigError(
            "there is no mesh of less than one card", found=f"{ranks} cards, {nodes} machines", remedy=ASK
        )
    if ranks % nodes:
        raise ConfigError(
            "the cards are not spread evenly over the machines",
            found=f"--gpus {ranks} --nodes {nodes}",
            expected=f"a multiple of {nodes} cards",
            remedy=f"write `--gpus {-(-ranks // nodes) * nodes}`, or another number of machines",
        )
    if not asked:
        sizes = mesh_sizes("auto", world=ranks, device=torch.device(device), on_this_machine=ranks // nodes)
        return Mesh(sizes.shard, sizes.replicate, nodes)
    shard = asked.get("shard") or _rest(ranks, asked["replicate"], text)
    replicate = asked.get("replicate") or _rest(ranks, shard, text)
    if shard * replicate != ranks:
        raise ConfigError(
            "shard times replicate is the number of cards",
            found=f"{shard} x {replicate} = {shard * replicate}, and {ranks} cards",
            expected=f"{ranks}",
            remedy=f"write `--mesh shard={shard}` with a divisor of {ranks}, or `--gpus {shard * replicate}`",
        )
    return Mesh(shard, replicate, nodes)


ASK = "write `--gpus N` with the cards of all machines together, at least 1"


def _parsed(text: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(shard|replicate)\s*=\s*([1-9]\d*)\s*", part)
        if match is None or match[1] in found:
            raise ConfigError(
                "the mesh cannot be read",
                where="--mesh",
                found=text,
                expected="shard=S, replicate=R or both, each a whole number from 1",
                example="--mesh shard=8,replicate=4",
                remedy="write it like that",
            )
        found[match[1]] = int(match[2])
    return found


def _rest(ranks: int, part: int, text: str | None) -> int:
    if ranks % part:
        raise ConfigError(
            "the mesh does not divide the cards",
            where="--mesh",
            found=f"{text}, and {ranks} cards",
            expected=f"a divisor of {ranks}",
            remedy=f"write `--gpus {-(-ranks // part) * part}`, or another mesh",
        )
    return ranks // part
