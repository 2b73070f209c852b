"""Validation errors in the reader's words: where it stands, what was found, what was expected, what to write.

pydantic finds the mistakes; this module names each by the path that the reader can also type as an override
(`dpo.optimizer.clip_norm`), the file and line or the override that holds it, and the nearest valid name.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, cast, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from posttrain.config.addresses import is_secret_name, masked
from posttrain.config.meanings import meaning_of
from posttrain.config.other_tools import (
    METHOD_OF_LOSS,
    NOT_HERE,
    OTHER_TOOLS,
    OTHER_TOOLS_ONLINE,
    STRICT,
    to_switch_off,
)
from posttrain.errors import ConfigError, UnknownKeyError, did_you_mean, nearest, unknown

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

KeyPath = tuple[str | int, ...]

WORDS = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dict_type": "a group of keys",
    "float_parsing": "a number",
    "float_type": "a number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_parsing_size": "a whole number of fewer digits",
    "list_type": "a list",
    "model_attributes_type": "a group of keys",
    "model_type": "a group of keys",
    "string_type": "text (put quotes around it)",
    "too_short": "at least one item",
    "tuple_type": "a list",
}

EXAMPLES = {
    "data": "rows.jsonl",
    "epochs": "1",
    "learning_rate": "2e-5",
    "method": "sft",
    "model": "embedded",
    "name": "mine",
    "path": "rows.jsonl",
    "prompts": "questions.jsonl",
    "scorer": "logprob",
    "stages": "[{method: sft, data: rows.jsonl}]",
    "steps": "100",
    "teacher": "smollm2-135m-instruct",
}
"""What to write for keys that have no default to show."""


@dataclass(frozen=True)
class Places:
    """Where each value was written: Places("dpo.yaml", {("stages", 0, "beta"): 12}, {("seed",): "seed=x"})."""

    source: str
    lines: Mapping[KeyPath, int] = field(default_factory=dict)
    overrides: Mapping[KeyPath, str] = field(default_factory=dict)

    def of(self, path: KeyPath) -> str:
        """The closest place that is known: the value's own, or that of the group around it."""
        # Before any line: what an override replaced as a whole still has the lines of what stood there.
        for length in range(len(path), -1, -1):
            if path[:length] in self.overrides:
                return f"override {masked(self.overrides[path[:length]])}"
        # From the value outwards: a default has no line of its own, the group around it has.
        for length in range(len(path), -1, -1):
            if path[:length] in self.lines:
                return f"{self.source}, line {self.lines[path[:length]]}"
            for inner, assignment in self.overrides.items():
                if length == len(path) and inner[:length] == path:  # the group that an override made
                    return f"override {masked(assignment)}"
        return self.source


@dataclass(frozen=True)
class Spot:
    """What a pydantic location points at: the path in the recipe, the record around it and its field there."""

    path: KeyPath
    record: type[BaseModel]
    option: FieldInfo | None


def explain(error: ValidationError, model: type[BaseModel], data: object, places: Places | str) -> ConfigError:
    """One error for all mistakes of a recipe; an UnknownKeyError if every mistake is an unknown key."""
    known = Places(places) if isinstance(places, str) else places
    details = [detail for detail in error.errors(include_url=False) if not _is_echo(detail, error)]
    # All mistakes at once: a recipe is long to queue for, and short to mend.
    return merge_errors([_explain_detail(detail, model, data, known) for detail in details], known.source)


def merge_errors(mistakes: Sequence[ConfigError], source: str) -> ConfigError:
    """Several mistakes as one error, so that one run shows all of them."""
    if len(mistakes) == 1:
        return mistakes[0]
    kind = UnknownKeyError if all(isinstance(mistake, UnknownKeyError) for mistake in mistakes) else ConfigError
    listed = "\n\n".join(str(mistake) for mistake in mistakes)
    return kind(f"{len(mistakes)} mistakes\n\n{listed}\n", where=source, remedy="mend them all, then run it again")


def spell(data: object, path: KeyPath) -> str:
    """The path as an override writes it: ("stages", 1, "beta") -> "dpo.beta"."""
    words: list[str] = []
    node = data
    for step in path:
        node = _child(node, step)
        if isinstance(step, int):
            name = node.get("name") or node.get("method") if isinstance(node, Mapping) else None
            # Of a selection's step `method` is a group of keys, and no name.
            words.append(name if name and isinstance(name, str) else str(step))
        else:
            words.append(step)
    # As an override is typed: `dpo.beta`, not `stages.dpo.beta`.
    if words[:1] == ["stages"] and len(words) > 1 and not words[1].isdigit():
        words = words[1:]
    return ".".join(words)


