"""What `posttrain merge` does: from its words to adapters that are folded, or to settings that merge whole models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.cli.terminal import echo
from posttrain.cli.unused import note_unused, refuse_unused
from posttrain.errors import ConfigError, unknown

if TYPE_CHECKING:
    from posttrain.config.merging import MergeSettings

DTYPES = {"auto": "float32", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Of adapters: folded in fp32, and saved so unless something else is asked for."""
SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True, slots=True)
class AdapterMerge:
    """AdapterMerge("runs/mine/sft/model", [], [], "cat", density=None, dtype="auto", seed=0)"""

    start: str
    adapters: list[str]
    weights: list[float]
    method: str
    density: float | None
    dtype: str
    seed: int


def models_and_out(names: Sequence[str], adapters: Sequence[str]) -> tuple[list[str], Path]:
    """The models, and the folder that the last word names.

    Raises:
        ConfigError: there is one word only, or adapters are given beside several models.
    """
    if len(names) < 2:
        raise ConfigError(
            "nothing says where the merged model goes",
            found=f"`{names[0]}` alone",
            expected="models, and last a folder for the result",
            example="posttrain merge runs/a/model runs/b/model merged --method linear",
            remedy="write the folder behind the models",
        )
    if adapters and len(names) > 2:
        raise ConfigError(
            "`--adapter` puts an adapter on one base, and here are several models",
            found=", ".join(f"`{name}`" for name in names[:-1]),
            remedy="name the adapters' folders among the models, which are folded and then merged",
        )
    return list(names[:-1]), Path(names[-1])


def file_of(models: Sequence[str], adapters: Sequence[str]) -> Path | None:
    """The file of settings that stands in the place of models.

    Raises:
        ConfigError: adapters beside it, or a name like a file's with nothing there.
    """
    path = Path(models[0]).expanduser()
    if len(models) > 1 or not models[0].endswith(SUFFIXES):
        return None
    if not path.is_file():
        raise ConfigError("there is no such file of settings", where=path, remedy="check the path")
    refuse_unused("the file says which models are merged", "write them into the file", adapter=bool(adapters))
    return path


def is_of_adapters(models: Sequence[str], adapters: Sequence[str], method: str | None) -> bool:
    """Whether adapters are combined over their base, and not whole models merged: where `--adapter` is given, of one
    model alone, and of several under a method that combines adapters only."""
    from posttrain.config.merge_methods import MERGE_METHODS
    from posttrain.models.adapters.methods import METHODS

    return len(models) == 1 or bool(adapters) or (method in METHODS and method not in MERGE_METHODS)


def refuse_for_adapters(**given: Any) -> None:
    options = {name: bool(value) for name, value in given.items()}
    refuse_unused("adapters are combined over their own base", "leave it out, or name several models", **options)


def refuse_for_files(**given: Any) -> None:
    options = {name: bool(value) for name, value in given.items()}
    refuse_unused("the file says how its models are merged", "write it into the file", **options)


def numbers_of(text: str | None) -> list[float]:
    """ "0.5,0.5" -> [0.5, 0.5]"""
    try:
        return [float(word) for word in text.split(",")] if text else []
    except ValueError:
        raise ConfigError(
            "the weights are no numbers",
            where="--weights",
            found=text,
            example="--weights 0.5,0.5",
            remedy="correct it",
        ) from None


# ---------------------------------------------------------------- settings of a merge of whole models


def settings_of_options(
    models: Sequence[str],
    kind: str,
    weights: Sequence[float],
    written: Mapping[str, Any],
    assignments: Sequence[str],
    *,
    tokens: str,
    dtype: str,
    seed: int,
) -> MergeSettings:
    """The settings that the options say.

    Raises:
        UnknownKeyError: no such method, or a key that it has not.
        ConfigError: a value that there is not, or weights for a method without.
    """
    from posttrain.config.merge_methods import MERGE_METHODS
    from posttrain.config.merge_weights import weighted
    from posttrain.config.merging import MERGES
    from posttrain.config.yaml_text import split_assignment
    from posttrain.models import require_known

    if kind not in MERGE_METHODS:
        raise unknown("method", kind, MERGE_METHODS, where="--method")
    row = MERGE_METHODS[kind]
    keys = {*row.per_model, *row.options, "base"}
    given: dict[str, Any] = {name: value for name, value in written.items() if value is not None and name in keys}
    note_unused(
        f"the method {kind} drops no entries",
        density=written["density"] is not None and "density" not in keys,
        rescale=written["rescale"] is not None and "rescale" not in keys,
    )
    note_unused(f"the method {kind} draws nothing", seed=seed != 0 and not row.random)
    for assignment in assignments:
        source = f"--set {assignment}"
        words, value = split_assignment(assignment, source, example="--set lambda=0.5", whose=f"`{kind}`")
        given[".".join(words)] = value
    for name in [*models, *([written["base"]] if written["base"] else [])]:
        require_known(name)
    entries = weighted(kind, list(models), list(weights))
    asked = {"tokens": tokens, "dtype": "auto" if dtype == "auto" else DTYPES[dtype]}
    return MERGES[kind](**{"models": entries, **asked, **given})


