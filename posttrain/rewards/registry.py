"""From a recipe's entry to a reward that can be called: one literal row per kind."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from posttrain.errors import ConfigError, unknown
from posttrain.rewards import gym, language, refusal, shape, text
from posttrain.rewards.code import Code
from posttrain.rewards.endpoint import Endpoint
from posttrain.rewards.instructions import instructions
from posttrain.rewards.judge import Judge
from posttrain.rewards.maths import Math
from posttrain.rewards.model import ModelReward
from posttrain.rewards.rubric import Rubric
from posttrain.rewards.sandbox import Limits
from posttrain.rewards.scorer import Asking, RewardFunction, Scorer
from posttrain.types import Task

if TYPE_CHECKING:  # the recipe's records load torch, for the table of objectives among them
    from posttrain.config import rewards as config
    from posttrain.config.rewards import RewardSettings

Spec = Union["RewardSettings", Mapping[str, Any]]

_SHARED = {"kind", "weight", "name"}


def resolve(spec: Spec, *, folder: str | Path | None = None) -> Scorer:
    """The reward of a recipe's entry: resolve({"kind": "overlong", "max_length": 512, "buffer": 64}).

    Args:
        folder: where a function's module is looked for first; the recipe's own folder.

    Raises:
        ConfigError, UnknownKeyError: a kind, a key or a value that there is not, a module that cannot be imported.
    """
    from posttrain.config.rewards import Rewards

    entries: Any = [spec]
    settings = Rewards(rewards=entries).rewards[0] if isinstance(spec, Mapping) else spec
    build = KINDS[settings.kind]
    scorer = build(settings, Path(folder) if folder is not None else None)
    Asking.of(scorer.function, scorer.name)
    return scorer


def rubric_of(specs: Iterable[Spec], *, folder: str | Path | None = None) -> Rubric:
    """The rubric of a recipe's list."""
    return Rubric([resolve(spec, folder=folder) for spec in specs])


def _options(settings: RewardSettings, *without: str) -> dict[str, Any]:
    names = set(type(settings).model_fields) - _SHARED - set(without)
    return {name: vars(settings)[name] for name in names}


Build = Callable[[Any, Path | None], Scorer]


def _plain(function: RewardFunction, gold: Callable[..., str | None] | None = None) -> Build:
    """A row for a function whose keywords are the settings' own keys."""

    def build(settings: RewardSettings, folder: Path | None) -> Scorer:
        options = {name.rstrip("_"): value for name, value in _options(settings).items()}
        kept = functools.partial(gold, **{k: v for k, v in options.items() if k == "tag"}) if gold else None
        return Scorer(settings.label, functools.partial(function, **options), settings.weight, kept)

    return build


def _of_row(function: RewardFunction, key: str) -> Build:
    """As above; it verifies rows only where each row says itself what is wanted."""

    def build(settings: RewardSettings, folder: Path | None) -> Scorer:
        made = _plain(function)(settings, folder)
        if vars(settings)[key] is not None:
            return made
        name = key.rstrip("_")
        return Scorer(
            made.name,
            made.function,
            made.weight,
            lambda task: task.answer if name in task.metadata else None,
            needs=f"column `{name}`",
        )

    return build


def _math(settings: config.MathReward, folder: Path | None) -> Scorer:
    made = Math(**_options(settings))
    return Scorer(settings.label, made, settings.weight, made.gold, made.close)


def _code(settings: config.CodeReward, folder: Path | None) -> Scorer:
    limits = Limits(seconds=settings.seconds, memory_mb=settings.memory_mb)
    made = Code(limits, **_options(settings, "seconds", "memory_mb"))
    needs = "tests, in `tests`, `test_list` or `cases`"
    return Scorer(settings.label, made, settings.weight, made.gold, made.close, needs=needs)


def _cosine(settings: config.CosineReward, folder: Path | None) -> Scorer:
    inner = resolve(settings.of, folder=folder)
    made = shape.Cosine(inner, **_options(settings, "of"))
    return Scorer(settings.label, made, settings.weight, close=inner.close, inner=inner)


