"""YAML in and out, by the 1.2 core rules, with line numbers.

PyYAML follows YAML 1.1, where `1e-5` is text, `no` and `on` are booleans, `010` is 8, `1:30` is 90 and a key that
is written twice silently wins. A learning rate that is text, or a setting that vanished, costs a run; so here
`1e-5` is a number, only true and false are booleans (a field that wants one still takes yes, no, on and off), and
a second key of the same name is refused with both lines.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from posttrain.config.explain import KeyPath
from posttrain.errors import ConfigError

_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_NULLS = ("", "~", "null", "Null", "NULL")
_TRUTHS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_TAG = "tag:yaml.org,2002:"
_PLAIN = "plain"
_MOST_NODES = 100_000
"""Keys and values of a recipe, aliases written out. Nine aliases of nine aliases, nine times, are 400 million."""
_DEEPEST = 100
_MOST_DIGITS = 1000
"""Python refuses to read a whole number of more than 4,300 digits with an error of its own."""


@dataclass(frozen=True)
class Document:
    """Document({"seed": 3}, {(): 1, ("seed",): 1}, {("seed",): "3"}); lines count from 1."""

    value: Any
    lines: dict[KeyPath, int]
    texts: dict[KeyPath, str] = field(default_factory=dict)
    """Single values as they were typed: 5e-6, which is 5e-06 once it is a number."""


class _Loader(yaml.SafeLoader):
    """Marks plain scalars, and only those, for `_resolved` to decide."""

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> Any:
        return _PLAIN if kind is yaml.ScalarNode and implicit[0] else super().resolve(kind, value, implicit)


def parse(text: str, source: str) -> Document:
    """Raises ConfigError, with the line, for text that is not YAML or that writes a key twice."""
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise _not_yaml(error, text, source) from None
    except RecursionError:
        raise _too_deep(source) from None
    document = Document(None, {}, {})
    value = None if root is None else _build(root, (), document, source, (), itertools.count())
    return replace(document, value=value)


def parse_value(text: str, source: str) -> Any:
    """The value of an override: "0.2" -> 0.2, "[a, b]" -> ["a", "b"], "" -> None."""
    return parse(text, source).value


def split_assignment(text: str, source: str, *, example: str, whose: str) -> tuple[list[str], Any]:
    """The words of the key, and the value in YAML: "dpo.beta=0.2" -> (["dpo", "beta"], 0.2).

    Args:
        source: names it in errors: "override dpo.beta=0.2".
        whose: what the key is one of, for the remedy: "the strategy".

    Raises:
        ConfigError: there is no `=`, or nothing before it or between two dots.
    """
    key, separator, value = text.partition("=")
    words = key.strip().split(".")
    if not separator or not all(words):
        raise ConfigError(
            "this does not set anything",
            where=source,
            expected="key=value",
            example=example,
            remedy=f"write a key of {whose}, `=` and its value, without blanks around the `=`",
        )
    # YAML, as in a file: `1e-5` is the number that it is there.
    return words, parse_value(value, source)


def put_value(settings: dict[str, Any], words: list[str], value: Any, *, option: str, written: str) -> None:
    """Put what was typed after an option at its place: put_value({}, ["keep", "top"], 0.2, ...) -> {keep: {top: 0.2}}.

    Raises:
        ConfigError: a key inside of what is a value already.
    """
    group = settings
    for word in words[:-1]:
        # `scorer=PATH` is short for a group; a key inside it needs the group.
        inner = group.setdefault(word, {})
        if not isinstance(inner, dict):
            raise ConfigError(
                f"`{word}` is a value, not a group of keys",
                where=f"{option} {written}",
                found=f"{word}: {inner}",
                remedy=f"set it as a whole: {option} {word}={{...}}",
            )
        group = inner
    group[words[-1]] = value


def _build(
    node: yaml.Node,
    path: KeyPath,
    document: Document,
    source: str,
    above: tuple[yaml.Node, ...],
    built: Iterator[int],
) -> Any:
    """The node's value; where it stands and how it was typed is noted in `document`."""
    if len(above) > _DEEPEST:
        raise _too_deep(f"{source}, line {node.start_mark.line + 1}")
    if next(built) > _MOST_NODES:
        raise ConfigError(
            f"the YAML has more than {_MOST_NODES:,} values, aliases written out",
            where=f"{source}, line {node.start_mark.line + 1}",
            expected="a recipe: a few hundred keys",
            remedy="write the values out instead of aliases of aliases",
        )
    lines = document.lines
    # The key's own line where there is one: an alias stands where its anchor was written, perhaps far above.
    lines.setdefault(path, node.start_mark.line + 1)
    # An alias of a group around it would be built for ever.
    if any(node is outer for outer in above):
        raise ConfigError("an alias holds itself", where=f"{source}, line {lines[path]}", remedy="write the values out")
    above = (*above, node)
    if isinstance(node, yaml.ScalarNode):
        document.texts[path] = node.value
        return _scalar(node, source)
    if isinstance(node, yaml.SequenceNode):
        return [_build(item, (*path, index), document, source, above, built) for index, item in enumerate(node.value)]
    result: dict[str, Any] = {}
    merged: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
        line = key_node.start_mark.line + 1
        if key is None:
            raise ConfigError("a key is not text", where=f"{source}, line {line}", remedy="write `key: value`")
        if key == "<<" and key_node.tag == _PLAIN:
            merged = _merged(_build(value_node, (*path, "<<"), Document(None, {}), source, above, built), merged)
            continue
        if key in result:
            raise ConfigError(
                f"`{key}` is written twice",
                where=f"{source}, line {line}",
                found=f"first on line {lines[(*path, key)]}",
                remedy="keep one of the two",
            )
        lines[(*path, key)] = line
        result[key] = _build(value_node, (*path, key), document, source, above, built)
    # Keys of the group itself win over what it merges in, as YAML has it.
    return {**merged, **result}