def settings_of_file(path: Path, *, tokens: str, dtype: str) -> tuple[MergeSettings, int | None]:
    """The settings of a file, mergekit's or what a stage has under `merge`, and how many layers it counts.

    Raises:
        ConfigError: it is neither, or says what cannot be.
    """
    from posttrain.config.mergekit import from_mergekit, is_mergekit
    from posttrain.config.merging import MERGES
    from posttrain.config.yaml_text import parse

    text = path.read_text(encoding="utf-8")
    said = parse(text, str(path)).value
    asked = {"tokens": tokens} if tokens != "refuse" else {}
    asked |= {"dtype": DTYPES[dtype]} if dtype != "auto" else {}
    if is_mergekit(said):
        found = from_mergekit(text, str(path))
        for note in found.notes:
            echo(f"note: {note}", err=True)
        return found.settings.model_copy(update=asked), found.layers
    if isinstance(said, dict) and isinstance(said.get("merge"), dict):
        said = said["merge"]
    if not isinstance(said, dict) or not isinstance(said.get("kind"), str):
        recipe = isinstance(said, dict) and "stages" in said
        raise ConfigError(
            "the file says no merge",
            where=path,
            found="a recipe" if recipe else "no `kind` and no `merge_method`",
            expected="`kind` and `models`, as under a stage's `merge`, or a file of mergekit's",
            remedy="write `posttrain run FILE`" if recipe else "write `kind: ties` and `models: [...]`",
        )
    if said["kind"] not in MERGES:
        raise unknown("method", said["kind"], MERGES, where=f"{path}: kind")
    return MERGES[said["kind"]](**{**said, **asked}), None


# ---------------------------------------------------------------- carried out


def merge_models_of(settings: MergeSettings, layers: int | None, out: Path, seed: int, model_code: Any) -> None:
    from posttrain.cli.progress import progress_on
    from posttrain.cli.tables import merge_table
    from posttrain.cli.terminal import terminal
    from posttrain.models.folders.own_code import folder_code
    from posttrain.models.merging.comparison import conflict_sentence
    from posttrain.models.merging.run import merge_models

    with progress_on(terminal(stderr=True)) as progress, folder_code(model_code):
        report = merge_models(settings, out, seed=seed, layers=layers, say=progress.say, progress=progress)
    echo(str(report))
    if report.comparison is not None and report.comparison.base is not None:
        terminal().print(merge_table(report.comparison))
        echo(conflict_sentence(report.comparison))


def merge_adapters_of(chosen: AdapterMerge, out: Path, model_code: Any) -> None:
    from posttrain.cli.outputs import check_out_folder
    from posttrain.models import require_known
    from posttrain.models.adapters.methods import PRUNING, require_method

    method, density = chosen.method, 0.5 if chosen.density is None else chosen.density
    if method not in PRUNING:
        note_unused(f"the method {method} keeps every entry", density=density != 0.5)
    if "dare" not in method:
        note_unused(f"the method {method} draws nothing", seed=chosen.seed != 0)
    if not chosen.adapters and not chosen.weights:
        note_unused("one adapter of weight 1 is folded in as it is", method=method != "cat")

    require_method(method)
    check_out_folder(out, "the model")
    for name in (chosen.start, *chosen.adapters):
        require_known(name)

    import torch  # after all that can be refused without it

    from posttrain.cli.progress import progress_on
    from posttrain.cli.terminal import terminal
    from posttrain.models.adapters.combine import merge_adapters
    from posttrain.models.folders.own_code import folder_code

    with (
        progress_on(terminal(stderr=True)) as progress,
        progress.phase("merging and reading back", unit="files"),
        folder_code(model_code),
    ):
        report = merge_adapters(
            chosen.start,
            out,
            adapters=chosen.adapters,
            weights=chosen.weights,
            method=method,
            density=density,
            dtype=getattr(torch, DTYPES[chosen.dtype]),
            seed=chosen.seed,
            say=progress.say,
        )
    echo(str(report))
    if report.rounding:
        echo(f"rounding to {chosen.dtype} moved a logit by up to {report.rounding:.1e}")
