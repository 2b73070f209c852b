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
from difflib import get_close_matches
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from posttrain.config.text_suites import is_task_file
from posttrain.errors import ConfigError, MissingExtraError, PosttrainError, SourceError, unknown

LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names of the longest answer in a task's `generation_kwargs`; the first that is given counts, as in lm-eval."""
OPTIONS = (*LENGTHS, "until", "do_sample", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "num_beams")


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
    """Without lm-eval's remarks on the defaults that it takes, whose weight stands in the results, and without the bars
    of it and of `datasets`, which would break the lines of a progress that is shown beside them."""
    import datasets
    from lm_eval.api import task

    logger = logging.getLogger("lm_eval")
    before, bars, tqdm = logger.level, datasets.is_progress_bar_enabled(), task.tqdm
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    task.tqdm = partial(tqdm, disable=True)
    try:
        yield
    finally:
        logger.setLevel(before)
        task.tqdm = tqdm
        if bars:
            datasets.enable_progress_bars()


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
        # lm-eval has thousands: a list of them all would be longer than any terminal keeps.
        near = get_close_matches(name, manager.all_tasks, n=5)
        expected = f"one of lm-eval's {len(manager.all_tasks):,} tasks and groups"
        raise unknown(
            "task",
            name,
            near,
            error=ConfigError,
            where="tasks",
            expected=f"{expected}, such as {', '.join(near)}" if near else expected,
            otherwise=_OTHERWISE,
        )
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
    except Exception as error:  # a task's data are read here, by whatever its file names, and its first row is rendered
        if "Duplicate task" in str(error):
            raise ConfigError(
                "a task is asked twice", where="tasks", found=str(error), remedy="name it once, alone or by its group"
            ) from error
        raise _refused(error, ", ".join(names)) from error
    return found


def _refused(error: Exception, where: str) -> PosttrainError:
    """What to tell of an error of lm-eval's: whether data are out of reach, or the task's file asks what is not there.

    Errors of the network, of the hub and of files are all OSErrors; `datasets` ends the reading of an empty file with a
    StopIteration."""
    words = str(error).strip().splitlines()
    found = f"{type(error).__name__}: {words[0] if words else ''}".removesuffix(": ")
    if isinstance(error, StopIteration):
        return SourceError(
            "a file of the task's data holds no rows",
            where=where,
            found=found,
            remedy="write rows into its `data_files`",
        )
    if isinstance(error, OSError) or type(error).__module__.startswith(("datasets", "huggingface_hub", "httpx")):
        return SourceError(
            "the data of a task cannot be read",
            where=where,
            found=found,
            expected="data on the hub that can be reached, in the cache of `datasets`, or in files here",
            remedy="where there is no network, write a task file with `dataset_path: json` and `data_files`, relative "
            "to that file (docs/evaluation.md)",
        )
    return ConfigError(
        "the task's file asks for something that is not there",
        where=where,
        found=found,
        expected="keys, metrics and filters of lm-eval, splits of the data, and columns of its rows in `doc_to_text`, "
        "`doc_to_choice` and `doc_to_target`",
        remedy="correct the file; docs/evaluation.md has one that runs",
    )


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
    if task.OUTPUT_TYPE == "generate_until":
        require_options(task.get_config("generation_kwargs") or {}, name)


def require_options(options: Mapping[str, Any], task: str) -> None:
    """
    Raises:
        ConfigError: an option of sampling that we do not know, or beams.
    """
    for name in options:
        if name not in OPTIONS:
            raise unknown("option", name, OPTIONS, error=ConfigError, where=f"generation_kwargs of {task}")
    if options.get("num_beams", 1) != 1:
        raise ConfigError(
            "beams are not searched: an answer is sampled, or the likeliest token is taken each time",
            where=f"generation_kwargs of {task}",
            found=f"num_beams: {options['num_beams']}",
            remedy="write `num_beams: 1` in the task's file, or evaluate with lm-eval's own `hf` backend",
        )


def require_answers(name: str, task: Any, limit: int | None) -> None:
    """
    Raises:
        ConfigError: a document's right answer is none of its choices. lm-eval warns, and counts it as wrong whatever
            the model says.
    """
    if task.OUTPUT_TYPE != "multiple_choice" or task.multiple_input:
        return
    for number, document in enumerate(task.eval_docs):
        if limit is not None and number >= limit:
            return
        choices, target = task.doc_to_choice(document), task.doc_to_target(document)
        for one in target if isinstance(target, list) else [target]:
            if one in choices if isinstance(one, str) else -len(choices) <= one < len(choices):
                continue
            raise ConfigError(
                "the right answer of a document is none of its choices",
                where=f"{name}, document {number}",
                found=f"{one!r}",
                expected=f"a place from 0 to {len(choices) - 1}, or one of {', '.join(map(repr, choices))}"[:200],
                remedy="correct `doc_to_target` in the task's file (a column's name, or a template), or the row",
            )
