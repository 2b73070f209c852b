"""What is said of a name under which no rows lie: a misspelt path, a link that leads nowhere, an address of the web."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from posttrain.data.sources.splits import SUFFIXES
from posttrain.errors import SourceError, did_you_mean, nearest_file

_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]*)://(?P<place>.*)", re.IGNORECASE | re.DOTALL)
_CREDENTIALS = re.compile(r"(?<=://)\S*@|\?.*", re.DOTALL)
"""`user:password@`, up to the last @ for a password may hold any sign, and the query, where signatures are."""
_HUB_FOLDER = re.compile(r"(?:hf://datasets/|https?://huggingface\.co/datasets/)([\w.-]+/[\w.-]+)/?", re.IGNORECASE)
_SOMEWHERE = "a file, a folder, a pattern such as 'data/*.jsonl', or a hub id such as 'owner/name'"


def unlike_a_path(text: str, path: Path) -> SourceError | None:
    """The error for a name that cannot be a file, folder or pattern here; None for any other, there or not.

    Args:
        text: the name as it was written.
        path: where it would lie.
    """
    if not text.strip():
        # `Path("")` is the working folder: an unset variable in `--data "$ROWS"` would read whatever lies there.
        return _no_name(text)
    if path.exists():
        return None
    if address := _ADDRESS.fullmatch(text):
        return _is_address(text, address[1].lower(), address["place"])
    return _leads_nowhere(text, path) if path.is_symlink() else None


def not_found(text: str, path: Path) -> SourceError:
    """The error for a path, as it was written and with `~` expanded, where nothing is."""
    parent = path.parent
    beside = sorted(item.name for item in parent.iterdir()) if parent.is_dir() else []
    if near := nearest_file(path.name, beside):
        remedy = did_you_mean(str(parent / near))
    elif not parent.is_dir():
        remedy = f"the folder `{parent}` does not exist either (seen from `{Path.cwd()}`): check the path"
    else:
        data = [name for name in beside if name.endswith(SUFFIXES)]
        remedy = f"check the path (seen from `{Path.cwd()}`)"
        remedy += f"; data files there: {', '.join(f'`{name}`' for name in data[:6])}" if data else ""
    return SourceError(
        "there is no such file or folder",
        where=text,
        found="nothing under this name",
        expected=_SOMEWHERE,
        remedy=remedy,
    )


def _no_name(text: str) -> SourceError:
    return SourceError(
        "the name of the data is empty",
        found=repr(text),
        expected=_SOMEWHERE,
        remedy="write the path; `.` names the whole folder",
    )


def _is_address(text: str, scheme: str, place: str) -> SourceError:
    # Errors are copied into logs and tickets, so what opens the place to others is left out of them.
    shown = _CREDENTIALS.sub(lambda secret: "***@" if secret[0].endswith("@") else "?***", text)
    if hub := _HUB_FOLDER.fullmatch(text):
        remedy = f"write the hub id alone: `{hub[1]}`"
    elif scheme == "file":
        remedy = f"write the path alone: `{place}`"
    elif scheme in ("http", "https"):
        remedy = "fetch the file and name it: `curl -L -o rows.jsonl ADDRESS`"
    else:
        remedy = f"copy the file here with the tool for `{scheme}://`, and name the copy"
    return SourceError(
        "rows are not read from an address",
        where=shown,
        found=f"an address, `{scheme}://`",
        expected=_SOMEWHERE,
        remedy=remedy,
    )


def _leads_nowhere(text: str, path: Path) -> SourceError:
    try:
        path.resolve(strict=True)
        found = f"a link to `{path.readlink()}`"
    except (OSError, RuntimeError) as error:
        # Python 3.11 and 3.12 say RuntimeError of links that lead to each other, 3.13 says OSError.
        loop = isinstance(error, RuntimeError) or not isinstance(error, FileNotFoundError)
        found = f"a link to `{path.readlink()}`, which " + ("leads back to itself" if loop else "is not there")
    return SourceError(
        "the link leads to no file",
        where=text,
        found=found,
        expected="a link to a file or folder that exists",
        remedy=f"look where it leads (`ls -l {shlex.quote(str(path))}`), and link the file itself",
    )
