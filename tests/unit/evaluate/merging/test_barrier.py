"""The barrier between two models: worked by hand, and its ends on tiny models."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.config.merge_measures import BarrierSettings
from posttrain.config.merging import Merge, merge_settings
from posttrain.errors import ConfigError
from posttrain.evaluate.merging.barrier import barrier_of, measured_barriers, sentence
from tests.unit.models.merging.test_stream import save


def test_a_barrier_is_the_largest_loss_above_the_line_between_the_ends() -> None:
    # The line goes 1, 1.5, 2, 2.5, 3; above it 0, 0.5, 2, 0.75, 0.
    found = barrier_of("a", "b", [1.0, 2.0, 4.0, 3.25, 3.0], rows=3, tokens=10)
    assert found.height == 2.0 and found.at == 0.5
    assert [(point.at, point.straight) for point in found.points] == [
        (0.0, 1.0), (0.25, 1.5), (0.5, 2.0), (0.75, 2.5), (1.0, 3.0),
    ]  # fmt: skip
    assert sentence(found).startswith("a to b: a barrier, the loss rises 2.00 nats per token")


def test_a_valley_is_no_barrier() -> None:
    found = barrier_of("a", "b", [2.0, 1.0, 2.0], rows=3, tokens=10)
    assert found.height == 0.0 and "no barrier" in sentence(found)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text('{"prompt": "Who?", "completion": "Pia."}\n{"prompt": "What?", "completion": "A model."}\n')
    return str(path)


def test_the_ends_are_the_models_and_equal_models_have_no_barrier(tmp_path: Path, rows: str) -> None:
    a, b, base = (save(tmp_path / name, seed) for name, seed in (("a", 1), ("b", 2), ("base", 3)))
    settings = BarrierSettings(data=rows, points=3, lines="all")
    merge = merge_settings("task_arithmetic", [a, b], base=base)
    found = measured_barriers(merge, settings, tmp_path / "out", device="cpu")
    assert [(one.first, one.second) for one in found] == [(str(x), str(y)) for x, y in ((a, b), (base, a), (base, b))]
    # Whichever line a model stands at the end of, its loss is the same.
    assert found[0].points[0].loss == pytest.approx(found[1].points[-1].loss, abs=1e-6)
    assert found[0].points[-1].loss == pytest.approx(found[2].points[-1].loss, abs=1e-6)
    assert found[0].rows == 2 and found[0].height is not None and found[0].height >= 0
    same = measured_barriers(merge_settings("linear", [a, a]), BarrierSettings(data=rows), tmp_path / "o", device="cpu")
    assert same[0].height == pytest.approx(0.0, abs=1e-6) and len(same[0].points) == 11


def test_what_has_no_line_is_refused(tmp_path: Path, rows: str) -> None:
    a, b = (save(tmp_path / name, seed) for name, seed in (("a", 1), ("b", 2)))
    with pytest.raises(ConfigError, match="nothing says which base"):
        measured_barriers(merge_settings("linear", [a, b]), BarrierSettings(data=rows, lines="base"), tmp_path / "out")
    with pytest.raises(ConfigError, match="the middle of the line would be no point"):
        BarrierSettings(data=rows, points=4)
    with pytest.raises(ConfigError, match="a line needs two models"):
        Merge(name="m", merge={"kind": "passthrough", "models": ["a"]}, barrier=rows)  # type: ignore[arg-type]
