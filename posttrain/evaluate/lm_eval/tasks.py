"""Tasks by name, by file and by folder, loaded as lm-eval has them; what cannot be asked is refused before a model is.

    load_tasks(("arc_easy", "./tasks", "sums.yaml"))    # {"arc_easy": Task, "my_task": Task, "sums": Task}, and groups

A file's `data_files` are relative to the file, where they are there; lm-eval takes them from where the command runs.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from posttrain.config.text_suites import is_task_file
from posttrain.errors import ConfigError, MissingExtraError, SourceError, unknown


def require_lm_eval() -> None:
    """Raises MissingExtraError where lm-eval is not installed."""
    if find_spec("lm_eval") is None:
        raise MissingExtraError(
            "tasks of lm-eval need the package lm-eval",
            expected="the extra `lm_eval`",
            remedy="run `pip install 'posttrain[lm_eval]'`",
        )


def load_tasks(names: Sequence[str]) -> Mapping[str, Any]:
    """What `TaskManager.load` gives: {"tasks": {name: Task}, "groups": ..., "group_map": ...}.

    Raises:
        MissingExtraError: lm-eval is not installed.
        ConfigError: no such task, two tasks of one name, or a task that runs code or wants pictures.
        SourceError: a task's data cannot be read, as of a hub that cannot be reached.
    """
    require_lm_eval()
    from lm_eval.tasks import TaskManager

    files = [Path(name).expanduser() for name in names if is_task_file(name)]
    folders = list(dict.fromkeys(str(path if path.is_dir() else path.parent) for path in files))
    # Reading the thousands of tasks that come with lm-eval takes seconds, and a name of the user's own may be theirs.
    has_names = any(not is_task_file(name) for name in names)
    manager = TaskManager(include_path=folders or None, include_defaults=has_names)
    with TemporaryDirectory() as scratch, quiet():
        specs: list[str] = []
        for name in names:
            if is_task_file(name):
                specs += _of_path(Path(name).expanduser(), manager, Path(scratch))
            else:
                specs.append(_known(name, manager))
        loaded = _loaded(specs, names, manager)
    for name, task in loaded["tasks"].items():
        _require_askable(name, task)
    return loaded


def set_examples(loaded: Mapping[str, Any], num_fewshot: int | None, seed: int) -> None:
    """How many examples stand before a question, as lm-eval's own command sets it: a task that says 0 keeps it, and one
    that says nothing has none."""
    for task in loaded["tasks"].values():
        said = task.get_config("num_fewshot")
        if said is None or (num_fewshot is not None and said != 0):
            task.set_config(key="num_fewshot", value=num_fewshot or 0)
        task.set_fewshot_seed(seed=seed)


@contextmanager
def quiet() -> Iterator[None]:
    """Without lm-eval's remarks on the defaults that it takes: what counts of them stands in the results."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def fingerprint_of_tasks(names: Sequence[str]) -> str:
    """A hash of the files of tasks, and of what lies beside them; of names it is lm-eval's version that counts."""
    content = hashlib.sha256()
    for name in names:
        content.update(name.encode() if not is_task_file(name) else b"")
        path = Path(name).expanduser()
        inside = path if path.is_dir() else path.parent
        for file in sorted(inside.rglob("*")) if is_task_file(name) else ():
            if file.is_file() and "__pycache__" not in file.parts:
                content.update(str(file.relative_to(inside)).encode() + file.read_bytes())
    return content.hexdigest()


def _known(name: str, manager: Any) -> str:
    if name not in manager.all_tasks:
        raise unknown("task", name, manager.all_tasks, error=ConfigError, where="tasks", otherwise=_OTHERWISE)
    return name


_OTHERWISE = "`lm_eval ls tasks` lists them; a file of your own begins with ./ or ends in .yaml"


def _of_path(path: Path, manager: Any, scratch: Path) -> list[str]:
    """The tasks of a file or folder, with their data files located."""
    inside = path.resolve()
    found = [
        (name, entry)
        for name, entry in manager.task_index.items()
        if entry.yaml_path is not None and name in manager.all_subtasks
        if (file := Path(entry.yaml_path).resolve()) == inside or inside in file.parents
    ]
    if not found:
        raise ConfigError(
            "no task was found here",
            where=path,
            found="no file" if not path.exists() else "no YAML file with a `task:` that can be read",
            expected="a file of lm-eval's form, or a folder that holds some",
            example="{task: my_task, dataset_path: json, dataset_kwargs: {data_files: {test: rows.jsonl}}, ...}",
            remedy="check the path; docs/evaluation.md has a task file that runs",
        )
    return [_located(name, entry, scratch) for name, entry in found]


def _located(name: str, entry: Any, scratch: Path) -> str:
    """The task's name; or, where `data_files` lie beside its file, a file that includes it and names them whole."""
    folder = Path(entry.yaml_path).resolve().parent
    options = dict((entry.cfg or {}).get("dataset_kwargs") or {})
    files = options.get("data_files")

    def of(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: of(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [of(inner) for inner in value]
        return str(folder / value) if isinstance(value, str) and (folder / value).exists() else value

    located = of(files)
    if located == files:
        return name
    wrapper = scratch / f"{len(list(scratch.iterdir()))}.yaml"
    content = {
        "include": str(Path(entry.yaml_path).resolve()),
        "task": name,
        "dataset_kwargs": {**options, "data_files": located},
    }
    wrapper.write_text(json.dumps(content), encoding="utf-8")  # JSON is YAML
    return str(wrapper)


def _loaded(specs: Sequence[str], names: Sequence[str], manager: Any) -> Mapping[str, Any]:
    try:
        found: Mapping[str, Any] = manager.load(list(specs))
    except Exception as error:  # a task's data are read here, by whatever its file names
        if "Duplicate task" in str(error):
            raise ConfigError(
                "a task is asked twice", where="tasks", found=str(error), remedy="name it once, alone or by its group"
            ) from error
        raise SourceError(
            "the data of a task cannot be read",
            where=", ".join(names),
            found=f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}",
            expected="data on the hub that can be reached, in the cache of `datasets`, or in files here",
            remedy="where there is no network, write a task file with `dataset_path: json` and `data_files` "
            "(docs/evaluation.md)",
        ) from error
    return found


def _require_askable(name: str, task: Any) -> None:
    if getattr(task, "UNSAFE_CODE", False):
        raise ConfigError(
            f"the task `{name}` runs code that the model has written, outside of any sandbox",
            where="tasks",
            found=name,
            remedy="measure code with the reward `code` in a suite of kind `pass_at_k`, which has a sandbox "
            "(docs/sandbox.md)",
        )
    if getattr(task, "MULTIMODAL", False):
        raise ConfigError(
            f"the task `{name}` shows pictures, which no model here sees",
            where="tasks",
            found=name,
            remedy="leave it out",
        )