def fields_of(record: type[BaseModel]) -> dict[str, FieldInfo]:
    """The record's fields by the name that a recipe writes."""
    return {option.alias or name: option for name, option in record.model_fields.items()}


def records_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The records that a field can hold: `tuple[Match | Exact, ...] | None` -> Match, Exact."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) is Annotated:
        yield from records_in(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, types.UnionType, tuple, list):
        for argument in get_args(annotation):
            yield from records_in(argument)
    elif get_origin(annotation) is dict:
        yield from records_in(get_args(annotation)[1])


def tag_of(record: type[BaseModel]) -> str | None:
    """What `method`, `kind` or `mode` says to choose this record."""
    for key in ("method", "kind", "mode"):
        of = option.annotation if (option := record.model_fields.get(key)) is not None else None
        if get_origin(of) is Literal and (key != "mode" or len(get_args(of)) == 1):  # `preflight.mode` is no tag
            return str(get_args(of)[0])
    return None


# ---------------------------------------------------------------- one mistake


def _is_echo(detail: ErrorDetails, error: ValidationError) -> bool:
    """Follows from another mistake: a default that could not be computed, a list that misses its wrong items."""
    # A list whose items are all wrong is empty to pydantic; the items' own errors say it better.
    if detail["type"] == "too_short":
        place = detail["loc"]
        return any(other["loc"][: len(place)] == place and other["loc"] != place for other in error.errors())
    return detail["type"] == "default_factory_not_called"


def _locate(model: type[BaseModel], data: object, location: Sequence[str | int]) -> Spot:
    """Follow a location through the models: it holds union tags, which the recipe's path does not."""
    records, node, path = [model], data, list[str | int]()
    record, option, names = model, None, False
    for step in location:
        # A union's tag is a step of pydantic's location and none of the recipe's path.
        chosen = [candidate for candidate in records if tag_of(candidate) == step] if len(records) > 1 else []
        if chosen:
            records, record = chosen, chosen[0]
            continue
        if names:  # the keys of a mapping are the user's own, and no fields
            names = False
        elif isinstance(step, str):
            named = fields_of(records[0]).get(step) if records else None
            if named is None and step in ("number", "record", "layers", "tensors"):  # tags of values.either, merging
                continue
            option = named
            record = records[0] if records else record
            records = list(records_in(option.annotation)) if option is not None else []
            names = option is not None and bool(records) and get_origin(option.annotation) is dict
        path.append(step)
        node = _child(node, step)
    return Spot(tuple(path), record, option)


def _child(node: object, step: str | int) -> object:
    if isinstance(node, Mapping):
        return node.get(step)
    if isinstance(node, (list, tuple)) and isinstance(step, int) and step < len(node):
        return node[step]
    return None


def _explain_detail(detail: ErrorDetails, model: type[BaseModel], data: object, places: Places) -> ConfigError:
    spot = _locate(model, data, detail["loc"])
    context = detail.get("ctx", {})
    kind = detail["type"]
    if kind == "extra_forbidden":
        return _unknown_key(spot, model, data, detail["input"], places)
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return _unknown_tag(spot, data, context, places)
    if kind == "posttrain":
        path, problem = spot.path + tuple(context["path"]), context["problem"]
        details = {key: context[key] for key in ("found", "expected", "example", "remedy") if key in context}
        return ConfigError(f"`{spell(data, path)}`: {problem}" if path else problem, where=places.of(path), **details)
    name, where = spell(data, spot.path), places.of(spot.path)
    if kind == "missing":
        return ConfigError(f"`{name}` is missing", where=where, remedy=_advice(spot))
    if kind == "literal_error":
        choices = [str(choice) for choice in get_args(spot.option.annotation)] if spot.option else []
        near = nearest(str(detail["input"]), choices)
        return ConfigError(
            f"`{name}` has a value that it does not know",
            where=where,
            found=_shown(detail["input"]),
            expected=f"one of {', '.join(choices)}" if choices else context.get("expected"),
            remedy=f"write `{spot.path[-1]}: {near}`" if near else _advice(spot),
        )
    expected = WORDS.get(kind, detail["msg"].removeprefix("Input should be "))
    if kind == "too_long":  # pydantic's own words name its types: "Tuple should have ... after validation"
        expected = f"at most {context['max_length']} items, not {context['actual_length']}"
    if kind == "string_pattern_mismatch" and spot.option is not None:
        expected = _meaning(spot) or expected
    return ConfigError(
        f"`{name}` has a wrong value",
        where=where,
        # Who takes `key_env` for the key itself would find it in logs.
        found="***" if spot.path[-1:] == ("key_env",) else _shown(detail["input"]),
        expected=expected,
        remedy=to_switch_off(spot.path, detail["input"]) or _advice(spot),
    )


