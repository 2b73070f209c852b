"""T90, its kin: a policy that sees what it should predict is refused; leaks are looked for in fp32 whatever trains.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks.families import pairs, plain
from benchmarks.tiny_families import tiny_family
from posttrain.data.trees import collate
from posttrain.errors import ModelError
from posttrain.models.tree.logprobs import Policy
from posttrain.models.tree.parity import between, leak, looks_ahead
from posttrain.training.checks import preflight
from posttrain.types import TokenTree
from tests.fixtures import ARCHITECTURES, tiny_model


@pytest.mark.parametrize("family", ["bert", "xlnet", "cpmant"])
def test_a_model_that_reads_ahead_is_refused(family: str) -> None:
    options = {"is_decoder": False} if family == "bert" else {}
    policy = Policy(tiny_family(family, **options))
    with pytest.raises(ModelError, match=r"is not causal: it sees the tokens(.|\n)*changing token"):
        policy(collate(pairs()))
    with pytest.raises(ModelError, match="not causal"):
        preflight.choose_path(policy, pairs(), "padded")


class OneAhead(Policy):
    """A model whose every place sees the next token, and so the very one that it predicts."""

    def row_outputs(self, batch):  # type: ignore[no-untyped-def]
        logits = super().row_outputs(batch)
        logits[:-1] += 0.1 * torch.nn.functional.one_hot(batch.input_ids_T[1:], logits.shape[1])
        return logits


def test_one_token_ahead_is_enough() -> None:
    with pytest.raises(ModelError, match="not causal"):
        OneAhead(tiny_model("llama", vocab=128))(collate(pairs()))


def test_experts_that_are_chosen_by_other_tokens() -> None:
    """Doge with experts splits its router's output across tokens (transformers says so in a comment of its code)."""
    with pytest.raises(ModelError, match="not causal"):
        Policy(tiny_family("doge", is_moe=True, num_experts=16))(collate(pairs()))
    model = tiny_family("doge", keep_window_size=2048)
    torch.testing.assert_close(Policy(model)(collate(pairs())).logprobs_N, plain(model, pairs()), atol=2e-5, rtol=0)


def test_decoders_do_not() -> None:
    for arch in ARCHITECTURES:
        assert looks_ahead(Policy(tiny_model(arch, vocab=128)), pairs()[3]) is None
    assert looks_ahead(Policy(tiny_family("bert")), pairs()[3]) is None


def test_the_remedy_for_bert_works() -> None:
    model = tiny_family("bert", is_decoder=True)
    found = Policy(model)(collate(pairs())).logprobs_N
    torch.testing.assert_close(found, plain(model, pairs()), atol=2e-5, rtol=0)


class Leaky(Policy):
    """A path that moves every log-prob by less than bf16 rounds, as a weak state does that runs on."""

    def _answer(self, batch, wants, chosen):  # type: ignore[no-untyped-def]
        answer, states_ND = super()._answer(batch, wants, chosen)
        if chosen == "tree" and wants.logprobs:
            answer.logprobs_N.data.add_(0.04 * (batch.branch_N > 0))
        return answer, states_ND


@pytest.mark.parametrize("half", ["autocast", "weights"])
def test_a_leak_as_small_as_bf16_rounding_is_found(half: str) -> None:
    model = tiny_model("llama", vocab=128)
    if half == "weights":
        model = model.bfloat16()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    autocast = torch.bfloat16 if half == "autocast" else None
    assert preflight.choose_path(Policy(model, autocast=autocast), pairs(), "auto").status == "pass"
    policy = Leaky(model, autocast=autocast)
    assert between(policy, pairs(), "tree", "padded").dtype == torch.float32
    check = preflight.choose_path(policy, pairs(), "auto")
    assert check.status == "warn" and policy.path == "padded" and "computed in float32" in check.detail
    assert policy.autocast == autocast  # as it was, and its weights too
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert all(parameter.dtype == before[name].dtype for name, parameter in model.named_parameters())


@pytest.mark.parametrize("family", ["falcon_h1", "zamba"])
def test_a_weak_state_is_no_rounding(family: str) -> None:
    """Hybrids whose state was initialised small leak 0.04 nats from row to row: bf16 took that for noise."""
    model = tiny_family(family)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "mamba" in name and ("in_proj" in name or "out_proj" in name):
                parameter.mul_(0.5)
    policy = Policy(model, autocast=torch.bfloat16)
    check = preflight.choose_path(policy, pairs(), "auto")
    assert policy.path == "padded" and check.status == "warn"


def test_rows_are_compared_as_long_as_the_longest() -> None:
    """A padded row that changes beside a longer one, from its 40th token on: the two shortest rows do not show it."""

    class Late(Policy):
        def _padded(self, batch, wants):  # type: ignore[no-untyped-def]
            answer = super()._padded(batch, wants)
            late = batch.positions_T[batch.target_index_N] > 40
            if batch.num_branches > 1:
                answer.logprobs_N.data.add_(0.5 * late)
            return answer

    policy = Late(tiny_model("llama", vocab=128), "padded")
    check = preflight.choose_path(policy, pairs(), "padded")
    assert policy.path == "rows" and check.status == "warn" and "each runs alone" in check.detail


def test_a_leak_is_measured_in_fp32() -> None:
    trees: list[TokenTree] = pairs()[:2]
    assert leak(Policy(tiny_model("llama", vocab=128), autocast=torch.bfloat16), trees).dtype == torch.float32
