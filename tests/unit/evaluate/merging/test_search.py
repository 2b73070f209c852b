"""A search over tiny models: halves of suites, merges in memory, and what a second attempt asks again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.config.merge_measures import WeightSearch
from posttrain.config.merging import merge_settings
from posttrain.config.suites import MatchSuite, PerplexitySuite
from posttrain.errors import ConfigError
from posttrain.evaluate.merging import search as search_module
from posttrain.evaluate.merging.memory import InMemory
from posttrain.evaluate.merging.search import halves_of, over_suites, searched, values_of, with_values
from posttrain.intervals import average
from posttrain.models.merging.run import merge_models, planned
from posttrain.runs.folder import StageFolder
from posttrain.runs.records.merging import SearchRecord
from tests.read_back import read_in_process
from tests.unit.models.merging.test_stream import save, weights


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    return save(folder / "a", 1), save(folder / "b", 2), save(folder / "base", 3)


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Any:
    yield from read_in_process(monkeypatch)


def suite(folder: Path, count: int = 10, **changes: Any) -> MatchSuite:
    path = folder / "prompts.jsonl"
    path.write_text("".join(f'{{"prompt": "question {index}"}}\n' for index in range(count)))
    sampling = {"temperature": 0.0, "max_new_tokens": 3}
    return MatchSuite(kind="match", name="s", prompts=str(path), pattern="[a-m]", sampling=sampling, **changes)  # type: ignore[arg-type]


def test_every_prompt_is_in_one_half_and_always_in_the_same(tmp_path: Path) -> None:
    halves = halves_of([suite(tmp_path)], 0.3, seed=0)
    choosing, reporting = ([q.text for q in half[0].questions] for half in (halves.choosing, halves.reporting))
    assert len(choosing) == 3 and sorted(choosing + reporting) == [f"question {index}" for index in range(10)]
    again, other = (halves_of([suite(tmp_path)], 0.3, seed=seed).choosing[0].questions for seed in (0, 1))
    assert again == halves.choosing[0].questions != other


def test_suites_that_cannot_choose(tmp_path: Path) -> None:
    surprise = PerplexitySuite(kind="perplexity", name="p", prompts=suite(tmp_path).prompts)
    with pytest.raises(ConfigError, match="gives no score to each answer"):
        halves_of([surprise], 0.5, seed=0)
    with pytest.raises(ConfigError, match="too few prompts"):
        halves_of([suite(tmp_path, count=1)], 0.5, seed=0)


def test_suites_count_alike_however_many_prompts_they_have() -> None:
    assert over_suites([[1.0, 0.0]]) == average([1.0, 0.0])
    found = over_suites([[1.0] * 30, [0.0] * 10])
    assert found.value == pytest.approx(0.5) and found.n == 40


def test_a_merge_in_memory_is_the_merge_that_is_written(
    models: tuple[Path, Path, Path], tmp_path: Path, faults: Any
) -> None:
    a, b, base = models
    settings = merge_settings("dare_ties", [a, {"model": b, "weight": 0.5}], base=base, density=0.5, dtype="bfloat16")
    merge_models(settings, tmp_path / "out", seed=3)
    with planned(settings, tmp_path / "x") as plan:
        place = InMemory.of(plan, "cpu", "search")
        place.put_merge(settings, seed=3)
        for name, tensor in weights(tmp_path / "out").items():
            assert torch.equal(place.weights[name], tensor.float()), name
        place.put_between(plan.models[0], plan.models[1], 0.25)
        ours, theirs = weights(a), weights(b)
        for name, tensor in place.weights.items():
            if name in ours:
                assert torch.allclose(tensor, 0.75 * ours[name] + 0.25 * theirs[name], atol=1e-6), name


def test_values_go_in_and_out(models: tuple[Path, Path, Path]) -> None:
    a, b, base = models
    settings = merge_settings("ties", [a, {"model": b, "weight": 0.5}], base=base, density=0.3)
    assert values_of(settings, "weights") == (1.0, 0.5) and values_of(settings, "density") == (0.3, 0.3)
    assert values_of(with_values(settings, "density", (0.1, 0.9)), "density") == (0.1, 0.9)
    assert values_of(with_values(merge_settings("slerp", [a, b], t=0.5), "t", (0.25,)), "t") == (0.25,)


def test_a_second_attempt_asks_nothing_again(
    models: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, _ = models
    settings = merge_settings("linear", [a, b])
    chosen_by = WeightSearch(suite="s", budget=4)
    folder = StageFolder(tmp_path / "stage")
    folder.path.mkdir()

    def run(identity: str) -> tuple[Any, SearchRecord, int]:
        asked = 0
        real = search_module.prompt_scores

        def counted(*given: Any) -> Any:
            nonlocal asked
            asked += 1
            return real(*given)

        with monkeypatch.context() as patch:
            patch.setattr(search_module, "prompt_scores", counted)
            found = searched(settings, chosen_by, [suite(tmp_path)], folder, identity=identity, device="cpu")
        record = folder.document(SearchRecord)
        assert record is not None
        return found, record, asked

    found, record, asked = run("one")
    # As written, each alone, and the second added (which is as written); then the reporting half.
    assert record.candidates[0].what == "as written" and len(record.candidates) == 3
    assert record.choosing == record.reporting == 5 and record.chosen is not None and record.reported is not None
    assert values_of(found, "weights") == record.chosen.values
    assert record.optimism == pytest.approx(record.chosen.score - record.reported.value)  # type: ignore[operator]
    assert "prompts that choose" in record.said and 4 <= asked <= 5
    again, same, reporting_only = run("one")
    assert (again, same) == (found, record) and reporting_only == asked - 3
    assert run("another")[2] == asked
