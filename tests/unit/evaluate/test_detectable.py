"""The smallest change that a suite shows, said before it is asked."""

from __future__ import annotations

from posttrain.evaluate.detectable import detectable


def test_hand_worked() -> None:
    """2.80 * sqrt(2 * 1/4 * 1/2 / 60) = 0.181; a suite without items says nothing."""
    assert detectable("sums", {"": 60, "none": 0}) == [
        "sums: 60 items show a change of 18.1 points or more (80 % power, two-sided 5 %, at 50 %, correlation 0.5)"
    ]


def test_no_suite_shows_more_than_all_right_for_all_wrong() -> None:
    """2.80 * sqrt(1/4 / n) is above 1 for one item, and 0.991 for two."""
    (one,) = detectable("tasks", {"acc": 1})
    assert one.startswith("tasks, acc: 1 items are too few to show any change (")
    assert "99.1 points" in detectable("tasks", {"acc": 2})[0]
