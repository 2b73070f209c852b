"""From a plain function to rewards that can be trusted: who is asked what, and what counts as an answer.

    def polite(prompt, completion, task):                       # one response
        return float("please" in completion)

    def shortest(prompts, completions, tasks, groups):          # all responses of the step at once
        ...
        return [1.0, 0.0, None, ...]

A function of one response has the parameters `prompt`, `completion` and `task`, in this order; one of many has their
plurals, and gives a list. Either may ask for more by name: `tokens` (the response's length), `finish` (why it ended)
and, of many, `groups` (which responses answer the same prompt). Either may be `async`.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Protocol

from posttrain.errors import FOREIGN, ConfigError, PosttrainError, RewardError, place_of
from posttrain.rollout.engine import FinishReason
from posttrain.types import Message, Task


@dataclass(frozen=True, slots=True)
class Sampled:
    """A response to be scored.

    Sampled((Message("user", "2 + 2?"),), "4", Task(...), FinishReason.STOP_TOKEN, tokens=2, group=0)
    """

    prompt: tuple[Message, ...]
    completion: str
    task: Task
    finish: FinishReason = FinishReason.STOP_TOKEN
    tokens: int = 0
    """Ids that were sampled, the stop token included."""
    group: int = 0
    """Responses to one prompt have the same number."""


class SingleReward(Protocol):
    """A reward of one response: a number, or None to abstain. Higher is better; 1 is right and 0 wrong, by custom."""

    def __call__(self, prompt: tuple[Message, ...], completion: str, task: Task, /) -> float | None: ...


class BatchReward(Protocol):
    """A reward of many responses at once; as many numbers as responses."""

    def __call__(
        self, prompts: Sequence[tuple[Message, ...]], completions: Sequence[str], tasks: Sequence[Task], /
    ) -> Sequence[float | None]: ...


RewardFunction = Callable[..., Any]
"""A SingleReward or a BatchReward, or an async function that is one."""

_PLACES = {
    name: place
    for place, names in enumerate((("prompt",), ("completion", "answer"), ("task", "row")))
    for one in names
    for name in (one, f"{one}s")
}
_MANY = ("completions", "answers")
"""Names of the second parameter of a function that takes many responses at once."""
_EXTRAS = {"tokens": "tokens", "finish": "finish"}
_EXTRAS_OF_MANY = {"tokens": "tokens", "finishes": "finish", "groups": "group"}


@dataclass(frozen=True, slots=True)
class Asking:
    """How a function wants to be called: Asking(many=True, extras={"groups": "group"})."""

    many: bool
    extras: dict[str, str]

    @staticmethod
    def of(function: RewardFunction, name: str, what: str = "reward") -> Asking:
        """Reads it off the signature.

        Args:
            what: a "reward", or what else the function is, for errors.

        Raises:
            ConfigError: the function does not take a prompt, a completion and a task, or needs something unknown.
        """
        parameters = list(inspect.signature(function).parameters.values())
        positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        star = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        if len(positional) < 3 and not star:
            raise _bad_signature(name, function, what)
        if any(_PLACES.get(p.name, place) != place for place, p in enumerate(positional[:3])):
            raise _bad_signature(name, function, what)  # called by place: it would judge the prompt as the completion
        many = len(positional) > 1 and positional[1].name in _MANY
        known = _EXTRAS_OF_MANY if many else _EXTRAS
        others = positional[3:] + [p for p in parameters if p.kind is p.KEYWORD_ONLY]
        if any(p.default is p.empty and p.name not in known for p in others):
            raise _bad_signature(name, function, what)
        return Asking(many, {p.name: known[p.name] for p in others if p.name in known})


def _signature_remedy(function: RewardFunction) -> str:
    """Says what lacks; TRL's `(prompts, completions, **kwargs)` has the row's columns as keywords, ours has tasks."""
    names = list(inspect.signature(function).parameters)
    if names[:2] == ["prompts", "completions"] or (names[:1] == ["completions"] and "task" not in names):
        return (
            "what lacks is `tasks`: write `(prompts, completions, tasks)`; a column of the rows, which TRL passes as a "
            "keyword, is `task.answer` or `task.metadata['COLUMN']` of each"
        )
    if not {"task", "tasks"}.intersection(names) and len(names) < 3:
        return "add what lacks: the parameters `prompt`, `completion` and `task`, in this order"
    return "give every other parameter a default, or a value under `parameters` in the recipe"


def _bad_signature(name: str, function: RewardFunction, what: str) -> ConfigError:
    return ConfigError(
        f"the {what} `{name}` cannot be called with a prompt, a completion and a task",
        found=f"{name}{inspect.signature(function)}",
        expected="(prompt, completion, task) or (prompts, completions, tasks); also tokens, finish, or groups",
        remedy=_signature_remedy(function),
    )


@dataclass(frozen=True, slots=True)
class Scorer:
    """A named reward: Scorer("math", function, weight=1.0, gold=...)."""

    name: str
    function: RewardFunction
    weight: float = 1.0
    gold: Callable[[Task], str | None] | None = None
    """For a verifier: the response that must score 1 on this task, None where the task has none."""
    close: Callable[[], None] | None = None
    """Ends what the reward started: processes, connections."""
    inner: Scorer | None = None
    """The verifier that this reward reshapes; the gold check asks that one."""
    needs: str = "answer"
    """What a row must have for a verifier to judge it, as a sentence names it: "they have no ..."."""
    shared: bool = False
    """Whether an answer's reward depends on that answer and the others to its prompt alone, so that the ranks of a job
    may each judge a part; see `posttrain.rewards.sharing`."""
    what: str = "reward"
    """What errors call it: a function that judges the answers of a suite is asked in the same way."""

    def score(self, items: Sequence[Sampled]) -> list[float | None]:
        """A number or None for each response, in their order.

        Raises:
            RewardError: the function raised, or gave something else; names it and the row.
            PosttrainError: the function raised one, which is left as it is.
        """
        if not items:
            return []
        asking = Asking.of(self.function, self.name, self.what)
        values = self._many(asking, items) if asking.many else self._each(asking, items)
        return [self._checked(value, item) for value, item in zip(values, items, strict=True)]

    def _each(self, asking: Asking, items: Sequence[Sampled]) -> list[Any]:
        calls = [
            functools.partial(
                self.function,
                item.prompt,
                item.completion,
                item.task,
                **{name: _field(item, of) for name, of in asking.extras.items()},
            )
            for item in items
        ]
        values = [self._guarded(call, item) for call, item in zip(calls, items, strict=True)]
        if not any(inspect.isawaitable(value) for value in values):
            return values
        return run_async(self._gathered(values, items))

    def _many(self, asking: Asking, items: Sequence[Sampled]) -> list[Any]:
        first, last = items[0], items[-1]
        where = f"{first.task.row} to {last.task.row}" if len(items) > 1 else str(first.task.row)
        extras = {name: [_field(item, of) for item in items] for name, of in asking.extras.items()}
        prompts, tasks = [item.prompt for item in items], [item.task for item in items]
        try:
            values = self.function(prompts, [item.completion for item in items], tasks, **extras)
            if inspect.isawaitable(values):
                values = run_async(_awaited(values))
            # the keys of a mapping, and a set in whatever order, are no scores of these responses
            ordered = isinstance(values, Iterable) and not isinstance(values, (str, bytes, Mapping, Set))
            listed = list(values) if ordered else None  # a generator runs here
        except PosttrainError as error:
            raise _placed(error, where) from None
        except FOREIGN as error:  # the boundary: other people's code
            raise self._raised(error, where) from error
        if listed is None or len(listed) != len(items):
            raise RewardError(
                f"the {self.what} `{self.name}` did not give one value per response",
                where=where,
                found=f"{len(listed)} values" if listed is not None else f"a {type(values).__name__}",
                expected=f"a list of {len(items)} numbers or None",
                remedy="return one entry for each completion, in their order",
            )
        return listed

    def _guarded(self, call: Callable[[], Any], item: Sampled) -> Any:
        try:
            return call()
        except PosttrainError as error:
            raise _placed(error, str(item.task.row)) from None
        except FOREIGN as error:  # the boundary: other people's code
            raise self._raised(error, str(item.task.row)) from error

    async def _gathered(self, values: Sequence[Any], items: Sequence[Sampled]) -> list[Any]:
        async def one(value: Any, item: Sampled) -> Any:
            try:
                return await value if inspect.isawaitable(value) else value
            except PosttrainError as error:
                raise _placed(error, str(item.task.row)) from None
            except FOREIGN as error:  # the same boundary
                raise self._raised(error, str(item.task.row)) from error

        return list(await asyncio.gather(*(one(value, item) for value, item in zip(values, items, strict=True))))

    def _raised(self, error: BaseException, where: str) -> RewardError:
        return RewardError(
            f"the {self.what} `{self.name}` raised {type(error).__name__}",
            where=where,
            found=f"{type(error).__name__}: {error}{place_of(error, caller=__file__)}",
            remedy="mend the function; return None where it cannot judge a response",
        )

    def _checked(self, value: Any, item: Sampled) -> float | None:
        if value is None:
            return None
        # numpy's and torch's scalars are numbers too; text and lists, which float() may also take, are mistakes
        try:
            number = float(value) if not isinstance(value, (str, bytes)) and hasattr(value, "__float__") else math.nan
        except (TypeError, ValueError, RuntimeError):  # an array or a tensor of several numbers
            number = math.nan
        if math.isfinite(number):
            return number
        raise RewardError(
            f"the {self.what} `{self.name}` gave what is no finite number",
            where=item.task.row,
            found=f"{value!r} ({type(value).__name__}) for {item.completion[:80]!r}",
            expected="a finite number, or None to abstain",
            remedy="mend the function; a response that cannot be judged is None, not NaN",
        )


def _placed(error: PosttrainError, where: str) -> PosttrainError:
    """posttrain's own error with its own problem and remedy ("install it"), and the row if it names no place.

    "Mend the function" would be wrong of a model that is not there.
    """
    error.where = where if error.where is None else error.where
    return error


def _field(item: Sampled, name: str) -> Any:
    return {"tokens": item.tokens, "finish": item.finish, "group": item.group}[name]


async def _awaited(value: Awaitable[Any]) -> Any:
    return await value


def _but_stops(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What asyncio prints of errors that nobody asked for, but for Ctrl-C and SIGTERM.

    They are raised wherever the loop stands, in any of its tasks. `asyncio.run` raises them too, and the copy that the
    task has kept would be a traceback below the message that says how to go on.
    """
    if not isinstance(context.get("exception"), (KeyboardInterrupt, SystemExit)):
        loop.default_exception_handler(context)


def run_async(work: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine, also where an event loop already runs in this thread (as in a notebook)."""

    async def quietly() -> Any:
        asyncio.get_running_loop().set_exception_handler(_but_stops)
        return await work

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(quietly())
    outcome: list[Any] = []
    failure: list[BaseException] = []

    def apart() -> None:
        try:
            outcome.append(asyncio.run(quietly()))
        except BaseException as error:  # carried over to the thread that waits
            failure.append(error)

    thread = threading.Thread(target=apart)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]