def _too_deep(where: str) -> ConfigError:
    return ConfigError(
        "the YAML is nested too deep",
        where=where,
        expected="a few levels of keys and lists",
        remedy="look for brackets that are opened and never closed, and for aliases of aliases",
    )


def _merged(addition: Any, so_far: dict[str, Any]) -> dict[str, Any]:
    """`<<: *base` and `<<: [*a, *b]`; the earlier one wins."""
    for mapping in addition if isinstance(addition, list) else [addition]:
        so_far = {**mapping, **so_far}
    return so_far


def _scalar(node: yaml.ScalarNode, source: str) -> Any:
    text = node.value
    if node.tag == _PLAIN:
        return _resolved(text)
    kind = node.tag.removeprefix(_TAG)
    if kind == "str":
        return text
    if kind in ("int", "float", "bool", "null") and not isinstance(_resolved(text), str):
        return _resolved(text)
    raise ConfigError(
        f"the tag `{node.tag}` is not used in recipes",
        where=f"{source}, line {node.start_mark.line + 1}",
        remedy="write the plain value",
    )


def _resolved(text: str) -> Any:
    if text in _NULLS:
        return None
    if text in _TRUTHS:
        return _TRUTHS[text]
    if len(text) > _MOST_DIGITS:
        return text
    if _INT.fullmatch(text):
        return int(text, 0) if text.startswith(("0x", "0o")) else int(text)
    if _FLOAT.fullmatch(text):
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def _not_yaml(error: yaml.YAMLError, text: str, source: str) -> ConfigError:
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return ConfigError("this is not YAML", where=source, found=str(error), remedy="save it as UTF-8 text")
    mark = error.problem_mark
    line = text.splitlines()[mark.line] if mark.line < len(text.splitlines()) else ""
    tab = "\t" in line[: len(line) - len(line.lstrip())] or "'\\t'" in str(error)
    return ConfigError(
        "a tab indents this line; YAML indents with spaces only" if tab else "this is not YAML",
        where=f"{source}, line {mark.line + 1}, column {mark.column + 1}",
        found=line.replace("\t", "<tab>") if tab else f"{line.strip()}  ({error.problem})",
        remedy="replace each tab with spaces" if tab else "check the indentation, the colons and the quotes around it",
    )


# ---------------------------------------------------------------- writing


class _Dumper(yaml.SafeDumper):
    """Groups one key a line, lists of plain values on one line."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text_node(dumper: _Dumper, text: str) -> yaml.Node:
    ambiguous = not isinstance(_resolved(text), str)  # `1e-5` as text: PyYAML itself would not quote it
    breaks = any(sign in text for sign in "\r\x85\u2028\u2029")  # line breaks that only double quotes keep
    style = '"' if breaks else "|" if "\n" in text else "'" if ambiguous else None
    return dumper.represent_scalar(f"{_TAG}str", text, style=style)


def _list_node(dumper: _Dumper, items: list[Any]) -> yaml.Node:
    flat = all(not isinstance(item, (dict, list)) for item in items)
    return dumper.represent_sequence(f"{_TAG}seq", items, flow_style=flat)


_Dumper.add_representer(str, _text_node)
_Dumper.add_representer(list, _list_node)


def dump(value: Any) -> str:
    """YAML that `parse`, and any YAML 1.1 reader, read back as the same value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120, default_flow_style=False)
