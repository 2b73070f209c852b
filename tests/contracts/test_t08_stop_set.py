"""T08, the rollout's side: the token that ends a turn ends a completion, whatever the tokenizer calls eos.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

import torch

from posttrain.data.encode import Encoder
from posttrain.rollout.engine import FinishReason
from posttrain.rollout.native import NativeEngine
from posttrain.sampling import SamplingDistribution
from tests.fixtures import byte_tokenizer, chat, tiny_model

EOS, TURN_END = 1, 106


def test_a_rollout_stops_at_the_templates_terminator() -> None:
    tokenizer = byte_tokenizer("TURN_END", ids={"</s>": EOS, "<turn_end>": TURN_END})
    encoder = Encoder(tokenizer)
    assert {EOS, TURN_END} <= encoder.stop_ids
    model = tiny_model(vocab=len(tokenizer))
    with torch.no_grad():  # after any token, the terminator is likeliest
        model.model.norm.weight.zero_()
        model.lm_head.bias = torch.nn.Parameter(torch.zeros(len(tokenizer)))
        model.lm_head.bias[TURN_END] = 50.0
    prompt = encoder.prompt(chat("Hi"))
    sampling = SamplingDistribution(max_new_tokens=8, stop_ids=encoder.stop_ids)
    stopped = NativeEngine(model).generate([prompt], sampling)[0][0]
    assert (stopped.ids, stopped.finish) == ((TURN_END,), FinishReason.EMPTY)
    only_eos = SamplingDistribution(max_new_tokens=8, stop_ids=frozenset({EOS}))
    assert NativeEngine(model).generate([prompt], only_eos)[0][0].finish is FinishReason.LENGTH
