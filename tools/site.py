"""The documentation site: `make site`, or `python -m tools.site --out build` and `mkdocs build --strict`.

The pages of docs/ are staged as they are, README.md as the front page. A link that leaves docs/ (to a recipe, an
example, a module) leads to a page with that file's text, so that nothing points outside of the site. `--gallery` runs
the recipes of docs/tasks on the embedded model and adds their reports.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"(!?\[[^\]]*\])\(([^)\s]+)\)")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".sh": "bash", ".toml": "toml", ".json": "json"}
FRONT = {
    "First hour": ("index.md", "first-steps.md"),
    "Tasks": ("tasks/index.md", "tasks/*.md"),
    "From other tools": ("migrating.md",),
}
"""The first sections of the navigation; tasks/index.md orders its own, the table of README.md the rest."""
GALLERY = {
    "name": "A model that gets a name",
    "length-bias": "The same pairs by two losses: siblings, compared",
    "sums": "Reinforcement learning from right and wrong",
    "preferences": "Pairs of its own answers, and DPO on them",
}
"""Recipes of docs/tasks whose reports are shown."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "site-pages")
    parser.add_argument("--gallery", action="store_true", help="run the recipes of docs/tasks, some minutes")
    arguments = parser.parse_args()
    stage(arguments.out / "docs")
    if arguments.gallery:
        gallery(arguments.out)
    # At the end: the navigation lists what is there.
    (arguments.out / "mkdocs.yml").write_text(settings(arguments.out), encoding="utf-8")
    print(arguments.out / "mkdocs.yml")


# ---------------------------------------------------------------- pages


def stage(folder: Path) -> None:
    """Copies the pages, and those files of the repository that they link to."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    waiting = [(ROOT / "README.md", Path("index.md"))]
    for path in sorted((ROOT / "docs").rglob("*")):
        inside = path.relative_to(ROOT / "docs")
        if path.suffix == ".md":
            waiting.append((path, inside))
        elif path.suffix in (".svg", ".yaml", ".css"):
            (folder / inside).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / inside)
    staged = {path.resolve(): inside for path, inside in waiting}
    while waiting:
        source, inside = waiting.pop()
        text = _page_of(source)
        text, further = relinked(text, source, inside, staged)
        (folder / inside).parent.mkdir(parents=True, exist_ok=True)
        (folder / inside).write_text(text, encoding="utf-8")
        waiting += further


def _page_of(source: Path) -> str:
    """A page's own text; a file of code as one."""
    text = source.read_text(encoding="utf-8")
    if source.suffix == ".md":
        return text
    name = source.relative_to(ROOT).as_posix()
    return f"# {name}\n\n````{LANGUAGES.get(source.suffix, 'text')}\n{text.rstrip()}\n````\n"


def relinked(text: str, source: Path, inside: Path, staged: dict[Path, Path]) -> tuple[str, list[tuple[Path, Path]]]:
    """The text with links that hold within the site, and the files that have to become pages for it."""
    further: list[tuple[Path, Path]] = []

    def moved(match: re.Match[str]) -> str:
        label, address = match[1], match[2]
        path, hash_mark, anchor = address.partition("#")
        if not path or "://" in path or path.startswith("mailto:"):
            return match[0]
        target = (source.parent / path).resolve()
        if target.is_dir():
            target = target / "README.md" if (target / "README.md").is_file() else target
        if not target.is_file():
            raise FileNotFoundError(f"{source.relative_to(ROOT)} links to {address}, which is not there")
        page = staged.get(target)
        if page is None and target.is_relative_to(ROOT / "docs"):
            page = target.relative_to(ROOT / "docs")  # a picture or a recipe, copied as it is
        elif page is None:
            page = Path("repository", *target.relative_to(ROOT).parts)
            page = page if page.suffix == ".md" else page.with_name(page.name + ".md")
            staged[target] = page
            further.append((target, page))
        return f"{label}({Path(os.path.relpath(page, inside.parent)).as_posix()}{hash_mark}{anchor})"

    # Code keeps its brackets: `[a](b)` inside of a fence or of backticks is no link, but a label may be code.
    parts = re.split(r"(^ *```.*?^ *```[^\n]*$)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(
        part if part.lstrip().startswith("```") else _outside_of_code(part, moved) for part in parts
    ), further


