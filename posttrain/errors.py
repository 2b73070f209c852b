"""Everything posttrain refuses, as one tree.

    PosttrainError
    |-- ConfigError        a recipe or an argument is wrong            (also a ValueError)
    |   `-- UnknownKeyError    a key that no option has; names the nearest
    |-- DataError          the data is wrong                           (also a ValueError)
    |   |-- SourceError        a file cannot be read: missing, truncated, bad encoding, empty
    |   |-- RowError           one row has the wrong shape, role, order or label
    |   `-- EmptyDatasetError  nothing is left to train on
    |-- EncodingError      messages cannot be turned into ids faithfully (also a ValueError)
    |   |-- TemplateError      the chat template hides, rewrites or refuses what must train
    |   `-- PromptMismatchError  two sides of a pair do not share their prompt ids
    |-- ModelError         a model or adapter cannot be found, loaded, served or saved
    |   `-- ExportError        a saved model read back differently
    |-- PreflightError     an identity of the run does not hold
    |-- RewardError        a reward function failed, or gave what is no reward
    |-- EngineError        an engine for rollouts cannot be reached, or answers nonsense
    |   `-- ServerLostError    its server died, went away or was restarted; another one may be asked
    |-- TrainingError      a run had to stop
    |   |-- NonFiniteError     a loss or gradient is NaN or infinite; nothing was updated
    |   |-- MemoryLimitError   the machine's memory does not hold the step
    |   |-- WeightSyncError    an engine samples from other weights than the trainer's
    |   |-- CheckpointError    a checkpoint is torn or altered
    |   |-- RankError          one process of several failed in a way that nobody foresaw, or is gone
    |   `-- ResumeError        the recipe or the data changed since the run began
    `-- MissingExtraError  an optional package is needed

An error says what is wrong, where, what was found, what was expected, and what to do about it.

One voice of quoting in `problem` and `remedy`: `backticks` around what the user types or reads in a file (a key, a
name, a path, a command), nothing around a figure. Python's quotes show a value where blanks or its type matter, so they
stand in `found` and `expected`. A name that is not known is refused by `unknown`, whatever it names.
"""

from __future__ import annotations

import difflib
import pickle
import traceback
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, overload


