"""T21: packing rows together changes none of them (axolotl#1375, transformers PR#46634).

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

import pytest
import torch

from posttrain.data.trees import collate
from posttrain.models.tree.attention import TreeLayout
from posttrain.models.tree.logprobs import Policy
from posttrain.models.tree.parity import leak
from tests.fixtures import ARCHITECTURES, make_tree, tiny_model

A = make_tree([5], [6, 7, 8, 9], row=1)
OTHER_A = make_tree([50], [60, 70, 80, 90], row=1)
B = make_tree([10], [11, 12, 13, 14, 15, 16], row=2)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("path", ["tree", "padded"])
def test_b_is_the_same_alone_and_packed(arch: str, path: str) -> None:
    policy = Policy(tiny_model(arch, vocab=97), path)  # type: ignore[arg-type]
    alone = policy(collate([B])).logprobs_N
    packed = policy(collate([A, B])).logprobs_N
    beside_another = policy(collate([OTHER_A, B])).logprobs_N
    torch.testing.assert_close(packed[4:], alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(beside_another[4:], packed[4:], atol=1e-6, rtol=0)


def test_no_label_predicts_the_first_token_of_b_from_a() -> None:
    batch = collate([A, B])
    start_of_b = 5
    assert start_of_b not in batch.target_index_N.tolist()
    for target, predictor in zip(batch.target_index_N.tolist(), batch.predictor_index_N.tolist(), strict=True):
        assert (target >= start_of_b) == (predictor >= start_of_b)


def test_the_run_time_leak_test_finds_a_planted_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    """An attention that lets every node see the node before it."""
    policy = Policy(tiny_model("llama", vocab=97))
    assert leak(policy, [A, B]).holds
    init = TreeLayout.__init__

    def leaky(self, batch, backend="segments"):  # type: ignore[no-untyped-def]
        init(self, batch, backend)
        self.ancestors = [tuple(range(i)) for i in range(len(self.nodes))]

    monkeypatch.setattr(TreeLayout, "__init__", leaky)
    found = leak(policy, [A, B])
    assert not found.holds and found.logprob > 1e-3
