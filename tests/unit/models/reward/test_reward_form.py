"""What a response opens, it closes."""

from __future__ import annotations

import pytest

from posttrain.rewards.form import is_malformed


@pytest.mark.parametrize(
    "text",
    [
        "",
        "The answer is 4.",
        "<think>2 and 2</think>4",
        "2 and 2</think>4",
        "a</think>b<think>c</think>d",
        "```python\nx = {1: {2}}\n```",
        "\\boxed{4}",
        "\\boxed{\\frac{1}{2}} and {",
        "so { and } or }{",
    ],
)
def test_whole(text: str) -> None:
    assert not is_malformed(text)


@pytest.mark.parametrize(
    "text",
    [
        "<think>2 and 2",
        "<think>a</think>b</think>",
        "</think>a<think>b",
        "<think>a<think>b</think>",
        "```python\nx = 1",
        "\\boxed{4",
        "\\boxed{1} or \\boxed{\\frac{1}{2}",
    ],
)
def test_malformed(text: str) -> None:
    assert is_malformed(text)
