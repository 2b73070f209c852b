"""Merging models: the stage `merge`, and the settings that `posttrain merge`, `pt.merge` and mergekit's files come to.

    - name: both
      method: merge
      merge: {kind: ties, density: 0.2, models: [{stage: maths}, {stage: code, weight: 0.5}]}

A method has exactly the options that its row of `MERGE_METHODS` names. A number may differ between layers (a list,
interpolated from the first layer to the last) and between tensors (a list of `{filter, value}`, the first that fits).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, Union

from pydantic import AfterValidator, BeforeValidator, Field, create_model, model_validator

from posttrain.config.base import Output, StageSettings
from posttrain.config.lineage import START
from posttrain.config.merge_measures import BarrierSettings, WeightSearch
from posttrain.config.merge_methods import MERGE_METHODS, MergeParameter, MergeRow
from posttrain.config.values import Float, Int, Settings, refuse
from posttrain.config.varied import Varied, VariedField, numbers_of
from posttrain.errors import unknown


def _within(parameter: MergeParameter) -> Callable[[Any], Any]:
    """A validator: every number of the value lies in the parameter's range."""

    def check(value: Any) -> Any:
        for number in numbers_of(value) if value is not None else ():
            if not parameter.known.admits(number):
                raise refuse(
                    f"a number {parameter.known.range} is needed here",
                    found=f"{number:g}",
                    expected=parameter.known.meaning,
                    remedy=f"write a number {parameter.known.range}",
                )
        return value

    return check


# ---------------------------------------------------------------- where weights come from


class CheckpointAverage(Settings):
    """The mean of a stage's last checkpoints in place of its final model; a number alone may stand for it."""

    last: Int | None = Field(default=None, ge=1)
    """How many, counted from the end; null: all that were kept."""
    average: Literal["mean", "ema"] = "mean"
    """`mean`: all alike (LAWA, Kaddour 2022, arXiv:2209.14981); `ema`: an exponential moving average, whose newest
    checkpoint counts most."""
    decay: Float | None = Field(default_factory=lambda own: 0.9 if own.get("average") == "ema" else None, gt=0, lt=1)
    """Of `ema`: what stays of the average with each checkpoint."""

    @model_validator(mode="after")
    def _decay_fits(self) -> Self:
        if self.average == "mean" and self.decay is not None:
            raise refuse(
                "checkpoints that count alike have no `decay`", path=("decay",), remedy="write `average: ema` with it"
            )
        return self

    def weights(self, count: int) -> tuple[float, ...]:
        """The weight of each of so many checkpoints, the oldest first; they sum to 1.

        `ema` is m_1 = θ_1, m_i = decay m_(i-1) + (1 - decay) θ_i, written out.
        """
        if self.decay is None:
            return (1 / count,) * count
        decay = self.decay
        return tuple(decay ** (count - 1 - i) * (1.0 if i == 0 else 1 - decay) for i in range(count))


def _checkpoints(value: Any) -> Any:
    return {"last": value} if isinstance(value, int) and not isinstance(value, bool) else value


def _text(value: Any) -> Any:
    """From Python, a folder may be a Path."""
    return os.fspath(value) if isinstance(value, os.PathLike) else value


class MergeSource(Settings):
    """Where the weights of one model come from; a name or a folder alone may stand for it."""

    model: Annotated[str | None, BeforeValidator(_text)] = None
    """A catalogue name, a folder or a hub id: a model, or an adapter over its own base."""
    stage: str | None = None
    """A stage of this recipe that trains a policy, or `start`; instead of `model`."""
    checkpoints: Annotated[CheckpointAverage | None, BeforeValidator(_checkpoints)] = None
    """The mean of the last checkpoints of that stage, or of the stage's folder, in place of its final model."""

    @property
    def label(self) -> str:
        """As figures and errors name it."""
        return self.stage or self.model or ""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.model is None) == (self.stage is None):
            raise refuse(
                "nothing says which model this is" if self.model is None else "`model` and `stage` both name one",
                expected="`model` or `stage`",
                remedy="write `{model: FOLDER}`, or `{stage: NAME}` for a stage of this recipe",
            )
        if self.checkpoints is not None and self.stage == START:
            raise refuse(
                "the start of a recipe has no checkpoints of its training",
                path=("checkpoints",),
                remedy="name the stage that was trained, or the folder of one",
            )
        return self


