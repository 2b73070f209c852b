"""`function`: a reward function of the user's own, by its address `module:name`."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.errors import ConfigError, unknown
from posttrain.rewards import text
from posttrain.rewards.scorer import RewardFunction, Scorer

if TYPE_CHECKING:
    from posttrain.config.rewards import FunctionReward


def build(settings: FunctionReward, folder: Path | None) -> Scorer:
    function = _imported(settings.function, folder)
    if settings.parameters:
        _require_parameters(function, settings.function, settings.parameters)
        function = functools.partial(function, **settings.parameters)
    return Scorer(settings.label, function, settings.weight, text.gold if settings.verifies else None)


def _require_parameters(function: RewardFunction, address: str, parameters: Mapping[str, Any]) -> None:
    """Every key under `parameters` is a parameter of the function, which would otherwise raise at its first call."""
    taken = inspect.signature(function).parameters.values()
    # It takes any name, so none can be wrong.
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken):
        return
    known = [
        parameter.name
        for parameter in taken
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ][3:]
    for key in parameters:
        if key not in known:
            raise unknown(
                "parameter",
                key,
                known,
                problem=f"the reward function `{address}` has no parameter `{key}`",
                found=f"{address.rpartition(':')[2]}{inspect.signature(function)}",
                expected=f"of {', '.join(known)}" if known else "no `parameters`: it has none beside the three",
                otherwise=f"remove `{key}`, or add it to the function",
            )


def _imported(address: str, folder: Path | None) -> RewardFunction:
    """`module:function`, from the recipe's folder or among what is installed."""
    module_name, _, path = address.partition(":")
    beside = None if folder is None else folder.joinpath(*module_name.split(".")).with_suffix(".py")
    try:
        if beside is not None and beside.is_file():
            target: Any = _from_file(beside)
        else:
            target = importlib.import_module(module_name)
    except (ImportError, SyntaxError) as error:
        looked = f"{beside} and what is installed" if beside is not None else "what is installed"
        raise ConfigError(
            f"the reward function `{address}` cannot be imported",
            found=f"{type(error).__name__}: {error}",
            expected=f"a module with this function, in {looked}",
            remedy="write `function: module:name`, with module.py beside the recipe or installed",
        ) from None
    module = target
    for name in path.split("."):
        if name not in vars(target):
            raise _no_such_function(address, path, module)
        target = vars(target)[name]
    if not callable(target):
        raise ConfigError(
            f"`{address}` is no function", found=type(target).__name__, remedy="name a function of the module"
        )
    return target


def _no_such_function(address: str, name: str, module: Any) -> ConfigError:
    made_here = [
        key
        for key, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not key.startswith("_")
    ]
    return unknown(
        "function",
        name,
        made_here,
        problem=f"the reward function `{address}` is not there: the module has no `{name}`",
        found=f"its functions are {', '.join(made_here)}" if made_here else "it has no function of its own",
        expected="module:name of a function",
        spelling=f"{address.partition(':')[0]}:{{}}",
        otherwise="name one of its functions",
    )


def _from_file(path: Path) -> Any:
    """A module by its file, under a name of its own, so that two recipes may each have a rewards.py."""
    # By the whole path: two recipes in one process may each have a rewards.py.
    name = f"posttrain_reward_{path.stem}_{abs(hash(path.resolve())):x}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python module")
    module = importlib.util.module_from_spec(spec)
    # Before it runs: dataclasses and pickles of the module look it up by name.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
