"""Ranks that do not run the same program on the same files are named before anything is computed."""

from __future__ import annotations

from pathlib import Path

from posttrain.errors import ConfigError
from posttrain.parallel import sameness
from posttrain.parallel.sameness import file_hash, program_facts, require_same, source_hash
from posttrain.parallel.world import ALONE, world
from tests.ranks import ranks


def same() -> None:
    require_same(program_facts(), world())


def other_code() -> None:
    facts = {"torch": "2.13.0", "source": "a" * 64 if world().rank != 2 else "b" * 64}
    if world().rank == 2:
        facts["seed"] = "7"
    require_same(facts, world())


def test_the_same() -> None:
    assert ranks(2).run(same) == [None, None]
    require_same({"a": "b"}, ALONE)


def test_a_rank_that_differs_is_named_with_both_values_on_all() -> None:
    outcomes = ranks(3).outcomes(other_code)
    for error in outcomes:
        assert isinstance(error, ConfigError)
        assert error.ranks == (2,)
        assert "2 of 3 differ" in error.problem
        assert "rank 2 on " in str(error.found)
        assert "seed 7" in str(error.found) and "source bbbbbbbbbbbb" in str(error.found)
        assert str(error.expected).endswith(": seed (none), source aaaaaaaaaaaa")


def test_the_sources_are_hashed_whole() -> None:
    assert len(source_hash()) == 64 and program_facts()["source"] == source_hash()
    assert program_facts()["default dtype"] == "torch.float32"


def test_a_file_by_its_content(tmp_path: Path, monkeypatch: object) -> None:
    one, two = tmp_path / "a", tmp_path / "b"
    one.write_bytes(b"x" * 100)
    two.write_bytes(b"x" * 100)
    assert file_hash(one) == file_hash(two)
    two.write_bytes(b"x" * 99 + b"y")
    assert file_hash(one) != file_hash(two)


def test_a_large_file_by_its_length_and_samples(tmp_path: Path) -> None:
    path = tmp_path / "large"
    size = 3 * sameness.SAMPLES * sameness.SAMPLE_BYTES
    with path.open("wb") as file:
        file.truncate(size)
    empty = file_hash(path)
    for place in (0, size - 1):  # both ends are read
        with path.open("r+b") as file:
            file.seek(place)
            file.write(b"x")
        assert file_hash(path) != empty
        with path.open("r+b") as file:
            file.seek(place)
            file.write(b"\0")
    assert file_hash(path) == empty
    with path.open("r+b") as file:
        file.truncate(size + 1)
    assert file_hash(path) != empty
