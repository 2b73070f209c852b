"""A file, and which tool it is of: YAML, JSON, or a shell script that starts OpenRLHF."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.arguments import checked_path
from posttrain.config.yaml_text import parse
from posttrain.converting.axolotl import from_axolotl, is_axolotl
from posttrain.converting.draft import Draft
from posttrain.converting.llamafactory import from_llamafactory, is_llamafactory
from posttrain.converting.openrlhf import arguments_in, from_openrlhf
from posttrain.converting.rows import Folders
from posttrain.converting.trl import from_trl, is_trl, method_of
from posttrain.errors import ConfigError, unknown
from posttrain.text_file import read_text

Read = Callable[[Mapping[str, Any], Folders, int, str | None], Draft]


@dataclass(frozen=True, slots=True)
class Tool:
    """Tool("Axolotl", is_axolotl, read): how its files are known, and what reads them."""

    name: str
    knows: Callable[[Mapping[str, Any]], bool]
    read: Read


TOOLS: Mapping[str, Tool] = {
    "axolotl": Tool("Axolotl", is_axolotl, lambda document, folders, n, method: from_axolotl(document, folders, n)),
    "llamafactory": Tool(
        "LLaMA-Factory", is_llamafactory, lambda document, folders, n, method: from_llamafactory(document, folders, n)
    ),
    "openrlhf": Tool(
        "OpenRLHF", lambda document: "trainer" in document and "train" in str(document["trainer"]), from_openrlhf
    ),
    "trl": Tool("TRL", is_trl, from_trl),
}
"""In the order in which a file is tried: TRL's keys are transformers' own, which others have too."""


@dataclass(frozen=True, slots=True)
class Source:
    """Source(Path("dpo.yaml"), {"base_model": ...}, TOOLS["axolotl"])"""

    path: Path
    document: Mapping[str, Any]
    kind: Tool
    method: str | None = None


def read_source(path: str | Path, *, tool: str | None = None, method: str | None = None) -> Source:
    """Raises SourceError for a file that cannot be read, ConfigError for one that is none of these tools'."""
    path = checked_path("path", path, "axolotl.yaml")
    if tool is not None and tool not in TOOLS:
        raise unknown("tool", tool, TOOLS, where=path)
    text = read_text(path, "the file")
    if path.suffix in (".sh", ".bash", ".txt") or ("openrlhf" in text.lower() and "--" in text):
        document: Any = arguments_in(text, path)
        kind = TOOLS[tool or "openrlhf"]
    else:
        document = parse(text, str(path)).value  # JSON is YAML
        if not isinstance(document, dict) or not document:
            raise _no_configuration(path, "nothing" if not document else f"a {type(document).__name__}")
        kind = TOOLS[tool] if tool else _told(document, path)
    return Source(path, document, kind, method or method_of(document, path.stem) if kind.name == "TRL" else method)


def _told(document: Mapping[str, Any], path: Path) -> Tool:
    if "stages" in document:
        raise ConfigError("this is a recipe of posttrain already", where=path, remedy=f"write `posttrain run {path}`")
    if "merge_method" in document:
        raise ConfigError(
            "this is a merge of mergekit's", where=path, remedy=f"write `posttrain merge {path} OUT`: docs/merging.md"
        )
    for kind in TOOLS.values():
        if kind.knows(document):
            return kind
    raise _no_configuration(path, ", ".join(list(document)[:6]))


def _no_configuration(path: Path, found: str) -> ConfigError:
    return ConfigError(
        "this is no training configuration of a tool that is known",
        where=path,
        found=found,
        expected="keys of Axolotl (`base_model`), LLaMA-Factory (`stage`), TRL (its configs), or a script of OpenRLHF",
        remedy="name the tool: `--from axolotl`, `llamafactory`, `trl` or `openrlhf`",
    )
