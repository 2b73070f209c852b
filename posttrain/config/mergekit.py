"""mergekit's YAML as settings of a merge: `posttrain merge mergekit.yaml` does what mergekit would, or says why not.

    found = from_mergekit(text, "ties.yml")
    found.settings        # merge_ties(models=..., density=1.0, rescale="none")
    found.notes           # what is different here, one line each, to be shown

mergekit's defaults are written out, as ours follow the papers: a density of 1, and the rescaling and normalisation that
each of its methods has. What it ignores without a word (parameters that a method does not have) becomes a note, what it
can and we cannot is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from posttrain.config.explain import Places, explain
from posttrain.config.merge_methods import MERGE_METHODS, MergeRow
from posttrain.config.merging import MERGES, MergeSettings
from posttrain.config.yaml_text import parse
from posttrain.errors import ConfigError, unknown

KEYS = (
    "merge_method", "models", "slices", "base_model", "parameters", "dtype", "out_dtype", "tokenizer_source",
    "tokenizer", "chat_template",
)  # fmt: skip
NOT_HERE: Mapping[str, tuple[str, str]] = {
    "modules": ("merges of models with several towers, module by module", "merge the language model's folder alone"),
    "experts": ("mixtures of experts made of whole models", "use mergekit-moe"),
    "gate_mode": ("mixtures of experts made of whole models", "use mergekit-moe"),
    "genome": ("the evolution of merges", "use a recipe's stage `merge` with `search: {suite: NAME}`"),
    "name": ("several merges in one file", "write a recipe with a stage `merge` for each"),
}
"""Keys of other files of mergekit's: what they do, and what to do here."""
NAMES: Mapping[str, Mapping[str, str]] = {
    "karcher": {"max_iter": "iterations", "tol": "tolerance"},
    "multislerp": {"normalize_weights": "normalize"},
    "ram": {"epsilon": "threshold"},
    "ramplus_tl": {"epsilon": "threshold"},
}
"""Their parameters that have another name here, by method."""
WITHOUT_EFFECT: Mapping[str, str] = {
    "int8_mask": "masks need no setting here",
    "eps": "directions of no length are found without a threshold",
}
NORMALIZES = ("ties", "della")
RESCALES = ("dare_linear", "dare_ties", "della", "della_linear")
"""Methods for which mergekit does so unless told otherwise, of those that have the parameter."""


@dataclass(frozen=True, slots=True)
class MergekitFile:
    """MergekitFile(merge_ties(...), ("`int8_mask` is left out: masks need no setting here",), layers=None)"""

    settings: MergeSettings
    notes: tuple[str, ...]
    """What was assumed or left out, one line each."""
    layers: int | None
    """The layers that the file's slices name; the models must have so many. None: it names models."""


def from_mergekit(text: str, source: str) -> MergekitFile:
    """Reads one file of mergekit's.

    Args:
        source: what errors call the file.

    Raises:
        UnknownKeyError: keys or a method that mergekit does not have.
        ConfigError: what it has and posttrain has not, each with what to do; or values that a method does not admit.
    """
    raw = parse(text, source).value
    if not isinstance(raw, dict) or "merge_method" not in raw:
        for key in NOT_HERE if isinstance(raw, dict) else ():
            if key in raw:
                raise _not_here(key, source)
        raise ConfigError(
            "this is no merge of mergekit's",
            where=source,
            expected="a group of keys with `merge_method`",
            example="{merge_method: ties, base_model: FOLDER, models: [{model: FOLDER, parameters: {weight: 1}}]}",
            remedy="write `merge_method`, or a recipe of posttrain (docs/merging.md)",
        )
    return _Reader(raw, source).read()


def is_mergekit(raw: object) -> bool:
    """Whether a document that was read is meant as mergekit's: is_mergekit({"merge_method": "ties"})"""
    return isinstance(raw, Mapping) and ("merge_method" in raw or "gate_mode" in raw)


def _not_here(key: str, source: str) -> ConfigError:
    what, instead = NOT_HERE[key]
    return ConfigError(f"posttrain has no {what} (`{key}`)", where=source, found=key, remedy=instead)


