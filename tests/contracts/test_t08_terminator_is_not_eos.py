"""T08: the token that ends a turn is not the eos token.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

from tests.encoding import encoder_of, trained_runs
from tests.fixtures import demonstration


def test_the_terminator_is_not_eos() -> None:
    encoder = encoder_of("TURN_END", ids={"</s>": 1, "<turn_end>": 106})
    (tree,) = encoder.demonstration(demonstration("q1", "a1", "q2", "a2"))
    branch = tree.branches[0]
    ends = [index for index, number in enumerate(branch.ids.tolist()) if number == 106 and branch.loss_mask[index]]
    assert len(ends) == 2 and trained_runs(encoder, tree) == ["a1<turn_end>", "a2<turn_end>"]
    assert {1, 106} <= encoder.stop_ids
