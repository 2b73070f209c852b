"""T07: a template without generation markers.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

import pytest

from posttrain.errors import TemplateError
from tests.encoding import encoder_of, trained_runs
from tests.fixtures import NO_GENERATION_PROMPT, chat, demonstration


@pytest.mark.parametrize("template", ["CHATML", "NO_BOS", "TURN_END", "LLAMA3_LIKE", NO_GENERATION_PROMPT])
def test_no_generation_markers(template: str) -> None:
    specials = ["<|user|>", "<|assistant|>"] if template == NO_GENERATION_PROMPT else []
    encoder = encoder_of(template, specials=specials)
    (tree,) = encoder.demonstration(demonstration("alpha", "beta"))
    assert trained_runs(encoder, tree) == ["beta" + encoder.template.stops[0].text]
    assert tree.prompt_ids.tolist() == encoder.prompt(chat("alpha"))


def test_a_template_that_cannot_be_masked_is_named() -> None:
    hiding = "{% for m in messages %}{{ m['role'] }}{% endfor %}"
    with pytest.raises(TemplateError, match="the tokenizer's chat template shows neither question nor answer"):
        encoder_of(hiding)
