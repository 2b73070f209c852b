"""How models lie to each other, worked by hand, and as a merge streams by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.config.merging import merge_settings
from posttrain.models.folders.manifest import write_manifest
from posttrain.models.merging import comparison, stream
from posttrain.models.merging.comparison import Comparer, place_of
from posttrain.models.merging.run import merge_models
from tests.read_back import read_in_process
from tests.unit.models.merging.test_stream import save, weights

UP = "model.layers.1.mlp.up_proj.weight"


def test_norms_cosines_conflicts_and_changed_shares_by_hand() -> None:
    base = torch.tensor([[3.0, 0.0], [4.0, 0.0]])  # norm 5
    one = base + torch.tensor([[3.0, 4.0], [0.0, 0.0]])  # norm 5, half of the entries
    two = base + torch.tensor([[-1.0, 2.0], [0.0, 2.0]])  # norm 3, three of four
    merged = base + torch.tensor([[1.0, 3.0], [0.0, 1.0]])
    comparer = Comparer(["one", "two"], "base")
    comparer.add(UP, [one, two], base, merged)
    found = comparer.record("linear")
    assert [vector.norm for vector in found.vectors] == [5.0, 3.0]
    assert [vector.relative_norm for vector in found.vectors] == [1.0, 0.6]
    assert [vector.changed for vector in found.vectors] == [0.5, 0.75]
    # (3 * -1 + 4 * 2) / (5 * 3)
    assert found.cosines[0][1] == pytest.approx(1 / 3) and found.cosines[1][1] == 1.0
    assert found.merged is not None and found.merged.norm == pytest.approx(11**0.5)
    assert found.merged_cosines[0] == pytest.approx((3 + 12) / (5 * 11**0.5))
    # Both changed the first two entries, one of which in opposite directions.
    assert found.conflict == 0.5
    assert [(part.part, part.entries, part.norms, part.conflict) for part in found.layers] == [
        ("layer 1", 4, (5.0, 3.0), 0.5)
    ]
    assert [part.part for part in found.kinds] == ["mlp.up_proj"]


def test_blocks_and_chunks_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    base, one, two, merged = (torch.randn(12, 5, generator=generator) for _ in range(4))
    whole = Comparer(["one", "two"], "base")
    whole.add(UP, [one, two], base, merged)
    monkeypatch.setattr(comparison, "CHUNK", 7)
    blocks = Comparer(["one", "two"], "base")
    for rows in (slice(0, 4), slice(4, 12)):
        blocks.add(UP, [one[rows], two[rows]], base[rows], merged[rows])
    ours, theirs = whole.record("x"), blocks.record("x")
    assert ours.conflict == theirs.conflict and ours.vectors[0].changed == theirs.vectors[0].changed
    assert ours.cosines[0][1] == pytest.approx(theirs.cosines[0][1], abs=1e-12)


def test_models_that_changed_nothing_have_no_angle_and_no_conflict() -> None:
    base = torch.ones(3)
    comparer = Comparer(["one", "two"], "base")
    comparer.add("norm.weight", [base, base + 1], base, base)
    found = comparer.record("linear")
    assert found.cosines == ((None, None), (None, 1.0)) and found.merged_cosines == (None, None)
    assert found.conflict is None and found.layers[0].conflict is None


@pytest.mark.parametrize(
    ("name", "place"),
    [
        (UP, ("layer 1", "mlp.up_proj")),
        ("model.layers.0.self_attn.q_proj.bias", ("layer 0", "self_attn.q_proj")),
        ("model.embed_tokens.weight", ("embed_tokens", "embed_tokens")),
        ("transformer.h.3.attn.c_attn.weight", ("layer 3", "attn.c_attn")),
    ],
)
def test_where_a_tensor_belongs(name: str, place: tuple[str, str]) -> None:
    assert place_of(name) == place


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Any:
    yield from read_in_process(monkeypatch)


def test_a_merge_compares_what_goes_by(tmp_path: Path, faults: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, base = (save(tmp_path / name, seed) for name, seed in (("a", 1), ("b", 2), ("base", 3)))
    monkeypatch.setattr(stream, "BLOCK_BYTES", 1_000)  # so that tensors come in blocks
    found = merge_models(merge_settings("task_arithmetic", [a, b], base=base), tmp_path / "out").comparison
    assert found is not None and found.base == str(base) and found.not_compared == ()
    ours, theirs, ground = weights(a), weights(b), weights(base)
    one = torch.cat([(ours[name] - ground[name]).double().reshape(-1) for name in ground])
    two = torch.cat([(theirs[name] - ground[name]).double().reshape(-1) for name in ground])
    assert found.vectors[0].norm == pytest.approx(float(one.norm()), rel=1e-6)
    assert found.cosines[0][1] == pytest.approx(float(one @ two / one.norm() / two.norm()), abs=1e-6)
    assert found.conflict == pytest.approx(float((one * two < 0).double().sum() / ((one != 0) & (two != 0)).sum()))
    assert found.merged is not None and found.merged.norm == pytest.approx(float((one + two).norm()), rel=1e-5)
    parts = found.layers
    assert parts[0].part == "embed_tokens" and parts[-1].part in ("norm", "lm_head")
    assert sum(part.norms[0] ** 2 for part in parts) == pytest.approx(float(one @ one), rel=1e-6)  # type: ignore[operator]


def test_a_method_without_a_base_is_compared_over_what_the_folders_name(tmp_path: Path, faults: Any) -> None:
    a, b, base = (save(tmp_path / name, seed) for name, seed in (("a", 1), ("b", 2), ("base", 3)))
    plain = merge_models(merge_settings("linear", [a, b]), tmp_path / "plain").comparison
    assert plain is not None and plain.base is None and "nothing says" in plain.note and plain.vectors == ()
    for folder in (a, b):
        write_manifest(folder, {"kind": "model", "base": {"name": str(base)}})
    found = merge_models(merge_settings("linear", [a, b]), tmp_path / "named").comparison
    over = merge_models(merge_settings("task_arithmetic", [a, b], base=base), tmp_path / "over").comparison
    assert found is not None and over is not None
    assert found.base == str(base) and found.vectors == over.vectors and found.cosines == over.cosines
