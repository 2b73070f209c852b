"""T09: every assistant turn trains, and nothing else.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

import pytest

from tests.encoding import encoder_of, trained_runs
from tests.fixtures import demonstration


@pytest.mark.parametrize(
    "template", ["CHATML", "CHATML_DEFAULT_SYSTEM", "GEMMA_LIKE", "PHI3_LIKE", "LLAMA3_LIKE", "TOOLS"]
)
def test_all_assistant_turns(template: str) -> None:
    encoder = encoder_of(template)
    (tree,) = encoder.demonstration(demonstration("u1", "a1", "u2", "a2", "u3", "a3", system="sys"))
    stop = encoder.template.stops[0].text
    assert trained_runs(encoder, tree) == [f"a1{stop}", f"a2{stop}", f"a3{stop}"]
