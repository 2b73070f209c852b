"""YAML that would be built for ever, or that Python itself refuses in its own words."""

from __future__ import annotations

import pytest

from posttrain.config.yaml_text import parse
from posttrain.errors import ConfigError


def _doubling(levels: int, group: str) -> str:
    aliases = (f"a{n}: &a{n} " + group.format(",".join([f"*a{n - 1}"] * 9)) for n in range(1, levels))
    return "\n".join(["a0: &a0 {x: 1}", *aliases])


@pytest.mark.parametrize("group", ["[{}]", "{{<<: [{}]}}"])
def test_aliases_of_aliases_are_counted(group: str) -> None:
    with pytest.raises(ConfigError, match=r"r.yaml, line \d+: the YAML has more than 100,000 values"):
        parse(_doubling(30, group), "r.yaml")
    assert set(parse(_doubling(3, group), "r.yaml").value) == {"a0", "a1", "a2"}


@pytest.mark.parametrize(
    "text",
    ["[" * 300 + "]" * 300, "a0: &a0 [1]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 300))],
    ids=["brackets", "a chain of aliases"],
)
def test_depth_is_bounded(text: str) -> None:
    with pytest.raises(ConfigError, match="nested too deep"):
        parse(text, "r.yaml")


def test_a_number_of_thousands_of_digits_is_text() -> None:
    assert parse("a: " + "9" * 6000, "r.yaml").value == {"a": "9" * 6000}
