"""The tables of docs/migrating.md, written from those of `posttrain convert`: `python -m tools.migration`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from posttrain.converting.axolotl_keys import AXOLOTL, DATASET
from posttrain.converting.entry import Cannot, Entry, Goes, Idle, Joint
from posttrain.converting.llamafactory_keys import LLAMAFACTORY
from posttrain.converting.openrlhf_keys import OPENRLHF
from posttrain.converting.trl_keys import TRL

PAGE = Path(__file__).parent.parent / "docs" / "migrating.md"
MARK = "<!-- Below: python -m tools.migration -->\n"
"""Above it the page is written by hand."""

TABLES: Mapping[str, Mapping[str, Entry]] = {
    "Axolotl": AXOLOTL,
    "Axolotl: a data set (`datasets`, `test_datasets`)": DATASET,
    "LLaMA-Factory": LLAMAFACTORY,
    "TRL": TRL,
    "OpenRLHF": OPENRLHF,
}


def page() -> str:
    """The whole page: its own head, and the tables as they are now."""
    head = PAGE.read_text(encoding="utf-8").partition(MARK)[0]
    return head + MARK + "".join("\n".join(section(title, rows)) + "\n" for title, rows in TABLES.items())


def section(title: str, rows: Mapping[str, Entry]) -> Iterator[str]:
    """One tool: what goes where, what cannot be said, what says nothing."""
    yield f"\n## {title}\n"
    yield "| key | here |"
    yield "|---|---|"
    for entry, names in _grouped(rows, Goes, Joint):
        assert isinstance(entry, Goes | Joint)
        remark = f", {entry.remark}" if entry.remark else ""
        yield f"| {names} | `{entry.key.lstrip('/')}`{_cell(remark)} |"
    yield "\nNot here:\n"
    yield "| key | why | instead |"
    yield "|---|---|---|"
    for entry, names in _grouped(rows, Cannot):
        assert isinstance(entry, Cannot)
        yield f"| {names} | {_cell(entry.why)} | {_cell(entry.remedy)} |"
    yield "\nNothing to write for:\n"
    for entry, names in _grouped(rows, Idle):
        assert isinstance(entry, Idle)
        yield f"- {entry.because}: {names}"


def _grouped(rows: Mapping[str, Entry], *kinds: type) -> Iterator[tuple[Entry, str]]:
    groups: dict[Entry, list[str]] = {}
    for name, entry in rows.items():
        if isinstance(entry, kinds):
            groups.setdefault(entry, []).append(f"`{name}`")
    for entry, names in groups.items():
        yield entry, " ".join(names)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