class PosttrainError(Exception):
    """Base of all errors that posttrain raises on purpose.

    str(error) is ready to be shown to a user:

        pairs.jsonl, row 417: the role 'human' is not known
          found:    'human'
          expected: one of 'system', 'user', 'assistant', 'tool'
          remedy:   map it with `format: {roles: {human: user}}`
    """

    def __init__(
        self,
        problem: str,
        *,
        remedy: str,
        where: object = None,
        found: object = None,
        expected: object = None,
        example: str | None = None,
    ):
        self.problem = problem
        self.remedy = remedy
        self.where = where
        self.found = found
        self.expected = expected
        self.example = example
        self.ranks: tuple[int, ...] = ()
        """The processes that failed, where several run together and all of them raise this; empty elsewhere."""
        super().__init__(problem)

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.problem}" if self.where is not None else self.problem]
        for label, text in (
            ("found", self.found),
            ("expected", self.expected),
            ("example", self.example),
            ("remedy", self.remedy),
        ):
            if text is not None:
                lines.append(f"  {label + ':':<9} {text}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        # `BaseException` pickles itself as `type(self)(*self.args)`, which an __init__ with keyword arguments refuses:
        # a worker process would die of a TypeError, and its user would never see what the error says.
        return _rebuilt, (type(self), self.args, {name: _portable(value) for name, value in vars(self).items()})


def _rebuilt(kind: type[PosttrainError], arguments: tuple[object, ...], fields: Mapping[str, object]) -> PosttrainError:
    """An error as it was, without its __init__, whose arguments differ from class to class."""
    error = kind.__new__(kind)
    error.args = arguments
    vars(error).update(fields)
    return error


def _portable(value: object) -> object:
    """The value itself where it can travel to another process, else the text that the error shows of it."""
    try:
        # Back as well: an exception whose constructor takes keywords is written without complaint and fails there.
        pickle.loads(pickle.dumps(value))
    except Exception:  # the boundary: other people's `__reduce__` and constructors
        return str(value)
    return value


class ConfigError(PosttrainError, ValueError):
    """A recipe or an argument is wrong."""


class UnknownKeyError(ConfigError):
    """A key that no option has."""


class DataError(PosttrainError, ValueError):
    """The data is wrong."""


class SourceError(DataError):
    """A file cannot be read."""


class RowError(DataError):
    """One row is wrong; `reason` is the short label under which skipped rows are counted."""

    def __init__(self, problem: str, *, reason: str, remedy: str, **details: object):
        self.reason = reason
        super().__init__(problem, remedy=remedy, **details)  # type: ignore[arg-type]


class EmptyDatasetError(DataError):
    """Nothing is left to train on."""


class EncodingError(PosttrainError, ValueError):
    """Messages cannot be turned into ids faithfully."""


class TemplateError(EncodingError):
    """The chat template hides, rewrites or refuses what must train."""


class PromptMismatchError(EncodingError):
    """The two sides of a pair do not share their prompt ids."""


class ModelError(PosttrainError):
    """A model or adapter cannot be found, loaded, served or saved."""


class ExportError(ModelError):
    """A saved model read back differently."""


class PreflightError(PosttrainError):
    """An identity of the run does not hold."""


class RewardError(PosttrainError):
    """A reward function failed, or gave what is no reward; names the function and the row."""


class EngineError(PosttrainError):
    """An engine for rollouts cannot be reached, died, or answers what its interface does not allow."""


class ServerLostError(EngineError):
    """The engine's server went away, died or was restarted; what it had been asked may be asked of another."""


class TrainingError(PosttrainError):
    """A run had to stop."""


class NonFiniteError(TrainingError):
    """A loss or gradient is NaN or infinite; nothing was updated.

    `tensors` names what is not finite: "loss", or parameters whose gradient is; `rows` the data of the step.
    """

    def __init__(self, problem: str, *, remedy: str, tensors: Iterable[str], rows: Iterable[str] = ()):
        self.tensors = tuple(tensors)
        self.rows = tuple(rows)
        shown = _rows_by_file(self.rows[:8]) + (f" and {len(self.rows) - 8} more rows" if len(self.rows) > 8 else "")
        super().__init__(problem, where=shown or None, remedy=remedy)


def _rows_by_file(rows: Iterable[str]) -> str:
    """_rows_by_file(["a.jsonl, row 3", "a.jsonl, row 7"]) -> "a.jsonl, rows 3, 7": a long path stands there once."""
    files: dict[str, list[str]] = {}
    for row in rows:
        file, mark, number = row.rpartition(", row ")
        files.setdefault(file if mark else row, []).extend([number] if mark else [])
    shown = []
    for file, numbers in files.items():
        places = f", row{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}" if numbers else ""
        shown.append(f"{file}{places}")
    return "; ".join(shown)


class MemoryLimitError(TrainingError):
    """The machine's memory does not hold the step."""


class WeightSyncError(TrainingError):
    """After a weight sync, an engine gives a fixed sequence other log-probs than the trainer does."""


class CheckpointError(TrainingError):
    """A checkpoint is torn or altered."""


class RankError(TrainingError):
    """One process of several failed in a way that nobody foresaw, or is gone."""


class ResumeError(TrainingError):
    """The recipe or the data changed since the run began."""


class MissingExtraError(PosttrainError, ImportError):
    """An optional package is needed."""


# ---------------------------------------------------------------- names that are not known

Refusal = TypeVar("Refusal", bound=PosttrainError)


@overload
def unknown(what: str, name: object, known: Iterable[str], *, error: type[Refusal], **fields: Any) -> Refusal: ...
@overload
def unknown(what: str, name: object, known: Iterable[str], **fields: Any) -> UnknownKeyError: ...
def unknown(
    what: str,
    name: object,
    known: Iterable[str],
    *,
    error: type[PosttrainError] = UnknownKeyError,
    where: object = None,
    problem: str | None = None,
    spelling: str = "{}",
    otherwise: str = "choose one of those",
    **details: Any,
) -> PosttrainError:
    """The error for a name that a table does not hold, with the nearest name as its remedy.

    str(unknown("method", "gpro", ["grpo", "ppo"])):

        the method `gpro` is not known
          expected: one of grpo, ppo
          remedy:   did you mean `grpo`?

    Args:
        what: what is named, in one word: "method", "suite".
        known: the names that there are; every one is listed, in this order, unless `expected` is given.
        error: the class to make, UnknownKeyError if not given.
        problem: a sentence of its own where "the ... is not known" would say too little.
        spelling: how the nearest name is to be written where that is more than the name: "package://{}".
        otherwise: the remedy where no known name is like it.
        details: the other fields of the class: found, expected, example, reason.
    """
    names = list(known)
    near = nearest(str(name), names)
    # "one of " with nothing behind it says less than nothing.
    if names:
        details.setdefault("expected", f"one of {', '.join(names)}")
    return error(
        problem or f"the {what} `{name}` is not known",
        where=where,
        remedy=did_you_mean(spelling.replace("{}", near) if near else None, otherwise),
        **details,
    )


def did_you_mean(near: str | None, otherwise: str = "") -> str:
    """did_you_mean("grpo") -> "did you mean `grpo`?"; `otherwise` where nothing is near."""
    return f"did you mean `{near}`?" if near else otherwise


def nearest(word: str, candidates: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """The candidate most like `word`, or None: nearest("max_promt_length", [...]) -> "max_prompt_length"."""
    # By letters alone: `SFT.steps` means `sft`, with which it has not one character in common.
    by_letters: dict[str, str] = {}
    for candidate in candidates:
        by_letters.setdefault(candidate.casefold(), candidate)
    matches = difflib.get_close_matches(word.casefold(), list(by_letters), n=1, cutoff=cutoff)
    return by_letters[matches[0]] if matches else None


def nearest_file(name: str, there: Iterable[str]) -> str | None:
    """The file name most like `name`, or None: nearest_file("chat.jsonl", ["chats.csv", "chats.jsonl"]).

    Names are compared without their endings, which make unlike names look alike (`nofile.jsonl` and `bare.jsonl`);
    among those that are equally near, the one that ends as `name` does is meant.
    """
    names = list(there)
    stem = nearest(name.split(".")[0], [file.split(".")[0] for file in names])
    return nearest(name, [file for file in names if file.split(".")[0] == stem], cutoff=0.0) if stem else None


# ---------------------------------------------------------------- other people's code

FOREIGN = (Exception, SystemExit)
"""What a user's own function may raise that becomes a named error. `sys.exit(0)`, at the end of a script of which a
recipe names a function, would else end the command without a word and with the exit code of success."""


def place_of(error: BaseException, *, caller: str) -> str:
    """ " (rewards.py:12, in polite)": where a user's own function failed; "" where none of its lines ran.

    The last line of the function's own file: the very last may be deep in a library that its author never saw.

    Args:
        caller: the file that called the function, whose frames are passed over: `__file__`.
    """
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != caller]
    own = [frame for frame in frames if frame.filename == frames[0].filename]
    return f" ({own[-1].filename}:{own[-1].lineno}, in {own[-1].name})" if own else ""
