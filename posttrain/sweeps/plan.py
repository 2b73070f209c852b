"""What a sweep will run, before anything does: its runs, how often each stage is trained, and how long that takes.

    plan = planned(spec, "grid", trials=None, design_seed=0, before=None)
    print("\n".join(plan.said))
    # 9 runs: 3 settings (grid) x 3 seeds, into runs/quickstart-sweep
    # sft: trained 3 times for 9 runs
    # ...

Two runs share a stage where all that it depends on is the same. What a stage starts from is not there yet, so here it
stands for the settings that will make it; whether the stage is then really shared is decided by content.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from posttrain.config import Recipe, data_of, stage_fingerprint
from posttrain.config.lineage import started_from
from posttrain.config.merging import sources_in
from posttrain.config.nested import scorers_of, teachers_of
from posttrain.config.stages import StageSettings
from posttrain.runs.folder import RunFolder
from posttrain.runs.progress import clock
from posttrain.sweeps.designs import Settings, at_random, canonical, grid
from posttrain.sweeps.record import DONE, INTERRUPTED, PENDING, RUNNING, SweepRecord, SweepRun
from posttrain.sweeps.spec import SweepSpec, run_folder

GRID, RANDOM, OPTUNA = "grid", "random", "optuna"
DESIGNS = (GRID, RANDOM, OPTUNA)


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """The runs in their order, seeds of a setting together, each with its recipe."""

    spec: SweepSpec
    design: str
    runs: tuple[SweepRun, ...]
    recipes: Mapping[str, Recipe]
    """By run folder."""
    trials: int | None
    """Of a design that chooses its settings while it runs, how many it will try."""
    dropped: int
    """Runs of the folder that this design does not have."""

    @property
    def said(self) -> list[str]:
        settings = self.trials if self.trials is not None else len({run.setting for run in self.runs})
        seeds = len(self.spec.seeds)
        count = settings * seeds
        done = sum(run.status == DONE for run in self.runs)
        lines = [
            f"{_many(count, 'run')}: {_many(settings, 'setting')} ({self.design}) x {_many(seeds, 'seed')}, into "
            f"{self.spec.folder}{f'; {done} done' if done else ''}"
        ]
        for stage, trained in self.trainings().items():
            shared = "" if trained == len(self.runs) else ", shared by the others"
            lines.append(f"{stage}: trained {_many(trained, 'time')} for {_many(len(self.runs), 'run')}{shared}")
        if self.dropped:
            lines.append(f"{_many(self.dropped, 'run')} of the folder belong to another design: left as they are")
        seconds = self.seconds_left()
        if done < count:
            known = seconds is not None and self.trials is None
            lines.append(
                f"about {clock(seconds or 0)} are left for one process, by the stages that are done"
                if known
                else "how long it takes is known when the first run is done"
            )
        return lines

    def trainings(self) -> dict[str, int]:
        """How often each stage is trained, by name, in the recipe's order."""
        keys: dict[str, set[str]] = {}
        for recipe in self.recipes.values():
            for name, key in stage_keys(recipe).items():
                keys.setdefault(name, set()).add(key)
        return {name: len(found) for name, found in keys.items()}

    def seconds_left(self) -> float | None:
        """Of the stages that no run has finished, by the mean of those that were; None before the first."""
        took: dict[str, list[float]] = {}
        left: dict[str, set[str]] = {}
        made: dict[str, set[str]] = {}
        for run in self.runs:
            folder = RunFolder(self.spec.folder / run.folder)
            for name, key in stage_keys(self.recipes[run.folder]).items():
                stage = folder.stage(name)
                record = stage.stage() if stage.exists else None
                if record is None or record.status != "done":
                    left.setdefault(name, set()).add(key)
                    continue
                made.setdefault(name, set()).add(key)
                if record.shared is None and record.seconds is not None:
                    took.setdefault(name, []).append(record.seconds)
        total = 0.0
        for name, keys in left.items():
            missing = len(keys - made.get(name, set()))
            if missing and name not in took:
                return None
            total += missing * sum(took.get(name, ())) / max(1, len(took.get(name, ())))
        return total


