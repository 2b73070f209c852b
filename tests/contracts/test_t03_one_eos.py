"""T03: exactly one trailing stop token, whether the data has it or not.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

import pytest

from tests.encoding import encoder_of, path_ids, trained_runs
from tests.fixtures import demonstration


@pytest.mark.parametrize("template", ["CHATML", "NO_BOS", "TURN_END", "NO_TERMINATOR", None])
@pytest.mark.parametrize("ending", ["", "</s>", "</s>\n", "</s></s>"])
def test_one_eos(template: str | None, ending: str) -> None:
    settings = {"template": "raw"} if template is None else {}
    encoder = encoder_of(template, settings)
    plain, ended = (
        encoder.demonstration(demonstration("a", "b")),
        encoder.demonstration(demonstration("a", "b" + ending)),
    )
    assert path_ids(ended[0]) == path_ids(plain[0])
    (run,) = trained_runs(encoder, ended[0])
    assert run.strip() == "b" + encoder.template.stops[0].text