def _unknown_key(spot: Spot, model: type[BaseModel], data: object, value: object, places: Places) -> UnknownKeyError:
    key = str(spot.path[-1])
    own = list(fields_of(spot.record))
    # A key of a sibling is the right key in the wrong place: to propose a near name would mislead.
    owners = [tag for tag, record in _family(spot.record).items() if key in fields_of(record)]
    problem = f"`{spell(data, spot.path)}` is not a key"
    expected: str | None = None
    # Before the nearest name: another tool's word for a key is often near to a key that means something else.
    around = (key, value, spot.record, _stage_at(spot.path, model, data), model)
    if (foreign := foreign_key(*around)) is not None:
        remedy = foreign
    elif owners:
        problem = f"`{key}` is not a key of {tag_of(spot.record)}; {_and(owners)} {'have' if owners[1:] else 'has'} it"
        # A group of the stage may have the key (`make.sampling` of pairs): to remove it would lose what is meant.
        inside = misplaced_key(*around) if around[3] is spot.record else None
        remedy = f"{inside or f'remove `{key}`'}, or choose {'one of those' if owners[1:] else owners[0]}"
    elif (place := misplaced_key(*around)) is not None:
        remedy = place
    elif (words := OTHER_TOOLS.get(key) or OTHER_TOOLS_ONLINE.get(key)) is not None:
        remedy = f"remove it: here it is `{words.partition(',')[0]}`, which other methods have"
    elif (near := nearest(key, own, cutoff=STRICT)) is not None:
        remedy = did_you_mean(near)
    else:
        expected, remedy = f"one of {', '.join(own)}", "remove it"
    return UnknownKeyError(
        problem,
        where=places.of(spot.path),
        found=_shown_entry(key, value),
        expected=expected,
        remedy=f"{remedy} (docs/recipes.md explains every key)",
    )


def foreign_key(
    key: str, value: object, record: type[BaseModel], stage: type[BaseModel] | None, root: type[BaseModel]
) -> str | None:
    """What to write for a key that another tool uses; None where it is none of them, or has no place around here.

    Args:
        record: the group in which the key was found.
        stage: the stage around it; at the top of a recipe, the recipe's first one.
        root: the recipe, or the stage where there is no recipe.
    """
    for words in (OTHER_TOOLS_ONLINE.get(key), OTHER_TOOLS.get(key)):
        if words is not None and (advice := _placed(words, value, record, stage, root)) is not None:
            return _method_advice(key, value) if words == "method" else advice
    return f"remove it: posttrain has no `{key}`; {NOT_HERE[key]}" if key in NOT_HERE else None


def misplaced_key(
    key: str, value: object, record: type[BaseModel], stage: type[BaseModel] | None, root: type[BaseModel]
) -> str | None:
    """Where a key of posttrain belongs that stands in the wrong group; the arguments are those of `foreign_key`."""
    if (advice := _placed(key, value, record, stage, root)) is not None:
        return advice
    for scope, place in _scopes(record, stage, root).items():
        for group, option in fields_of(scope).items():
            inside = any(key in fields_of(inner) for inner in records_in(option.annotation))
            if inside and group not in ("stages", "evaluate"):
                return f"write `{group}.{key}`{place}"
    return None


def _placed(
    words: str, value: object, record: type[BaseModel], stage: type[BaseModel] | None, root: type[BaseModel]
) -> str | None:
    """ "optimizer.clip_norm" -> write `optimizer.clip_norm` in the stage, beside `method: sft`"""
    name, comma, remark = words.partition(",")
    head, _, inner = name.partition(".")
    # Only where a record has the key: `temperature` means nothing to a stage that samples nothing.
    for scope, place in _scopes(record, stage, root).items():
        if head not in fields_of(scope):
            continue
        pasted = record is root and place and not remark and not isinstance(value, (Mapping, list))
        # `bf16: true` is `compute.precision` in another tool's words, and `precision: true` would be refused in turn.
        if pasted and scope is stage and _fits(scope, name, value):
            written = f"{head}: {{{inner}: {_shown(value)}}}" if inner else f"{name}: {_shown(value)}"
            return f"it belongs in a stage: `stages: [{{method: {tag_of(stage)}, {written}}}]`"
        return f"write `{name}`{comma}{remark}{place}"
    return None


def _fits(record: type[BaseModel], name: str, value: object) -> bool:
    """Whether a value is of the kind that the record takes under this key, which may lie in a group: "adapter.rank"."""
    key, _, inner = name.partition(".")
    option = fields_of(record)[key]
    if inner:
        return any(_fits(group, inner, value) for group in records_in(option.annotation) if inner in fields_of(group))
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(cast(Any, option.annotation))
        adapter.validate_python(value)
    except ValidationError:
        return False
    return True


