"""A selection and its random twin over several seeds: what one training shows may be its seed.

    for seed in 0 1 2; do posttrain run select_vs_random name=twins-$seed seed=$seed; done

    for measure in pool_seeds(["runs/twins-0", "runs/twins-1", "runs/twins-2"]):
        print(measure.said)
    # arithmetic (accuracy), 3 seeds: on_picked beats its random twin on_random by 5 points [−4, 14], 200 prompts: the
    # gain may be chance; by seed +9, +2, +4

A seed draws the twin, the order of the rows and what the suites sample, so the interval is over seeds and prompts at
once (`intervals.over_seeds`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from posttrain.arguments import checked_list, checked_path
from posttrain.diagnostics.paired import scores_by_prompt
from posttrain.errors import ConfigError, DataError
from posttrain.evaluate.twins import UNKNOWN, meaning_of, verdict_of, words
from posttrain.intervals import Difference, over_seeds, sign_flip
from posttrain.runs.folder import RunFolder
from posttrain.runs.records.evaluation import Figure
from posttrain.runs.records.twins import TwinComparison

FEWEST_SEEDS = 3
"""Two say of their spread no more than that there is one."""

Measure = tuple[str, str, str, str]
"""Stage on the selection, stage on the twin, suite, metric."""
Moved = dict[str, float]
"""Selection minus twin by prompt."""


@dataclass(frozen=True, slots=True)
class PooledMeasure:
    """PooledMeasure("on_picked", "on_random", "arithmetic", "accuracy", by_seed={0: 0.09, 1: 0.02, 2: 0.04},
    difference=Difference(0.05, -0.04, 0.14, 200), verdict="chance", said="arithmetic (accuracy), 3 seeds: ...")"""

    selected: str
    twin: str
    suite: str
    metric: str
    by_seed: dict[int, float]
    """Selection minus twin."""
    difference: Difference
    """Their mean; the interval is over seeds and prompts."""
    verdict: str
    """gain, loss, chance or same."""
    said: str


def pool_seeds(runs: Sequence[str | os.PathLike[str]]) -> list[PooledMeasure]:
    """Every measure that all runs of one recipe have, over their seeds; those of which no scores of single prompts are
    kept (pass@k beyond 1) are left out.

    Raises:
        ConfigError: fewer than three runs, two of one seed, or a run without a finished comparison.
        DataError: the runs asked different prompts.
    """
    given = checked_list("runs", runs, of="run folders", example='["runs/s0", "runs/s1", "runs/s2"]')
    folders = [RunFolder(checked_path("runs", run, "runs/s0")) for run in given]
    if len(folders) < FEWEST_SEEDS:
        raise ConfigError(
            "too few runs to say what another seed would give",
            where="runs",
            found=f"{len(folders)}",
            expected=f"at least {FEWEST_SEEDS} run folders of one recipe, each of another seed",
            remedy="run the recipe again with `name=NAME-1 seed=1`",
        )
    by_seed: dict[int, dict[Measure, Moved]] = {}
    for folder in folders:
        comparisons = folder.twin_comparisons()
        if not any(comparison.figures for comparison in comparisons):
            raise ConfigError(
                "this run compares no selection with its random twin",
                where=folder.path,
                expected="twins.json with figures, as a recipe like `select_vs_random` writes it (docs/curation.md)",
                remedy="let the run finish, or leave it out",
            )
        seed = folder.stage(comparisons[0].selected).stage().seed or 0
        if seed in by_seed:
            raise ConfigError(
                f"two of the runs have the seed {seed}, which count as one",
                where=folder.path,
                remedy="leave one out, or run it with another `seed=`",
            )
        by_seed[seed] = {key: moved for one in comparisons for key, moved in _measures(folder, one)}
    first = next(iter(by_seed.values()))
    shared = [key for key in first if all(key in found for found in by_seed.values())]
    return [_pool(key, {seed: found[key] for seed, found in by_seed.items()}, folders[0]) for key in shared]


def _measures(folder: RunFolder, comparison: TwinComparison) -> list[tuple[Measure, Moved]]:
    """Of one run: selection minus twin by prompt."""
    found = []
    for figure in comparison.figures:
        if figure.verdict == UNKNOWN or figure.selected is None or figure.twin is None:
            continue
        own = scores_by_prompt(folder.stage(comparison.selected).answers(figure.suite), figure.selected)
        other = scores_by_prompt(folder.stage(comparison.twin).answers(figure.suite), figure.twin)
        if own is not None and other is not None and own.keys() == other.keys():
            moved = {prompt: own[prompt] - other[prompt] for prompt in own}
            found.append(((comparison.selected, comparison.twin, figure.suite, figure.metric), moved))
    return found


def _pool(key: Measure, found: dict[int, Moved], folder: RunFolder) -> PooledMeasure:
    selected, twin, suite, metric = key
    prompts = list(next(iter(found.values())))
    for seed, moved in found.items():
        if moved.keys() != set(prompts):
            raise DataError(
                "the runs did not answer the same prompts, so their differences cannot be put together",
                where=f"suite `{suite}`, seed {seed}",
                found=f"{len(moved)} prompts",
                expected=f"the {len(prompts)} prompts of the first run",
                remedy="run all seeds with the same suites",
            )
    moved_SP = np.array([[moved[prompt] for prompt in prompts] for moved in found.values()])
    difference = over_seeds(moved_SP)
    how = meaning_of(folder.stage(selected), suite, metric)
    verdict = verdict_of(difference, sign_flip(moved_SP.mean(axis=0)), how.wanted)
    means = {seed: float(mean) for seed, mean in zip(found, moved_SP.mean(axis=1), strict=True)}
    scale, name = (100, " points") if how.unit == "share" else (1, "")
    each = ", ".join(f"{scale * mean:+.3g}".replace("-", "\u2212") for mean in means.values())
    said = (
        f"{suite} ({how.title}), {len(means)} seeds: "
        f"{words((selected, twin), Figure.of(difference), verdict, how)}; by seed {each}{name}"
    )
    return PooledMeasure(selected, twin, suite, metric, means, difference, verdict, said)