def _source(value: Any) -> Any:
    """`base: FOLDER`"""
    return {"model": os.fspath(value)} if isinstance(value, (str, os.PathLike)) else value


AnySource = Annotated[MergeSource, BeforeValidator(_source)]


class MergeSettings(Settings):
    """What every merge has, whether a recipe, a command, Python or a file of mergekit's says it."""

    IS_FAMILY: ClassVar[bool] = True

    kind: str
    """How tensors are merged."""
    models: tuple[Any, ...]
    """The models, with what each counts."""
    base: AnySource | None = None
    """The model that they all come from; null: in a recipe its start, else the one that their folders name."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the weights that are written; `auto`: as the first model's are stored. What is between is float32."""
    tokens: Literal["refuse", "union", "base"] = "refuse"
    """Where the models' tokens differ: `refuse`; `union`, every token of any of them, merged by name; `base`, those of
    the base alone."""
    missing_tokens: Literal["own", "pieces"] = "own"
    """Of tokens that a model lacks under `union` or `base`. `own`: the row is the weighted mean of the models that have
    it. `pieces`: a model without the token takes the mean of the rows of those tokens with which its own tokenizer
    writes the text, and the method sees a row of every model."""
    template: Literal["refuse", "first"] = "refuse"
    """Where the models are spoken to differently: `refuse`; `first`, the merge is spoken to as the first model."""

    @property
    def row(self) -> MergeRow:
        return MERGE_METHODS[self.kind]

    @property
    def sources(self) -> tuple[MergeSource, ...]:
        """The base, where one is named, and the models."""
        return (*((self.base,) if self.base is not None else ()), *self.models)

    def draws_from(self, seed: int = 0) -> int:
        """The seed of a method that draws: its own, or else the run's."""
        own: int | None = vars(self).get("seed")
        return seed if own is None else own

    def common(self, name: str) -> Varied | bool | str | None:
        """An option of the merge, or what models take that do not say their own: common("lambda") == 1.0"""
        value: Varied | bool | str | None = getattr(self, _field(name))
        return value

    def of_model(self, index: int, name: str) -> Varied | None:
        """What the model itself says of a parameter; None where it takes the merge's: of_model(1, "weight") == 0.5"""
        value: Varied | None = getattr(self.models[index], _field(name))
        return value

    @model_validator(mode="after")
    def _count_fits(self) -> Self:
        least, most = self.row.models
        count = len(self.models)
        if count < least or (most is not None and count > most):
            wanted = f"{least}" if least == most else f"at least {least}" if most is None else f"{least} to {most}"
            raise refuse(
                f"`{self.kind}` merges another number of models" + (", not counting the base" if self.base else ""),
                path=("models",),
                found=f"{count} models",
                expected=f"{wanted}{' beside the base' if self.row.base == 'needed' else ''}",
                remedy="list that many, or choose another `kind`",
            )
        return self

    @model_validator(mode="after")
    def _tokens_may_be_missing(self) -> Self:
        if self.missing_tokens != "own" and self.tokens == "refuse":
            raise refuse(
                "models whose tokens differ are refused, so none lacks a token",
                path=("missing_tokens",),
                found=f"missing_tokens: {self.missing_tokens}, tokens: refuse",
                remedy="write `tokens: union` with it, or remove it",
            )
        return self

    @model_validator(mode="after")
    def _base_fits(self) -> Self:
        if self.row.base == "none" and self.base is not None:
            raise refuse(
                f"`{self.kind}` merges the weights themselves, not differences to a base",
                path=("base",),
                found=f"base: {self.base.label}",
                remedy="leave `base` out; a model that is to count belongs in `models`",
            )
        # Its difference to itself is 0: it would dilute every mean, and mergekit drops it without a word.
        for index, model in enumerate(self.models) if self.base is not None else ():
            if self.base is not None and _same(model, self.base):
                raise refuse(
                    f"the base `{self.base.label}` is also one of the models, from which it does not differ",
                    path=("models", index),
                    remedy="remove it from `models`; to keep more of the base, write smaller weights or `lambda`",
                )
        return self

    @model_validator(mode="after")
    def _weights_sum(self) -> Self:
        if not self.row.per_model.get("weight") or not vars(self).get("normalize", self.kind in ("nuslerp", "karcher")):
            return self
        weights = [self.value_of(index, "weight") for index in range(len(self.models))]
        plain = [float(weight) for weight in weights if isinstance(weight, (int, float))]
        divides_by_sizes = self.row.base == "needed"
        total = sum(abs(weight) if divides_by_sizes else weight for weight in plain)
        if len(plain) == len(weights) and abs(total) < 1e-8:
            raise refuse(
                "the weights sum to 0, and the result is divided by their sum",
                path=("models",),
                found=", ".join(f"{weight:g}" for weight in plain),
                remedy="write weights with another sum"
                + (", or `normalize: false`" if "normalize" in self.row.options else ""),
            )
        return self

    @model_validator(mode="after")
    def _epsilon_fits(self) -> Self:
        for index in range(len(self.models)) if "epsilon" in self.row.per_model else ():
            density, epsilon = self.value_of(index, "density"), self.value_of(index, "epsilon")
            if not isinstance(density, (int, float)) or not isinstance(epsilon, (int, float)) or density in (0, 1):
                continue
            if density - epsilon < 0 or density + epsilon > 1:
                raise refuse(
                    "probabilities of `density` ± `epsilon` leave the range from 0 to 1",
                    path=("models", index),
                    found=f"density: {density:g}, epsilon: {epsilon:g}",
                    remedy=f"write `epsilon: {min(density, 1 - density):g}` or less",
                )
        return self

    def value_of(self, index: int, name: str) -> Varied | bool | str | None:
        """A model's own parameter, or else the merge's: value_of(0, "weight") == 1.0"""
        own = self.of_model(index, name)
        return self.common(name) if own is None else own