def _scopes(
    record: type[BaseModel], stage: type[BaseModel] | None, root: type[BaseModel]
) -> dict[type[BaseModel], str]:
    """The records where a key may belong, from the inside outwards, with the words for the place."""
    scopes = {record: ""}
    if stage is not None:
        scopes.setdefault(stage, f" in the stage, beside `method: {tag_of(stage)}`")
    scopes.setdefault(root, " at the left margin of the recipe")
    return scopes


def _method_advice(key: str, value: object) -> str:
    """`loss_type: ipo` -> write `method: ipo`; `sigmoid`, which is what `dpo` computes, -> `method: dpo`."""
    method = METHOD_OF_LOSS.get(str(value), str(value))
    return f"remove it, and write `method: {method}` in the stage: the loss is the stage's method"


def _stage_at(path: KeyPath, model: type[BaseModel], data: object) -> type[BaseModel] | None:
    """The record of the stage around a path; of a recipe's first stage, where the path is in none."""
    if "stages" not in fields_of(model):
        return model
    at = path[1] if path[:1] == ("stages",) and len(path) > 1 else 0
    written = _child(_child(data, "stages"), at)
    method = written.get("method") if isinstance(written, Mapping) else None
    kinds = {tag_of(record): record for record in records_in(fields_of(model)["stages"].annotation)}
    return kinds.get(str(method)) or kinds.get("sft")


def _unknown_tag(spot: Spot, data: object, context: Mapping[str, Any], places: Places) -> ConfigError:
    key = str(context["discriminator"]).strip("'")
    choices = [tag for record in records_in(spot.option.annotation if spot.option else None) if (tag := tag_of(record))]
    path = (*spot.path, key)
    if "tag" not in context:
        return ConfigError(
            f"`{spell(data, path)}` is missing",
            where=places.of(path),
            expected=f"one of {', '.join(choices)}",
            remedy=f"add `{key}:`",
        )
    error = unknown(key, context["tag"], choices, where=places.of(path), found=f"{key}: {context['tag']}")
    error.remedy = to_switch_off(spot.path, context["tag"]) or error.remedy
    return error


def _family(record: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """The records among which `method` or `kind` chooses this one, by what it says."""
    # The nearest base that says so in its own class body: the flag is inherited by all kinds below it.
    base = next((one for one in record.__mro__ if one.__dict__.get("IS_FAMILY")), None)
    return {tag: member for member in _leaves(base) if (tag := tag_of(member)) and member is not record} if base else {}


def _leaves(record: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for child in record.__subclasses__():
        yield child
        yield from _leaves(child)


def _advice(spot: Spot) -> str:
    if spot.option is None:
        return "docs/recipes.md shows every key with an example"
    name = next((step for step in reversed(spot.path) if isinstance(step, str)), "it")
    description = (_meaning(spot) or "").replace("\n\n", ". ").replace("\n", " ").split(". ")[0]
    default = spot.option.default
    has_value = default is not None and not spot.option.is_required() and spot.option.default_factory is None
    if not has_value or isinstance(default, BaseModel) or not description:
        written = f"write `{name}: {example}`, say" if (example := _example(name, spot.option)) else f"correct `{name}`"
        return " -- ".join(filter(None, (written, description)))
    return f"write `{name}: {_shown(default)}`, say -- {description}"


def _meaning(spot: Spot) -> str | None:
    key = next((key for key, option in fields_of(spot.record).items() if option is spot.option), None)
    return None if key is None else meaning_of(spot.record, key)


def _example(name: str, option: FieldInfo) -> str | None:
    """A value that can be written as it is: "2e-5", or of a group its first key with its default, "{rank: 16}"."""
    if name in EXAMPLES:
        # The steps of a selection are no number.
        return "[{kind: deduplicate}]" if name == "steps" and any(records_in(option.annotation)) else EXAMPLES[name]
    for record in records_in(option.annotation):
        for key, inner in fields_of(record).items():
            if key not in ("kind", "method") and isinstance(inner.default, (str, int, float)):
                return f"{{{key}: {_shown(inner.default)}}}"
    return None


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        text = "{" + ", ".join(_shown_entry(key, item) for key, item in value.items()) + "}"
    elif isinstance(value, (list, tuple)):
        text = "[" + ", ".join(_shown(item) for item in value) + "]"
    else:
        text = str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)
        text = masked(text)
    return text if len(text) <= 120 else text[:117] + "..."


def _shown_entry(key: object, value: object) -> str:
    # A key written where `key_env` should stand: the error is read by others, in logs of a cluster.
    is_secret = isinstance(value, str) and isinstance(key, str) and is_secret_name(key)
    return f"{key}: ***" if is_secret else f"{key}: {_shown(value)}"


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
