"""T11: a generation prompt that opens a thought.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

import pytest

from tests.encoding import encoder_of, path_ids, shown
from tests.fixtures import chat, demonstration


@pytest.mark.parametrize("template", ["THINK_PREFILL", "THINK_PREFILL_VERBATIM"])
@pytest.mark.parametrize("written", ["r</think>\n\n4", "<think>\nr</think>\n\n4", "<think>r</think>\n\n4"])
def test_a_prompt_that_opens_a_thought(template: str, written: str) -> None:
    encoder = encoder_of(template)
    (tree,) = encoder.demonstration(demonstration("2+2?", written))
    prompt = encoder.prompt(chat("2+2?"))
    completion = encoder.tokens.ids("r</think>\n\n4<|im_end|>")
    assert path_ids(tree) == [*prompt, *completion]
    assert tree.prompt_ids.tolist() == prompt and tree.branches[0].loss_mask.all()
    text = shown(encoder, tree)
    assert text.count("<think>") == 1 and text.count("</think>") == 1
