"""docs/run-folder.md, written from the records: `python -m tools.run_folder_reference > docs/run-folder.md`."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import fields
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from posttrain.runs.records.base import Record
from posttrain.runs.records.evaluation import BaselineKey
from posttrain.runs.records.files import RUN_FILES, STAGE_FILES
from posttrain.runs.records.run import LACKED, SCHEMA

HEAD = """# The run folder

`runs/<recipe>/` holds what a run did, `runs/<recipe>/<stage>/` what one of its stages did. This page is written from
the records in `posttrain/runs/records/`, through which every file is written and read; nothing else knows a key.

```python
from posttrain.runs.folder import RunFolder
from posttrain.runs.records.logs import MetricsLine

folder = RunFolder("runs/quickstart").stage("dpo")
folder.stage().status                                      # "done"
[line.values["loss"] for line in folder.lines(MetricsLine)]  # one a step
```

Beside these files: `recipe.yaml` and `report.html` of a run; `config.yaml` (every value, defaults included), `model/`,
`checkpoints/`, `encoded/`, `reference/`, `findings.jsonl` ([the audit](audit.md)), `asked.jsonl` (what a teacher has
answered), `unsolved.jsonl` (prompts of which no answer was right) and `stalls.txt` of a stage. A folder `<stage>.1`
(`.2`, ...) is a whole earlier result of the stage, moved aside when the stage ran again on other inputs; what differed
stands under `replaced` in its stage.json.

- **Numbers** that are not finite are written as null. **Lines** are only ever added, but that a stage which goes on
  after an interruption cuts what was written after its checkpoint.
- **Reading never fails on a value.** A key that is missing, or that holds something odd, counts as null, in a list or
  mapping it is dropped; a key that is not known is ignored, and kept where the file is written again. A last line that
  is torn is passed over.
- **Versions.** `run.json` and `stage.json` have a `schema`. Older folders are read and gone on with; of a newer one the
  report shows what it knows and says so, and a run refuses to write into it.

"""

FOLLOW = """## Following a running stage

```python
from posttrain.runs.cursor import Cursor

cursor = Cursor(folder.path / "metrics.jsonl")
news = cursor.read(MetricsLine)   # whole lines alone; a half-written one comes when it is whole
news.restarted                    # the file was cut or replaced: what was read before counts no more
cursor = news.cursor              # read on from here; cursor.token() and Cursor.at(path, token) carry it elsewhere
```
"""

NAMES: Mapping[Any, str] = {float: "number", int: "whole number", bool: "true or false", str: "text", Any: "any"}


def run_folder_reference() -> str:
    """The whole page."""
    parts: list[type[Record]] = []
    blocks = [HEAD + _versions(), "## Files of a run\n"]
    blocks += [_file(name, record, parts) for name, record in RUN_FILES.items()]
    blocks.append(
        "## Files of a stage\n\nOf `start/`, which holds what the first model scored, only the evaluation's.\n"
    )
    blocks += [_file(name, record, parts) for name, record in STAGE_FILES.items()]
    blocks.append("## Parts of these\n")
    for part in parts:  # grows while it is gone through
        blocks.append(f"### {part.__name__}\n\n{_summary(part)}\n\n" + "\n".join(_table(part, parts)) + "\n")
    return "\n".join([*blocks, FOLLOW])


def _versions() -> str:
    rows = [f"| {version} | {lacked} |" for version, lacked in LACKED.items()]
    return "\n".join(["| schema | what it lacked |", "|---|---|", *rows, f"| {SCHEMA} | the present one |", ""])


def _file(name: str, record: type[Record], parts: list[type[Record]]) -> str:
    holds = "Each line is a" if name.endswith(".jsonl") else "A"
    text = [f"### {name}\n", f"{holds} `{record.__name__}`.\n\n{_summary(record)}\n", *_table(record, parts)]
    if name.startswith("baseline/"):
        text.append(f"\nThe first line is a `{BaselineKey.__name__}`: {_summary(BaselineKey)}")
    return "\n".join([*text, ""])


def _summary(record: type[Record]) -> str:
    """The docstring: what it is, and a filled-in instance."""
    text = inspect.cleandoc(record.__doc__ or "")
    said, name, example = text.partition(f"{record.__name__}(")
    said = " ".join(said.split()).rstrip(":. ")
    shown = f"```python\n{name}{example.rstrip('.')}\n```" if name else ""
    if said in (*RUN_FILES, *STAGE_FILES):  # the heading says so already
        said = ""
    return "\n\n".join(part for part in (f"{said}." if said else "", shown) if part)


def _table(record: type[Record], parts: list[type[Record]]) -> Iterator[str]:
    hints, docs = get_type_hints(record, include_extras=True), _docs(record)
    yield "| key | value | |"
    yield "|---|---|---|"
    for one in fields(record):
        key = "any other key" if one.metadata.get("others") else f"`{one.name}`"
        kind = get_args(hints[one.name])[1] if one.metadata.get("others") else hints[one.name]
        optional = "may be absent" if one.metadata.get("optional") else ""
        meaning = "; ".join(text for text in (docs.get(one.name, ""), optional) if text)
        yield f"| {key} | {_kind(kind, parts)} | {meaning} |"


def _docs(record: type[Record]) -> dict[str, str]:
    """The text under each field."""
    (body,) = ast.parse(inspect.getsource(record)).body
    assert isinstance(body, ast.ClassDef)
    found: dict[str, str] = {}
    for before, node in zip(body.body, body.body[1:], strict=False):
        if isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name) and isinstance(node, ast.Expr):
            found[before.target.id] = " ".join(str(ast.literal_eval(node.value)).split()).rstrip(".")
    return found


def _kind(kind: Any, parts: list[type[Record]]) -> str:
    """`number or null`, `list of DecodedRow`, `mapping to numbers`."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _kind(inner[0], parts)
    if origin in (Union, UnionType):
        known = [_kind(one, parts) for one in inner if one is not NoneType]
        return " or ".join([*known, "null"] if NoneType in inner else known)
    if origin is tuple:
        return f"list of {_kind(inner[0], parts)}"
    if origin is Mapping:
        return f"mapping to {_kind(inner[1], parts)}"
    if isinstance(kind, type) and issubclass(kind, Record):
        if kind not in parts and kind not in (*RUN_FILES.values(), *STAGE_FILES.values()):
            parts.append(kind)
        return f"{kind.__name__}"
    return NAMES[kind] if kind in NAMES else " or ".join(f"`{value}`" for value in inner)


if __name__ == "__main__":
    print(run_folder_reference(), end="")
