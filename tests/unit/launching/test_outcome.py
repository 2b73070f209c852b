"""The exit code of a whole job, and whether it is started again."""

from __future__ import annotations

import pytest

from posttrain.launching.outcome import Outcome, is_own, outcome
from posttrain.parallel.failure import Failure


def failed(code: int = 1, transient: bool = True) -> Failure:
    return Failure(1, 4, "node1", "`score`", "x", code=code, is_transient=transient)


@pytest.mark.parametrize(
    ("codes", "failure", "asked", "expected"),
    [
        ([0, 0], None, None, Outcome(0, False)),
        ([75, 1, 75], failed(), None, Outcome(1, True)),
        ([75, 2], failed(2, False), None, Outcome(2, False)),
        ([-9, 75], failed(137), None, Outcome(137, True)),
        ([2, 2], None, None, Outcome(2, False)),  # all raised the same refusal
        ([1, 1], None, None, Outcome(1, True)),
        ([75, 75], None, None, Outcome(1, True)),
        ([143, 143], None, None, Outcome(143, False)),  # a rank was signalled
        ([130, 75], None, None, Outcome(130, False)),
        ([143, 75], failed(), None, Outcome(1, True)),  # one was stopped because another had failed
        ([143, -9], failed(137), 15, Outcome(143, False)),  # the launcher was signalled: on purpose
        ([0, 0], None, 15, Outcome(143, False)),
    ],
)
def test_outcomes(codes: list[int], failure: Failure | None, asked: int | None, expected: Outcome) -> None:
    assert outcome(codes, failure, asked) == expected


def test_codes_that_have_been_explained() -> None:
    assert [is_own(code) for code in (0, 1, 2, 75, 143, 130)] == [True] * 6
    assert [is_own(code) for code in (-9, 3, 137, 139)] == [False] * 4
