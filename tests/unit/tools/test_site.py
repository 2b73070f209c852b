"""The site's pages: every link holds, every page is in the navigation, nothing points outside."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tools import site
from tools.site import LINK, ROOT, navigation, relinked, settings, stage


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    stage(folder / "docs")
    return folder


def test_every_link_leads_to_a_staged_file(built: Path) -> None:
    pages = list((built / "docs").rglob("*.md"))
    assert len(pages) > 45
    count = 0
    for page in pages:
        if page.is_relative_to(built / "docs" / "repository") and not page.name.endswith("README.md"):
            continue  # code, in a fence
        text = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for _, address in LINK.findall(re.sub(r"`[^`\n]+`", "code", text)):
            path = address.partition("#")[0]
            if path and "://" not in path:
                count += 1
                target = (page.parent / path).resolve()
                assert target.is_file() and target.is_relative_to(built.resolve()), f"{page.name}: {address}"
    assert count > 200


def test_every_page_is_in_the_navigation_once(built: Path) -> None:
    written = yaml.safe_load(settings(built))
    shown = [page for section in written["nav"] for pages in section.values() for page in pages]
    wanted = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")} | {"index.md"}
    assert sorted(shown) == sorted(wanted)
    sections = {title: pages for section in written["nav"] for title, pages in section.items()}
    assert list(sections)[:3] == ["First hour", "Tasks", "From other tools"]
    assert sections["First hour"] == ["index.md", "first-steps.md"]
    assert sections["Tasks"][:3] == ["tasks/index.md", "tasks/name.md", "tasks/length-bias.md"], "as its index has them"
    # Files of code are reached by links; in the navigation they would be longer than the guide.
    assert written["not_in_nav"] == "repository/"
    assert all(
        (built / "docs" / name).is_file() for name in yaml.safe_load((ROOT / "mkdocs.yml").read_text())["extra_css"]
    )


def test_a_page_that_no_table_names_is_shown_too() -> None:
    sections = {title: pages for section in navigation({"index.md", "new.md"}) for title, pages in section.items()}
    assert sections["More"] == ["new.md"]


def test_a_link_that_leads_nowhere_is_refused_and_code_keeps_its_brackets() -> None:
    source, inside = ROOT / "docs" / "audit.md", Path("audit.md")
    text, further = relinked("[`x`](../examples/dpo.py) `[a](b)`\n```\n[a](b)\n```\n", source, inside, {})
    assert text == "[`x`](repository/examples/dpo.py.md) `[a](b)`\n```\n[a](b)\n```\n"
    assert further == [(ROOT / "examples" / "dpo.py", Path("repository/examples/dpo.py.md"))]
    with pytest.raises(FileNotFoundError, match=r"docs/audit.md links to nowhere.md"):
        relinked("[a](nowhere.md)", source, inside, {})


def test_the_gallery_shows_recipes_that_there_are() -> None:
    assert all((ROOT / "docs" / "tasks" / f"{name}.yaml").is_file() for name in site.GALLERY)
    assert (
        "--quiet" not in (ROOT / "Makefile").read_text(encoding="utf-8").partition("SITE :=")[2].partition("\n")[0]
    ), "mkdocs counts no warning under --quiet, so --strict would end nothing"
