"""Functions of the user's own, by their addresses: `module:name`, or `file.py:name`.

`build` makes a reward of one. Suites and objectives of the user's own are imported by the same `imported`, so that an
address means one thing, and is refused with one error, wherever a recipe has one.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.config.functions import file_of, unwrapped
from posttrain.errors import FOREIGN, ConfigError, PosttrainError, did_you_mean, nearest_file, unknown
from posttrain.rewards import text
from posttrain.rewards.scorer import Scorer

if TYPE_CHECKING:
    from posttrain.config.rewards import FunctionReward


def build(settings: FunctionReward, folder: Path | None) -> Scorer:
    function = imported(settings.function, folder)
    if settings.parameters:
        require_parameters(function, settings.function, settings.parameters)
        function = functools.partial(function, **settings.parameters)
    return Scorer(settings.label, function, settings.weight, text.gold if settings.verifies else None)


def require_parameters(
    function: Callable[..., Any], address: str, parameters: Mapping[str, Any], *, what: str = "reward", given: int = 3
) -> None:
    """Every key under `parameters` is a parameter of the function, which would otherwise raise at its first call.

    Args:
        what: "reward", for "the reward function".
        given: how many parameters come first, which posttrain gives: prompt, completion and task.

    Raises:
        UnknownKeyError: a key that the function does not take.
    """
    taken = inspect.signature(function).parameters.values()
    # It takes any name, so none can be wrong.
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken):
        return
    known = [
        parameter.name
        for parameter in taken
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ][given:]
    for key in parameters:
        if key not in known:
            raise unknown(
                "parameter",
                key,
                known,
                problem=f"the {what} function `{address}` has no parameter `{key}`",
                found=f"{address.rpartition(':')[2]}{inspect.signature(function)}",
                expected=f"of {', '.join(known)}"
                if known
                else f"no `parameters`: it has none beside the first {given}",
                otherwise=f"remove `{key}`, or add it to the function",
            )


def imported(address: str, folder: Path | None, *, what: str = "reward", key: str = "function") -> Callable[..., Any]:
    """The function of an address, from the recipe's folder or among what is installed.

    Args:
        what: "reward", for "the reward function" in errors.
        key: the recipe's key that holds the address.

    Raises:
        ConfigError: the module cannot be imported, or what is named is no function.
        UnknownKeyError: the module has no such name.
    """
    module_name, _, path = address.partition(":")
    file = file_of(address, folder)
    if file is not None and not file.is_file():
        raise _no_such_file(address, file, what, key)
    try:
        target: Any = importlib.import_module(module_name) if file is None else _from_file(file)
    except PosttrainError:  # an objective that is declared wrong says so itself
        raise
    except FOREIGN as error:  # the boundary: other people's code
        looked = "what is installed" if folder is None else f"{folder} and what is installed"
        raise ConfigError(
            f"the {what} function `{address}` cannot be imported",
            found=f"{type(error).__name__}: {error}{_place_in(file, error)}",
            expected=f"a module with this function, in {looked}" if file is None else f"a module that runs: {file}",
            remedy=f"write `{key}: module:name`, with module.py beside the recipe or installed"
            if file is None
            else "mend the module",
        ) from None
    module = target
    for name in path.split("."):
        if name not in vars(target):
            raise _no_such_function(address, path, module, what)
        target = vars(target)[name]
    if not callable(target):
        raise ConfigError(
            f"`{address}` is no function", found=type(target).__name__, remedy="name a function of the module"
        )
    return target


def _place_in(file: Path | None, error: BaseException) -> str:
    """ " (line 3)": where the user's own module failed; "" where it never ran."""
    if isinstance(error, SyntaxError):
        return ""  # its text has the line
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if file and frame.filename == str(file)
    ]
    return f" (line {lines[-1]})" if lines else ""


def _no_such_file(address: str, file: Path, what: str, key: str) -> ConfigError:
    there = sorted(path.name for path in file.parent.glob("*.py")) if file.parent.is_dir() else []
    near = nearest_file(file.name, there)
    return ConfigError(
        f"the {what} function `{address}` is in a file that is not there",
        found=str(file),
        expected=f"one of {', '.join(there[:8])}" if there else f"a Python file in {file.parent}",
        remedy=did_you_mean(near, f"write `{key}: file.py:name`, relative to the recipe"),
    )


def _no_such_function(address: str, name: str, module: Any, what: str) -> ConfigError:
    functions = {key: unwrapped(value) for key, value in vars(module).items() if callable(value)}
    made_here = [
        key
        for key, value in functions.items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not key.startswith("_")
    ]
    return unknown(
        "function",
        name,
        made_here,
        problem=f"the {what} function `{address}` is not there: the module has no `{name}`",
        found=f"its functions are {', '.join(made_here)}" if made_here else "it has no function of its own",
        expected="module:name of a function",
        spelling=f"{address.partition(':')[0]}:{{}}",
        otherwise="name one of its functions",
    )


def _from_file(path: Path) -> Any:
    """A module by its file, under a name of its own, so that two recipes may each have a rewards.py."""
    # By what it says too: in a notebook the file is edited between two runs of one process.
    source = path.read_bytes()
    content = hashlib.sha256(str(path.resolve()).encode() + b"\0" + source).hexdigest()
    name = f"posttrain_{path.stem}_{content[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None:
        raise ImportError(f"{path} is no Python module")
    module = importlib.util.module_from_spec(spec)
    # Before it runs: dataclasses and pickles of the module look it up by name.
    sys.modules[name] = module
    try:
        # Not by the loader: its cache knows a file by its size and the second in which it was saved.
        exec(compile(source, str(path), "exec", dont_inherit=True), vars(module))
    except BaseException:
        del sys.modules[name]
        raise
    return module