def planned(
    spec: SweepSpec,
    design: str,
    *,
    trials: int | None,
    design_seed: int,
    before: SweepRecord | None,
) -> SweepPlan:
    """The runs of a design, each as an earlier call of the same sweep left it.

    Raises:
        ConfigError: the design cannot be made of these axes, or a recipe refuses one of its values.
    """
    tried: list[Settings] = []
    if design == GRID:
        tried = grid(spec.axes)
    elif design == RANDOM:
        tried = at_random(spec.axes, trials or 0, design_seed)
    elif before is not None:  # what was asked for before; the rest is chosen on the way
        known = {run.setting or 0: dict(run.settings) for run in before.runs}
        tried = [known[number] for number in sorted(known)]
    runs = runs_of(spec, tried, before, numbered=design != GRID)
    recipes = {run.folder: spec.recipe(dict(run.settings), run.seed or 0, run.folder) for run in runs}
    mine = {run.folder for run in runs}
    dropped = sum(run.folder not in mine for run in before.runs) if before is not None else 0
    return SweepPlan(spec, design, tuple(runs), recipes, trials if design == OPTUNA else None, dropped)


def runs_of(
    spec: SweepSpec, tried: Sequence[Settings], before: SweepRecord | None, *, numbered: bool, first: int = 0
) -> list[SweepRun]:
    """A run for each setting and seed; those that an earlier call has begun keep their folder and what became of them.

    Args:
        first: number of the first setting.
    """
    known = {(canonical(dict(run.settings)), run.seed): run for run in before.runs} if before is not None else {}
    taken = {run.folder for run in known.values()}
    runs = []
    for place, (settings, name) in enumerate(zip(tried, spec.names(tried, numbered=numbered), strict=True)):
        number = first + place
        name = f"t{number:03d}" if numbered else name
        for seed in spec.seeds:
            run = known.get((canonical(settings), seed))
            if run is None:
                folder = run_folder(name, seed)
                while folder in taken:
                    folder = f"{folder}-2"
                taken.add(folder)
                run = SweepRun(folder, number, settings, seed, PENDING)
            runs.append(replace(_as_it_stands(spec, run), setting=number))
    return runs


def _as_it_stands(spec: SweepSpec, run: SweepRun) -> SweepRun:
    """As its folder says: whoever removed it wants it made again, and who was killed wrote no last word."""
    folder = RunFolder(spec.folder / run.folder)
    if run.status == DONE and not (folder.exists and folder.run().status == "done"):
        return replace(run, status=PENDING, rungs=None)
    return replace(run, status=INTERRUPTED) if run.status == RUNNING else run


# ---------------------------------------------------------------- what is shared


def stage_keys(recipe: Recipe) -> dict[str, str]:
    """By stage, equal for stages that will be the same: settings, seeds, and the keys of all that they are made of."""
    keys: dict[str, str] = {}
    for stage in recipe.stages:
        above = started_from(recipe.stages, stage)
        start = recipe.model if above is None else keys[above.name]
        paths = [path for data in data_of(stage).values() for part in data.parts for path in part.path]
        made_of = [keys[name] for name in _named(stage) if name in keys]
        asked = [suite.model_dump(mode="json") for suite in recipe.evaluate.suites if suite.name in stage.chosen_by]
        settings = stage_fingerprint(
            stage, data=[*paths, *made_of], start_model=start, seed=recipe.seed, split_seed=recipe.split_seed
        )
        keys[stage.name] = hashlib.sha256(json.dumps([stage.name, settings, asked]).encode()).hexdigest()
    return keys


def _named(stage: StageSettings) -> list[str]:
    """The earlier stages whose rows or models it takes, beside the one that it starts from."""
    found = [part.stage for data in data_of(stage).values() for part in data.parts]
    found += [scorer.stage for _, scorer in scorers_of(stage)]
    found += [teacher.stage for _, teacher in teachers_of(stage)]
    found += [source.stage for _, source in sources_in(stage)]
    return [name for name in found if name is not None]


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
