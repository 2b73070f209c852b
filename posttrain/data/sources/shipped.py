"""Data that comes with posttrain, named `package://NAME` wherever a path is asked for."""

from __future__ import annotations

from pathlib import Path

from posttrain.errors import SourceError, unknown

PACKAGE_SCHEME = "package://"
PACKAGE_DATA = Path(__file__).parent.parent.parent / "embedded" / "data"


def shipped_file(text: str) -> Path:
    """shipped_file("package://preferences.jsonl") -> .../posttrain/embedded/data/preferences.jsonl

    Raises:
        SourceError: there is no such file; says the nearest.
    """
    name = text.removeprefix(PACKAGE_SCHEME)
    path = PACKAGE_DATA / name
    # Only names that are listed, so that `package://../..` leads nowhere.
    known = [str(entry.relative_to(PACKAGE_DATA)) for entry in sorted(PACKAGE_DATA.rglob("*")) if entry.is_file()]
    if name in known:
        return path
    raise unknown(
        "file",
        name,
        known,
        error=SourceError,
        problem="no such file comes with posttrain",
        where=text,
        spelling=PACKAGE_SCHEME + "{}",
    )