class _Reader:
    """One file, and what is different about it here."""

    def __init__(self, raw: Mapping[str, Any], source: str):
        self._raw, self._source = raw, source
        self._notes: list[str] = []
        self._kind = str(raw["merge_method"])
        if self._kind not in MERGE_METHODS:
            raise unknown("merge method", self._kind, MERGE_METHODS, where=source)
        for key in raw:
            if key in NOT_HERE:
                raise _not_here(key, source)
            if key not in KEYS:
                raise unknown("key", key, KEYS, where=source, otherwise=f"remove `{key}`")

    @property
    def _row(self) -> MergeRow:
        return MERGE_METHODS[self._kind]

    def read(self) -> MergekitFile:
        models, common, layers = self._models()
        values: dict[str, Any] = {"kind": self._kind, **self._defaults()}
        values |= self._parameters({**self._group("parameters", self._raw), **common}, "the merge")
        base = self._name(self._raw["base_model"]) if self._raw.get("base_model") is not None else None
        models, values["base"] = self._with_base(models, base)
        values["models"] = [{"model": name, **self._parameters(own, name, of_model=True)} for name, own in models]
        self._require_weights(values)
        values["dtype"] = self._dtype()
        values["tokens"] = self._tokens(base)
        if _varies_by_layer([values, *values["models"]]):
            self._notes.append(
                "what comes behind the layers (last norm, head) takes the last value of a list; in mergekit the first"
            )
        record = MERGES[self._kind]
        try:
            settings = record.model_validate(values)
        except ValidationError as error:
            raise explain(error, record, values, Places(self._source)) from None
        return MergekitFile(settings, tuple(self._notes), layers)

    # ------------------------------------------------------------ models

    def _models(self) -> tuple[list[tuple[str, dict[str, Any]]], dict[str, Any], int | None]:
        """(name, parameters) of each model, the parameters of the only slice, and its number of layers."""
        if ("models" in self._raw) == ("slices" in self._raw):
            raise self._wrong("`models` or `slices` says what is merged", remedy="write one of the two")
        if "models" in self._raw:
            found = self._list("models", self._raw)
            return [(self._model_of(item), self._group("parameters", item)) for item in found], {}, None
        slices = self._list("slices", self._raw)
        sources = self._list("sources", slices[0])
        ranges = [list(item.get("layer_range") or ()) for item in sources]
        whole = len(slices) == 1 and all(one == ranges[0] and len(one) == 2 and one[0] == 0 for one in ranges)
        if not whole:
            raise self._wrong(
                "posttrain merges models layer by layer, and neither stacks nor reorders layers (`slices`)",
                found=f"{len(slices)} slices of layers {', '.join(map(str, ranges))}",
                expected="one slice whose sources all have `layer_range: [0, LAYERS]`",
                remedy="write `models` in place of `slices`, or use mergekit for this file",
            )
        base = slices[0].get("base_model")
        if base is not None and base != self._raw.get("base_model"):
            raise self._wrong(
                "a slice names a base of its own", found=str(base), remedy="write `base_model` at the top"
            )
        models = [(self._model_of(item), self._group("parameters", item)) for item in sources]
        return models, self._group("parameters", slices[0]), int(ranges[0][1])

    def _model_of(self, item: Mapping[str, Any]) -> str:
        if "model" not in item:
            raise self._wrong("a model has no name", found=str(dict(item)), remedy="write `model: FOLDER`")
        return self._name(item["model"])

    def _name(self, value: Any) -> str:
        """The folder or name of one of mergekit's references to a model."""
        if isinstance(value, Mapping):
            path = value.get("model", value)
            path = path.get("path") if isinstance(path, Mapping) else path
            if value.get("lora") is None and isinstance(path, str):
                return self._name(path)
        name = value if isinstance(value, str) else None
        if name is None or "+" in name:
            raise self._wrong(
                "a model with an adapter is named by the adapter's folder here, which names its base itself",
                found=str(value),
                remedy="write the folder of the adapter alone",
            )
        if "@" in name:
            raise self._wrong(
                "a model is a folder or a name here, without a revision",
                found=name,
                remedy="download that revision, and write its folder",
            )
        return name

    def _with_base(
        self, models: list[tuple[str, dict[str, Any]]], base: str | None
    ) -> tuple[list[tuple[str, dict[str, Any]]], str | None]:
        """The models and the base as the method has them here."""
        if base is None:
            return models, None
        others = [(name, own) for name, own in models if name != base]
        if self._row.base != "none":
            if len(others) < len(models):
                self._notes.append(
                    f"the base `{base}` is listed among the models, where it adds nothing, as in mergekit"
                )
            return others, base
        if self._kind == "slerp":  # t counts from the base
            return [(base, {}), *others], None
        if self._kind == "karcher" and len(others) == len(models):  # mergekit adds the base to the models
            return [*models, (base, {})], None
        if self._kind != "karcher":
            self._notes.append(f"`base_model` is left out: `{self._kind}` takes no differences to a base")
        return models, None

    # ------------------------------------------------------------ parameters

    def _defaults(self) -> dict[str, Any]:
        """mergekit's defaults, where they are not ours."""
        values: dict[str, Any] = {}
        if "density" in self._row.per_model:
            values["density"] = 1.0
        if "rescale" in self._row.options:
            values["rescale"] = "l1" if self._kind in RESCALES else "none"
            values["normalize"] = self._kind in NORMALIZES
        return values

    def _parameters(self, given: Mapping[str, Any], whose: str, *, of_model: bool = False) -> dict[str, Any]:
        """Their parameters with the names and values that they have here."""
        values: dict[str, Any] = {}
        for key, value in given.items():
            name = NAMES.get(self._kind, {}).get(key, key)
            if self._kind == "nuslerp" and key in ("nuslerp_flatten", "nuslerp_row_wise"):
                continue
            if key in WITHOUT_EFFECT:
                self._notes.append(f"`{key}` is left out: {WITHOUT_EFFECT[key]}")
            elif name not in self._row.per_model and (of_model or name not in self._row.options):
                # mergekit reads past it.
                self._notes.append(f"`{key}` of {whose} is left out: `{self._kind}` has no such parameter there")
            elif name == "rescale":
                values[name] = "l1" if value else "none"
            else:
                values[name] = value
        if self._kind == "nuslerp" and not of_model:
            by_column = bool(given.get("nuslerp_row_wise"))
            flat = bool(given.get("nuslerp_flatten", True))
            values["vectors"] = "tensor" if flat else "columns" if by_column else "rows"
        return values

    def _require_weights(self, values: Mapping[str, Any]) -> None:
        # Karcher takes all models alike in mergekit; elsewhere it ends without a weight, so no file leaves it out.
        if "weight" not in self._row.per_model or self._kind == "karcher" or "weight" in values:
            return
        for model in values["models"]:
            if "weight" not in model:
                raise self._wrong(
                    f"`{model['model']}` has no weight, which mergekit needs",
                    example="{model: FOLDER, parameters: {weight: 1.0}}",
                    remedy="write `weight` for it, or in the `parameters` of the merge",
                )

    # ------------------------------------------------------------ what is written

    def _dtype(self) -> str:
        wanted = self._raw.get("out_dtype") or self._raw.get("dtype") or "auto"
        if self._raw.get("dtype") in ("bfloat16", "float16"):
            self._notes.append(f"computed in float32, and not in {self._raw['dtype']}; written as {wanted}")
        return str(wanted)

    def _tokens(self, base: str | None) -> str:
        group = self._group("tokenizer", self._raw)
        for key in ("tokens", "pad_to_multiple_of"):
            if group.get(key) is not None:
                raise self._wrong(
                    f"posttrain sets no embeddings of single tokens in a merge (`tokenizer.{key}`)",
                    found=key,
                    remedy=f"remove `tokenizer.{key}`",
                )
        source = group.get("source", "union") if group else self._raw.get("tokenizer_source")
        template = self._raw.get("chat_template")
        if template not in (None, "auto"):
            raise self._wrong(
                "a merge keeps the template that its models share (`chat_template`)",
                found=str(template)[:60],
                remedy="remove `chat_template`; give the models one template before they are merged",
            )
        if source is None:
            self._notes.append("models with other tokens are refused; mergekit would go on with the base's")
            return "refuse"
        if source in ("union", "base"):
            return str(source)
        if base is not None and self._name(source) == base:
            return "base"
        raise self._wrong(
            "the tokens of a merge are those of the base, or of all models",
            found=str(source),
            expected="union, base, or the base model's name",
            remedy="write `tokenizer_source: union`",
        )

    # ------------------------------------------------------------ parts of the document

    def _group(self, key: str, owner: Mapping[str, Any]) -> dict[str, Any]:
        value = owner.get(key)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise self._wrong(f"`{key}` is a group of keys", found=str(value), remedy=f"write `{key}: {{...}}`")
        return dict(value)

    def _list(self, key: str, owner: Mapping[str, Any]) -> list[Any]:
        value = owner.get(key)
        if not isinstance(value, list) or not value or not all(isinstance(item, Mapping) for item in value):
            raise self._wrong(
                f"`{key}` is a list of groups", found=str(value)[:80], remedy=f"write `{key}: [{{model: FOLDER}}, ...]`"
            )
        return value

    def _wrong(self, problem: str, *, remedy: str, **details: Any) -> ConfigError:
        return ConfigError(problem, where=self._source, remedy=remedy, **details)


def _varies_by_layer(value: Any) -> bool:
    """Whether there is a list of numbers in it."""
    if isinstance(value, Mapping):
        return any(_varies_by_layer(item) for item in value.values())
    if not isinstance(value, list):
        return False
    return any(isinstance(item, (int, float)) for item in value) or any(_varies_by_layer(item) for item in value)
