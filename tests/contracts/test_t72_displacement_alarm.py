"""T72: on pairs that share 19 of 20 tokens DPO widens the margin, the chosen side loses probability, and it is said.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from posttrain.data.trees import collate
from posttrain.diagnostics.alarms import Alarm, Alarms
from posttrain.diagnostics.metrics import values
from posttrain.models.tree.logprobs import Policy
from posttrain.training.objectives import algorithm
from posttrain.types import Branch, RowRef, TokenTree
from tests.fixtures import tiny_model

VOCAB = 64


def _pairs_that_differ_in_one_token(count: int, place: int) -> list[TokenTree]:
    random = np.random.default_rng(0)
    trees = []
    for row in range(count):
        shared = random.integers(3, VOCAB, 19)
        endings = random.choice(np.arange(3, VOCAB), 2, replace=False)
        branches = tuple(
            Branch(np.insert(shared, place, ending).astype(np.int32), np.ones(20, dtype=bool)) for ending in endings
        )
        prompt = random.integers(3, VOCAB, 4).astype(np.int32)
        trees.append(TokenTree(prompt, branches, f"pair-{row}", RowRef("pairs.jsonl", row + 1)))
    return trees


def _train(method: str, place: int) -> tuple[list[Alarm], dict[str, float]]:
    """Forty steps on eight pairs; the alarms raised, and the last step's metrics."""
    policy = Policy(tiny_model("llama", vocab=VOCAB, seed=0))
    batch = collate(_pairs_that_differ_in_one_token(8, place))
    with torch.no_grad():
        reference_N = policy(batch).logprobs_N.clone()
    optimizer = torch.optim.Adam(policy.parameters(), lr=5e-3)
    alarms, raised, figures = Alarms(), [], {}
    for step in range(40):
        optimizer.zero_grad()
        out = algorithm(method).loss(policy(batch), reference_N, batch, batch.count)
        out.loss.backward()
        optimizer.step()
        figures = values(out.metrics)
        raised += alarms.check(step, figures, last_good_checkpoint=f"step-{step // 10 * 10:08d}")
    return raised, figures


def test_t72_dpo_on_pairs_that_hardly_differ() -> None:
    raised, figures = _train("dpo", place=19)
    assert figures["reward_margin"] > 1.0, "the loss sees a success"
    assert figures["logprob_chosen_change"] < -5.0, "and the chosen responses have become less likely"
    first = raised[0]
    assert first.name == "likelihood_displacement"
    assert first.evidence["logprob_chosen_change"] < -1.0
    assert first.evidence["reward_margin"] > 0.0
    assert "dpo_nll" in first.remedy
    assert first.last_good_checkpoint is not None
    assert int(first.last_good_checkpoint.removeprefix("step-")) < first.step


@pytest.mark.parametrize(
    ("method", "place"), [("dpo_nll", 19), ("dpo", 0)], ids=["with the remedy", "pairs that differ early"]
)
def test_t72_silent_where_the_chosen_responses_gain(method: str, place: int) -> None:
    raised, figures = _train(method, place)
    assert figures["reward_margin"] > 1.0
    assert figures["logprob_chosen_change"] > 0.0
    assert raised == []