def _reward_model(settings: config.ModelReward, folder: Path | None) -> Scorer:
    model = str(_beside(settings.model, folder, must_exist=True))
    return Scorer(settings.label, ModelReward(model, **_options(settings, "model")), settings.weight)


def _judge(settings: config.JudgeReward, folder: Path | None) -> Scorer:
    endpoint = Endpoint(
        settings.url,
        settings.model,
        key_env=settings.key_env,
        cache=None if settings.cache is None else Path(_beside(settings.cache, folder)),
        retries=settings.retries,
        timeout=settings.timeout,
        per_minute=settings.per_minute,
    )
    of_endpoint = ("url", "model", "key_env", "cache", "retries", "timeout", "per_minute")
    return Scorer(settings.label, Judge(endpoint, **_options(settings, *of_endpoint)), settings.weight)


def _beside(text: str, folder: Path | None, *, must_exist: bool = False) -> str | Path:
    """A path of a recipe is relative to its file; a name that is no path stays a name."""
    path = (folder or Path()) / Path(text).expanduser()
    return text if must_exist and not path.exists() else path


def _function(settings: config.FunctionReward, folder: Path | None) -> Scorer:
    function = _imported(settings.function, folder)
    if settings.parameters:
        _require_parameters(function, settings.function, settings.parameters)
        function = functools.partial(function, **settings.parameters)
    return Scorer(settings.label, function, settings.weight, text.gold if settings.verifies else None)


def _require_parameters(function: RewardFunction, address: str, parameters: Mapping[str, Any]) -> None:
    """Every key under `parameters` is a parameter of the function, which would otherwise raise at its first call."""
    taken = inspect.signature(function).parameters.values()
    if any(one.kind is one.VAR_KEYWORD for one in taken):
        return
    known = [one.name for one in taken if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)][3:]
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
            found: Any = _from_file(beside)
        else:
            found = importlib.import_module(module_name)
    except (ImportError, SyntaxError) as error:
        looked = f"{beside} and what is installed" if beside is not None else "what is installed"
        raise ConfigError(
            f"the reward function `{address}` cannot be imported",
            found=f"{type(error).__name__}: {error}",
            expected=f"a module with this function, in {looked}",
            remedy="write `function: module:name`, with module.py beside the recipe or installed",
        ) from None
    module = found
    for name in path.split("."):
        if name not in vars(found):
            raise _no_such_function(address, path, module)
        found = vars(found)[name]
    if not callable(found):
        raise ConfigError(
            f"`{address}` is no function", found=type(found).__name__, remedy="name a function of the module"
        )
    return found


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
    name = f"posttrain_reward_{path.stem}_{abs(hash(path.resolve())):x}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _instructions(settings: RewardSettings, folder: Path | None) -> Scorer:
    """It verifies the rows that have constraints; of others it says nothing, whatever their answer is."""
    made = _plain(instructions)(settings, folder)
    columns = ("instructions", "instruction_id_list")

    def gold(task: Task) -> str | None:
        return task.answer if any(task.metadata.get(column) for column in columns) else None

    needs = "constraints, in `instructions` or `instruction_id_list`"
    return Scorer(made.name, made.function, made.weight, gold, needs=needs)


KINDS: dict[str, Build] = {
    "math": _math,
    "exact": _plain(text.exact, text.gold),
    "fuzzy": _plain(text.fuzzy, text.gold),
    "regex": _of_row(text.regex, "pattern"),
    "json_schema": _of_row(text.json_schema, "schema_"),
    "format": _plain(text.tags),
    "think_tags": _plain(text.think_tags),
    "length": _plain(shape.length),
    "overlong": _plain(shape.overlong),
    "cosine": _cosine,
    "repetition": _plain(shape.repetition),
    "language": _plain(language.language),
    "refusal": _plain(refusal.refusal),
    "instructions": _instructions,
    "code": _code,
    "reasoning_gym": _plain(gym.reasoning_gym, gym.gold_of),
    "reward_model": _reward_model,
    "judge": _judge,
    "function": _function,
}
"""What each kind of entry becomes."""
