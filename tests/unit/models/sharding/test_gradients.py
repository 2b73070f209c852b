"""A sharded model gives the values and gradients of one process, whatever it is and however it is spread."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from posttrain.types import Wants
from tests.adapters import EVERY
from tests.ranks import ranks
from tests.unit.models.sharding.scenes import Answer, Scene, answer, bytes_away, chosen_by

TIED = {"tie_word_embeddings": True}
NARROW = {"gemma2", "gemma3_text"}
"""Families whose norms compute in fp32 also where the weights are fp64: equal to fp32's rounding, and no better."""

SPREADS = {
    "2 ranks": Scene(),
    "3 ranks, uneven rows": Scene(shard=3),
    "4 ranks": Scene(shard=4, fields=TIED),
    "2 x 2": Scene(replicate=2, fields=TIED),
    "parked": Scene(parked=True, shard=4, fields=TIED),
    "2 x 2, parked": Scene(parked=True, replicate=2),
    "padded": Scene(path="padded", shard=4),
    "rows": Scene(path="rows", shard=4),
    "checkpointed": Scene(checkpointing=True),
    "offloaded": Scene(offloaded=True, adapter="lora"),
    "offloaded, checkpointed": Scene(offloaded=True, checkpointing=True, parked=True),
    "checkpointed, padded": Scene(checkpointing=True, path="padded", replicate=2),
    "entropy": Scene(wants=Wants(temperature=0.7, entropy=True)),
    "a matrix of two layers": Scene(odd="share"),
    "experts that some ranks' tokens miss": Scene(odd="experts", shard=4),
    "scores": Scene(kind="score", shard=4),
    "scores by rows": Scene(kind="score", path="rows"),
    "values": Scene(kind="value", replicate=2),
    "scores under lora": Scene(kind="score", adapter="lora"),
}
FAMILIES = ["gemma2", "qwen3_moe", "mixtral", "gpt2", "phi3", "opt"]


def gap(scene: Scene) -> tuple[float, Answer]:
    """The largest difference from one process, of a value or of an entry of a gradient, on any rank."""
    alone = answer(replace(scene, shard=1, replicate=1))
    worst = 0.0
    for found in ranks(scene.ranks).run(answer, scene):
        assert found.path == alone.path
        assert sorted(found.gradients) == sorted(alone.gradients)
        pairs: list[tuple[Any, Any]] = [(found.gradients[name], own) for name, own in alone.gradients.items()]
        pairs += [(torch.tensor(a), torch.tensor(b)) for a, b in zip(found.values, alone.values, strict=True)]
        worst = max(worst, *(float((a - b).abs().max()) for a, b in pairs))
    assert max(float(gradient.abs().max()) for gradient in alone.gradients.values()) > 1e-2  # there is one to miss
    return worst, alone


@pytest.mark.parametrize("name", SPREADS)
def test_every_spread_gives_the_numbers_of_one_process(name: str) -> None:
    worst, alone = gap(SPREADS[name])
    assert worst < 1e-10
    assert alone.path == SPREADS[name].path


def test_gathered_weights_do_not_move_with_activations() -> None:
    """Of an adapter's base, whose gathered matrices are saved for the backward pass and are no parameters of before.
    Norms do, which fused blocks detach: their vectors are far below what moves outside of tests."""
    scene = Scene(adapter="lora")
    alone, matrix = bytes_away(scene), 32 * 32 * 8
    assert all(0 <= found - alone < matrix for found in ranks(2).run(bytes_away, scene))


def test_the_tokens_of_some_ranks_miss_an_expert() -> None:
    by_tree = chosen_by(SPREADS["experts that some ranks' tokens miss"])
    of_ranks = [sum(by_tree[rank::4]) for rank in range(4)]
    assert min(of_ranks) == 0 < max(of_ranks)


@pytest.mark.parametrize("family", FAMILIES)
def test_so_does_every_family(family: str) -> None:
    worst, alone = gap(Scene(family, shard=2))
    assert worst < (1e-6 if family in NARROW else 1e-10)
    assert alone.path == "tree"


@pytest.mark.parametrize("adapter", EVERY)
def test_so_does_every_adapter(adapter: str) -> None:
    assert gap(Scene(adapter=adapter))[0] < 1e-10


def test_in_fp32_to_its_rounding() -> None:
    assert gap(Scene(dtype=torch.float32, shard=4))[0] < 1e-5


def test_weights_gathered_in_bf16_give_the_numbers_of_autocast() -> None:
    """Norms, which autocast leaves as they are kept, are gathered as they are kept."""
    narrow = Scene(dtype=torch.float32, autocast=torch.bfloat16)
    as_kept = gap(narrow)[0]
    assert as_kept < 2e-2  # bf16 rounds otherwise for other micro-batches
    for scene in (replace(narrow, gather=torch.bfloat16), replace(narrow, gather=torch.bfloat16, checkpointing=True)):
        assert gap(scene)[0] == pytest.approx(as_kept, rel=1e-3)
