"""Files that hold no rows of JSON, recognised by how they begin, and what to do with each.

A command is proposed only for what the beginning of the file was read as: an object that holds rows holds something
that a format reads.
"""

from __future__ import annotations

import codecs
import json
import re
import shlex
from typing import Any

from posttrain.data.formats.advice import text_remedy, wrapped_remedy
from posttrain.data.formats.detect import detect
from posttrain.data.refusals import quoted, shown
from posttrain.errors import SourceError
from posttrain.types import RowRef

_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1f]")
_PICKLE = (
    "a pickle can run any code when it is opened. If you trust it, convert it, "
    "`python -c \"import pandas; pandas.read_pickle('{0}').to_parquet('rows.parquet')\"`, "
    "or pass the DataFrame to `read`"
)
_OTHER_FILES = (
    (codecs.BOM_UTF16_LE, "UTF-16 text", "convert it: `iconv -f UTF-16 -t UTF-8 {0} > {1}`"),
    (codecs.BOM_UTF16_BE, "UTF-16 text", "convert it: `iconv -f UTF-16 -t UTF-8 {0} > {1}`"),
    (b"version https://git-lfs", "a Git LFS pointer, not the data itself", "fetch the data: `git lfs pull`"),
    (b"\x80\x03", "a Python pickle", _PICKLE),
    (b"\x80\x04", "a Python pickle", _PICKLE),
    (b"\x80\x05", "a Python pickle", _PICKLE),
    (b"<", "a web page or XML, not data", "the download went wrong, perhaps for want of a login: fetch it again"),
    (b"PK\x03\x04", "a zip archive", "unpack it: `unzip {0}`"),
    (b"\x28\xb5\x2f\xfd", "zstandard-compressed", "unpack it: `zstd -d {0}`"),
    (b"BZh", "bzip2-compressed", "unpack it: `bunzip2 {0}`"),
    (b"\xfd7zXZ\x00", "xz-compressed", "unpack it: `unxz {0}`"),
)


_TABLE_LINES = 20
_TEXT_BYTES = 1 << 14


def refuse_other_content(head: bytes, name: str) -> None:
    """Raises SourceError if the first bytes of a file are not those of JSON."""
    refuse_other_bytes(head, name)
    _refuse_text(head.lstrip().removeprefix(codecs.BOM_UTF8).lstrip(), head, name)


def refuse_other_bytes(head: bytes, name: str) -> None:
    """Raises SourceError if the first bytes of a file are those of no text, or of a text that holds no rows."""
    start = head.lstrip()  # blank lines before the first row are no content of another kind
    for mark, what, remedy in _OTHER_FILES:
        if start.startswith(mark):
            raise _not_json(
                f"the file is {what}",
                head,
                remedy.replace("{0}", _shell_quoted(name, remedy)).replace("{1}", converted_name(name)),
                name,
            )
    # JSON in UTF-16 has a NUL beside each of its first ASCII characters.
    if b"\0" in head[:4] and start[:1] in (b"{", b"[", b"\0"):
        what = "NUL bytes where text should be" if head[:1] == b"\0" else "UTF-16 text without a byte order mark"
        convert = f"`iconv -f UTF-16LE -t UTF-8 {shlex.quote(name)} > {converted_name(name)}`"
        raise _not_json(
            f"the file begins with {what}", head, "write the file again" if head[:1] == b"\0" else convert, name
        )
    if start[:1] not in b'{["' and _CONTROL.search(start.split(b"\n", 1)[0]):
        raise _not_json("the file holds no text", head, "name the file that holds the rows", name)


def converted_name(name: str) -> str:
    """What a command that converts a file may call the result: a table that is called .jsonl misleads whoever reads."""
    return f"fixed{name[-4:].lower()}" if name.lower().endswith((".csv", ".tsv")) else "fixed.jsonl"


def _shell_quoted(name: str, remedy: str) -> str:
    """A file's name as a shell takes it; inside Python's quotes it stands as it is."""
    return name if "'{0}'" in remedy else shlex.quote(name)


def _refuse_text(start: bytes, head: bytes, name: str) -> None:
    """Prose; a file with a JSON object or list among its first lines is left to the reader of lines."""
    if start[:1] in (b"{", b"["):
        return
    text = start[:_TEXT_BYTES].decode(errors="replace")
    lines = [line for line in text.splitlines()[:_TABLE_LINES] if line.strip()]
    # Among the first lines, not only in the first: a comment or a log line may stand above rows that are right.
    if not lines or any(line.lstrip()[:1] in ("{", "[") or _parses_as_json(line) for line in lines[:5]):
        return
    if name.lower().endswith((".yaml", ".yml", ".toml", ".py")):
        raise _not_json("the file holds settings or code, not rows", head, "name the file that holds the rows", name)
    if not re.match(r"[#/]", lines[0].lstrip()):
        raise _not_json("the file holds plain text, not rows", head, text_remedy(lines[0], name), name)


def _parses_as_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _not_json(problem: str, head: bytes, remedy: str, name: str) -> SourceError:
    return SourceError(
        problem,
        where=name,
        found=f"{bytes(head[:40])!r}",
        expected="JSONL, a JSON array, CSV or TSV, gzip of these, Parquet or Arrow",
        remedy=remedy,
    )


def refuse_one_object(text: bytes, name: str) -> None:
    """A single object over several lines is a wrapper around the rows, or rows that are pretty-printed."""
    if text.split(b"\n", 1)[0].strip() != b"{":
        return
    words = text.decode(errors="replace")
    try:
        value, _ = json.JSONDecoder().raw_decode(words)
    except ValueError:
        value = _first_wrapped_row(words)
    wrapped = wrapped_remedy(value, name)
    raise SourceError(
        "the file holds an object that spans several lines",
        where=RowRef(name, 1),
        found=f"an object with the keys {quoted(value)}" if value else shown(words[:80]),
        expected="one JSON object per line, or an array of objects",
        remedy=wrapped
        if wrapped is not None
        else f"write each object on one line: `jq -c . {shlex.quote(name)} > rows.jsonl`",
    )


_LIST_OF_OBJECTS = re.compile(r'"([^"\\]+)"\s*:\s*\[\s*(?=\{)')


def _first_wrapped_row(words: str) -> dict[str, Any]:
    """The first element of the first list of a cut object, under its key: {"data": [{...}]}."""
    for match in _LIST_OF_OBJECTS.finditer(words):
        # Directly inside the outer object, where wrappers have their rows; deeper lists are parts of one row.
        before = words[: match.start()]
        if before.count("{") - before.count("}") != 1 or before.count("[") != before.count("]"):
            continue
        try:
            element, _ = json.JSONDecoder().raw_decode(words, match.end())
        except ValueError:
            continue
        if detect(element) is not None:
            return {match[1]: [element]}
    return {}
