"""The base of all recipe records, and the kinds of value that they hold."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Tag, ValidationError
from pydantic_core import PydanticCustomError

from posttrain.config.addresses import credential_in
from posttrain.config.explain import explain
from posttrain.errors import unknown


class Settings(BaseModel):
    """A frozen record that refuses unknown keys, with our errors: SFT(learning_rte=1) names learning_rate."""

    model_config = ConfigDict(
        # A mistyped key that is dropped leaves its default in force, and the run looks fine.
        extra="forbid",
        frozen=True,
        # Defaults come from the tables of losses: they are checked as what a user writes is.
        validate_default=True,
        populate_by_name=True,
        allow_inf_nan=False,
        # A validator for each of 150 records at import would take half of the time that it takes to refuse a typo.
        defer_build=True,
    )

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise explain(error, type(self), values, type(self).__name__) from None

    # pydantic builds nested records without __init__, so that one error reports all mistakes of the whole tree
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    def changed(self, **changes: Any) -> Self:
        """A copy with other values, validated like any: stage.changed(learning_rate=1e-6)."""
        # Only what was set: defaults that depend on other fields (the learning rate on the adapter) are computed anew.
        return type(self)(**{**self.model_dump(by_alias=False, exclude_unset=True), **changes})


def refuse(problem: str, *, remedy: str, path: tuple[str | int, ...] = (), **details: Any) -> PydanticCustomError:
    """An error for validators to raise; `path` leads from the validated record to the wrong value."""
    context = {"problem": problem, "remedy": remedy, "path": path, **details}
    return PydanticCustomError("posttrain", "{problem}", context)


def is_changed(record: BaseModel, key: str) -> bool:
    """Whether a key has another value than its default: what "is written" means to a check that refuses a key without
    an effect. A recipe that is written out holds every default, and must read back."""
    return bool(getattr(record, key) != type(record).model_fields[key].default)


def require_different_draws(record: Any, key: str, *, instead: float = 0.7) -> None:
    """Refuses several draws at temperature 0: they would cost as much as sampling does, and be one answer.

    Args:
        record: has a `sampling`, and the number of draws as its field `key`.
        instead: the temperature that the remedy names.

    Raises:
        PydanticCustomError: for a validator to raise.
    """
    draws = getattr(record, key)
    if draws > 1 and record.sampling.temperature == 0:
        raise refuse(
            "temperature 0 draws the same answer each time",
            path=(key,),
            found=f"{key}: {draws}, temperature: 0",
            remedy=f"write `sampling: {{temperature: {instead}}}`, or `{key}: 1`",
        )


def choose(what: str, name: str, known: Iterable[str]) -> str:
    """`name`, if it is one of `known`; for names that stand in a table elsewhere."""
    names = list(known)
    if name in names:
        return name
    # Inside a validator pydantic collects the mistakes of a whole recipe, so the error is taken apart for it.
    refusal = unknown(what, name, names)
    raise refuse(refusal.problem, expected=refusal.expected, remedy=refusal.remedy)


Item = TypeVar("Item")


def require_unique(what: str, items: tuple[Item, ...], names: Sequence[str]) -> tuple[Item, ...]:
    """The items, if no two of them have the same name: it is the name of their column in logs and tables."""
    for place, name in enumerate(names):
        if name in names[:place]:
            raise refuse(f"two {what} are named `{name}`", path=(place, "name"), remedy="give one of them another name")
    return items


def _number(value: Any) -> Any:
    """`epochs: true` would otherwise train for 1 epoch."""
    if isinstance(value, bool):
        raise refuse("a number is needed here", remedy="write a number", found=str(value).lower())
    return value


def _auto_or_number(value: Any) -> Any:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    raise refuse("this is neither `auto` nor a positive whole number", remedy="write auto, or a number such as 8192")


def _auto_or_weight(value: Any) -> Any:
    if value == "auto" or (isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf):
        return value
    raise refuse("this is neither `auto` nor a number of 0 or more", remedy="write auto, or a number such as 0.001")


def _auto_or_flag(value: Any) -> Any:
    if value == "auto" or isinstance(value, bool):
        return value
    # `yes` and `on` are text to our YAML (`yaml_text`), so the field that wants a flag reads them.
    if isinstance(value, str) and value.lower() in ("yes", "no", "true", "false", "on", "off"):
        return value.lower() in ("yes", "true", "on")
    raise refuse("this is neither `auto` nor true or false", remedy="write auto, true or false")


def _compiles(pattern: Any) -> Any:
    try:
        if isinstance(pattern, str):
            re.compile(pattern)
    except re.error as error:
        raise refuse(
            "this is not a regular expression",
            found=f"{pattern}  ({error})",
            remedy="put a backslash before ( ) [ ] . * + ? that are meant as they stand",
        ) from None
    return pattern


def _name_or_names(value: Any) -> Any:
    if isinstance(value, str) or (isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)):
        return value
    raise refuse("this is neither text nor a list of texts", remedy="write a name, or a list such as [q_proj, v_proj]")


def require_no_credential(address: Any, remedy: str) -> Any:
    """An address without a password, key or token in it: every run folder and report keeps a copy of its recipe."""
    shown = credential_in(address) if isinstance(address, str) else None
    if shown is not None:
        raise refuse(
            "the address holds a credential, which every copy of the recipe would show",
            found=shown,
            expected="scheme, host, port and path alone, such as http://localhost:8000/v1",
            remedy=remedy,
        )
    return address


Float = Annotated[float, BeforeValidator(_number)]
Int = Annotated[int, BeforeValidator(_number)]
AutoInt = Annotated[int | Literal["auto"], BeforeValidator(_auto_or_number)]
AutoWeight = Annotated[float | Literal["auto"], BeforeValidator(_auto_or_weight)]
AutoBool = Annotated[bool | Literal["auto"], BeforeValidator(_auto_or_flag)]
Pattern = Annotated[str, BeforeValidator(_compiles)]
"""A regular expression, checked when the recipe is read."""

NameOrNames = Annotated[str | tuple[str, ...], BeforeValidator(_name_or_names)]


def either(number: Any, record: type[Settings]) -> Any:
    """A number or a record, told apart by what is written, so that a mistake is reported once and not per branch."""

    # By the form of what is written: pydantic would else report the mistakes of both readings.
    def kind(value: Any) -> str:
        return "number" if isinstance(value, (int, float)) else "record"

    return Annotated[Annotated[number, Tag("number")] | Annotated[record, Tag("record")], Discriminator(kind)]


def listed(value: Any) -> Any:
    """One thing may stand for a list of one, and a Path for its text: `path: a.jsonl`."""
    items = [value] if isinstance(value, (str, os.PathLike)) else value
    return [as_text(item) for item in items] if isinstance(items, (list, tuple)) else items


def as_text(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value
