"""T06: no BOS before a completion.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

import pytest

from tests.encoding import encoder_of, pair
from tests.fixtures import chat


@pytest.mark.parametrize("template", ["BOS_IN_TEMPLATE", "LLAMA3_LIKE", "MISTRAL_LIKE"])
def test_no_bos_before_a_completion(template: str) -> None:
    encoder = encoder_of(template, add_bos=True)
    tree = encoder.comparison(pair(chat("q"), "yes", "no"))
    assert tree.prompt_ids[0] == encoder.bos_id
    for branch in tree.branches:
        assert encoder.bos_id not in branch.ids.tolist()