def _same(one: MergeSource, other: MergeSource) -> bool:
    return (one.model, one.stage, one.checkpoints) == (other.model, other.stage, other.checkpoints)


# ---------------------------------------------------------------- one record per row of the table


def _field(name: str) -> str:
    """`lambda` is a word of Python, so its field is `lambda_`; recipes write `lambda`."""
    return "lambda_" if name == "lambda" else name


def _type(parameter: MergeParameter) -> Any:
    if parameter.choices:
        return Literal[parameter.choices]
    if isinstance(parameter.default, bool):
        return bool
    if isinstance(parameter.default, int):
        return Annotated[Int, AfterValidator(_within(parameter))]
    return Annotated[VariedField, AfterValidator(_within(parameter))]


def _described(parameter: MergeParameter, name: str, default: Any) -> Any:
    meaning = parameter.known.meaning
    text = meaning[:1].upper() + meaning[1:] + "."
    alias = "lambda" if name == "lambda" else None
    return Field(description=text, alias=alias, **({} if default is None else {"default": default}))


def _model_record(kind: str, row: MergeRow) -> type[MergeSource]:
    fields: dict[str, Any] = {
        # None: the merge's own value, which stands beside `models`.
        name: (_type(known) | None, Field(default=None, description=_described(known, name, 0).description))
        for name, known in row.per_model.items()
    }
    text = f"One model of a merge by `{kind}`."
    record = create_model(f"{kind}_model", __base__=MergeSource, __module__=__name__, __doc__=text, **fields)
    record.__qualname__ = f"{kind}_model"
    return record


MODEL_RECORDS: Mapping[str, type[MergeSource]] = {kind: _model_record(kind, row) for kind, row in MERGE_METHODS.items()}


def _record(kind: str, row: MergeRow) -> type[MergeSettings]:
    one: Any = Annotated[MODEL_RECORDS[kind], BeforeValidator(_source)]
    models = Field(min_length=1, description="The models, each with its own parameters where they differ.")
    fields: dict[str, Any] = {
        "kind": (Literal[kind], Field(default=kind, description=row.source)),
        "models": (tuple[one, ...], models),
    }
    for name, known in {**row.per_model, **row.options}.items():
        fields[_field(name)] = (_type(known), _described(known, name, known.default))
    if row.random:
        seed = "Where its draws start, of each tensor apart; null: the recipe's seed, or 0."
        fields["seed"] = (Int | None, Field(default=None, ge=0, lt=2**32, description=seed))
    text = f"Merge by `{kind}`.\n\n{row.source}"
    record = create_model(f"merge_{kind}", __base__=MergeSettings, __module__=__name__, __doc__=text, **fields)
    record.__qualname__ = f"merge_{kind}"
    return record


