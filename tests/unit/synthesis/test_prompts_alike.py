"""ROUGE-L, worked by hand and against the plain table; the search skips what cannot be alike, and nothing else."""

from __future__ import annotations

import random

import pytest

from posttrain.synthesis.prompts.alike import Alike, new_words, rouge_l


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("name a red fruit", "name a big red fruit", 2 * 4 / (4 + 5)),
        ("a b c d", "d c b a", 2 * 1 / 8),  # any one word, in order
        ("a b a b", "b a b a", 2 * 3 / 8),
        ("the cat sat on the mat", "the dog sat on a mat", 2 * 4 / 12),
        ("Name, a FRUIT!", "name a fruit", 1.0),
        ("a", "b", 0.0),
        ("", "a", 0.0),
        ("…", "…", 0.0),
        ("红色的水果", "绿色的水果", 2 * 4 / 10),
    ],
)
def test_by_hand(first: str, second: str, expected: float) -> None:
    assert rouge_l(first, second) == pytest.approx(expected) == rouge_l(second, first)


def longest(one: list[str], other: list[str]) -> int:
    table = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i, a in enumerate(one):
        for j, b in enumerate(other):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


def test_against_the_table_of_the_textbook() -> None:
    draw = random.Random(0)
    for _ in range(200):
        one, other = (draw.choices("abcde", k=draw.randint(1, 90)) for _ in range(2))
        expected = 2 * longest(one, other) / (len(one) + len(other))
        assert rouge_l(" ".join(one), " ".join(other)) == pytest.approx(expected)


@pytest.mark.parametrize("least", [0.2, 0.5, 0.7])
def test_the_nearest_is_that_of_comparing_with_all(least: float) -> None:
    draw = random.Random(1)
    texts = [" ".join(draw.choices("abcdefgh", k=draw.randint(2, 9))) for _ in range(30)]
    earlier = Alike()
    for number, text in enumerate(texts):
        scores = [rouge_l(text, before) for before in texts[:number]]
        best = max(scores, default=0.0)
        expected = (scores.index(best), pytest.approx(best)) if best >= least else None
        assert earlier.nearest(text, least=least) == expected
        assert earlier.add(text) == number


def test_what_a_prompt_grew_out_of_does_not_count() -> None:
    earlier = Alike()
    for text in ("name a red fruit", "name a red flower"):
        earlier.add(text)
    assert earlier.nearest("name a red fruit", least=0.7) == (0, 1.0)
    assert earlier.nearest("name a red fruit", least=0.7, but=[0]) == (1, 0.75)
    assert earlier.nearest("name a red fruit", least=0.7, but=[0, 1]) is None


def test_new_words_are_counted_as_often_as_they_are_new() -> None:
    assert new_words("Name a red, red fruit", "name a red fruit") == 1
    assert new_words("name a fruit", "name a red fruit") == 0
