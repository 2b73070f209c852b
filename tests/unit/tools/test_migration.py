"""docs/migrating.md holds the tables that `posttrain convert` reads."""

from __future__ import annotations

from posttrain.converting.axolotl_keys import AXOLOTL
from tools.migration import PAGE, page, section


def test_the_page_is_up_to_date() -> None:
    assert page() == PAGE.read_text(encoding="utf-8"), "write it anew: python -m tools.migration"


def test_every_key_of_a_tool_is_on_the_page() -> None:
    text = "\n".join(section("Axolotl", AXOLOTL))
    assert all(f"`{key}`" in text for key in AXOLOTL)
