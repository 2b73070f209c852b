"""What a suite can show at all, said before it is asked: the smallest change that its items detect.

    detectable("sums", {"": 60})
    # ["sums: 60 items show a change of 18.1 points or more (80 % power, two-sided 5 %, ...)"]

For two models that answer the same n items with scores in [0, 1], a change of the mean is detected four times in five
if it is 2.80 standard errors or more, the standard error being sqrt(2 s (1 - s) (1 - r) / n) (`posttrain.intervals`).
Before anybody was asked, the mean score s is taken as 1/2, which is the worst, and the correlation r of the two models'
scores as 1/2; greedy answers of a model and its fine-tune are often closer, and the report says what these items would
have shown, by how far the changes spread that were seen.
"""

from __future__ import annotations

from collections.abc import Mapping

from posttrain.intervals import CORRELATION, deviation_of_change, smallest_change

LIKELY = 0.5
"""The mean score that is taken for granted."""


def detectable(suite: str, items: Mapping[str, int], share: float = LIKELY) -> list[str]:
    """A sentence for each figure of a suite.

    Args:
        items: {figure: how many items it is a mean of}; "" is the suite's only one.
    """
    said = []
    for figure, count in items.items():
        if not count:
            continue
        smallest = smallest_change(deviation_of_change(share), count)
        # 100 points are all that lie between all wrong and all right.
        shown = "are too few to show any change"
        if smallest < 1:
            shown = f"show a change of {100 * smallest:.1f} points or more"
        said.append(
            f"{f'{suite}, {figure}' if figure else suite}: {count:,} items {shown} (80 % power, two-sided 5 %, "
            f"at {100 * share:.0f} %, correlation {CORRELATION:g})"
        )
    return said
