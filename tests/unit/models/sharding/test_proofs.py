"""Paths are proven on sharded models as on whole ones: by all ranks, on the same rows."""

from __future__ import annotations

import pytest

from tests.ranks import ranks
from tests.unit.models.sharding.scenes import Scene, proven


@pytest.mark.parametrize("scene", [Scene(), Scene(replicate=2)], ids=["2 ranks", "2 x 2"])
def test_a_right_path_holds_and_the_steps_gradients_stay(scene: Scene) -> None:
    for path, reasons, same in ranks(scene.ranks).run(proven, scene, None):
        assert (path, reasons, same) == ("tree", [], True)


@pytest.mark.parametrize("scene", [Scene(), Scene(replicate=2)], ids=["2 ranks", "2 x 2"])
def test_a_gradient_that_is_wrong_is_caught(scene: Scene) -> None:
    """`torch.autograd.grad` of shards gives zeros for both paths, whose difference is nothing."""
    for path, reasons, same in ranks(scene.ranks).run(proven, scene, "gradient"):
        assert path == "padded"
        assert "gradients by" in reasons[0]
        assert same
