"""T19: a tool trace.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

from posttrain.types import Demonstration, Message, RowRef
from tests.encoding import contexts, encoder_of, shown, trained_runs


def test_tool_trace() -> None:
    encoder = encoder_of("TOOLS")
    schema = {"type": "function", "function": {"name": "search", "description": "Finds pages.", "parameters": {}}}
    call = {"type": "function", "function": {"name": "search", "arguments": {"query": "mars"}}}
    messages = (
        Message("user", "Is Mars red?"),
        Message("assistant", None, tool_calls=(call,)),
        Message("tool", "Iron oxide makes it red.", name="search"),
        Message("assistant", "Yes."),
    )
    (tree,) = encoder.demonstration(Demonstration(messages, RowRef("t.jsonl", 1), tools=(schema,)))
    first, second = trained_runs(encoder, tree)
    assert '"search"' in first and '"query": "mars"' in first and first.endswith("<|im_end|>")
    assert second == "Yes.<|im_end|>"
    context = encoder.tokens.decode(tree.prompt_ids.tolist())
    assert "Finds pages." in context
    assert "Iron oxide makes it red." in shown(encoder, tree) and "None" not in shown(encoder, tree)
    assert contexts(tree) == [encoder.prompt(messages[:1], [schema]), encoder.prompt(messages[:3], [schema])]