MERGES: Mapping[str, type[MergeSettings]] = {kind: _record(kind, row) for kind, row in MERGE_METHODS.items()}
"""The settings of each method, by its name."""

if TYPE_CHECKING:  # the table is only known when it runs
    AnyMerge = MergeSettings
else:
    AnyMerge = Annotated[Union[tuple(MERGES.values())], Field(discriminator="kind")]  # noqa: UP007


def merge_settings(kind: str, models: Sequence[Any], **options: Any) -> MergeSettings:
    """Settings from Python: merge_settings("ties", ["runs/a/model", {"model": "runs/b/model", "weight": 0.5}]).

    Args:
        models: folders, names, or groups of keys as a recipe has them.
        options: keys of the method; `lambda_` for `lambda`.

    Raises:
        UnknownKeyError: no method of that name, or an option that it does not have.
        ConfigError: a value that it does not admit.
    """
    if kind not in MERGES:
        raise unknown("method of merging", kind, MERGES)
    return MERGES[kind](models=tuple(models), **options)


# ---------------------------------------------------------------- the stage


class Merge(StageSettings):
    """Merge models into one policy, from which the stages after it start. Trains nothing and reads no rows."""

    OUTPUTS: ClassVar[Output] = "policy"
    READS_ROWS: ClassVar[bool] = False

    method: Literal["merge"] = "merge"
    """Merge the weights of several models."""
    merge: AnyMerge
    """Which models, and how, by its `kind`."""
    search: WeightSearch | None = None
    """Choose weights, densities or `t` on one half of a suite, and report on the other; null: what is written."""
    barrier: BarrierSettings | None = None
    """Measure the loss on the straight lines between the models; null: nobody asks."""

    @property
    def chosen_by(self) -> tuple[str, ...]:
        return () if self.search is None else self.search.suite

    @model_validator(mode="after")
    def _no_rows(self) -> Self:
        if self.data is not None:
            raise refuse("a merge reads no rows", path=("data",), remedy="remove `data`")
        return self

    @model_validator(mode="after")
    def _something_to_search(self) -> Self:
        if self.search is None:
            return self
        merge, over = self.merge, self.search.over
        key, part = {"weights": ("weight", "per_model"), "t": ("t", "options")}.get(over, (over, "per_model"))
        if (found := getattr(merge.row, part).get(key)) is None:
            having = [kind for kind, row in MERGE_METHODS.items() if key in getattr(row, part)]
            raise refuse(
                f"`{merge.kind}` has no {over} to search",
                path=("search",),
                expected=f"one of {', '.join(having)}",
                remedy="remove `search`, or choose another `kind`",
            )
        for value in self.search.values:
            _within(found)(value)
        written = [merge.common(key)] if over == "t" else [merge.value_of(i, key) for i in range(len(merge.models))]
        if not all(isinstance(value, (int, float)) for value in written):
            raise refuse(
                f"`{key}` differs between layers or tensors, and a search tries one number for each model",
                path=("search",),
                remedy=f"write `{key}` as a number, or remove `search`",
            )
        return self

    @model_validator(mode="after")
    def _two_ends(self) -> Self:
        if self.barrier is not None and len(self.merge.models) < 2:
            raise refuse(
                "a line needs two models, and this merge has one", path=("barrier",), remedy="remove `barrier`"
            )
        return self


def sources_in(stage: StageSettings) -> Iterator[tuple[tuple[str | int, ...], MergeSource]]:
    """Every model that a merge names, with its path from the stage; nothing of other stages."""
    if isinstance(stage, Merge):
        if stage.merge.base is not None:
            yield ("merge", "base"), stage.merge.base
        for index, model in enumerate(stage.merge.models):
            yield ("merge", "models", index), model