def _outside_of_code(text: str, moved: Callable[[re.Match[str]], str]) -> str:
    spans: list[str] = []

    def hide(match: re.Match[str]) -> str:
        spans.append(match[0])
        return f"\0{len(spans) - 1}\0"

    hidden = LINK.sub(moved, re.sub(r"`[^`\n]+`", hide, text))
    return re.sub(r"\0(\d+)\0", lambda match: spans[int(match[1])], hidden)


# ---------------------------------------------------------------- navigation


def settings(folder: Path) -> str:
    """mkdocs.yml of the staged pages: the repository's own, and the navigation."""
    import yaml

    pages = {path.relative_to(folder / "docs").as_posix() for path in (folder / "docs").rglob("*.md")}
    inherit = os.path.relpath(ROOT / "mkdocs.yml", folder)
    written = {
        "INHERIT": inherit,
        "docs_dir": "docs",
        "site_dir": "site",
        "nav": list(navigation(pages)),
        "not_in_nav": "repository/",
    }
    return yaml.safe_dump(written, sort_keys=False, allow_unicode=True)


def navigation(pages: set[str]) -> Iterator[dict[str, list[str]]]:
    """Sections with their pages; each page of docs/ is in one, also those that no table names. Files of code are
    reached by the links to them."""
    left = {page for page in pages if not page.startswith("repository/")}
    tasks = re.findall(r"\(([\w-]+\.md)\)", (ROOT / "docs" / "tasks" / "index.md").read_text(encoding="utf-8"))
    order = {f"tasks/{page}": place for place, page in enumerate(tasks)}
    for title, patterns in FRONT.items():
        found = [page for page in sorted(left) if _place(page, patterns) < len(patterns)]
        found.sort(key=lambda page: (_place(page, patterns), order.get(page, len(order))))
        if found:
            yield {title: found}
        left -= set(found)
    table = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Docs")[2].partition("\n## ")[0]
    named = [page for page in dict.fromkeys(re.findall(r"\(docs/([\w./-]+\.md)\)", table)) if page in left]
    yield {"Guide": named}
    further = sorted(left - set(named) - {page for page in left if page.startswith("gallery/")})
    if further:
        yield {"More": further}
    shown = sorted(page for page in left if page.startswith("gallery/"))
    if shown:
        yield {"Gallery": shown}


def _place(page: str, patterns: tuple[str, ...]) -> int:
    """The first pattern of the whole path; how many there are if none fits."""
    return next((place for place, pattern in enumerate(patterns) if fnmatch(page, pattern)), len(patterns))


# ---------------------------------------------------------------- the gallery


def gallery(folder: Path) -> None:
    """Runs the recipes, a minute or two each, and shows their reports. A finished run is not run again."""
    place = folder / "docs" / "gallery"
    place.mkdir(parents=True, exist_ok=True)
    lines = ["# Gallery of reports", "", "Made by `python -m tools.site --gallery` on the embedded model.", ""]
    for name, about in GALLERY.items():
        recipe, runs = ROOT / "docs" / "tasks" / f"{name}.yaml", folder / "runs"
        command = [sys.executable, "-m", "posttrain", "run", str(recipe), "--out", str(runs)]
        subprocess.run(command, check=True, cwd=ROOT)
        shutil.copyfile(runs / f"task_{name.replace('-', '_')}" / "report.html", place / f"{name}.html")
        lines.append(f"- [{about}]({name}.html), of [its recipe](../tasks/{name}.md)")
    (place / "index.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
