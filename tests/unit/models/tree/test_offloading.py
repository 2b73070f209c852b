"""What leaves the card for the backward pass, and that it comes back as it was; these tests' card is the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from posttrain.data.trees import collate
from posttrain.models.tree.logprobs import Policy
from posttrain.models.tree.offloading import HostActivations, from_host, to_host
from tests.fixtures import make_tree, tiny_model

CPU = torch.device("cpu")


class Elsewhere:
    """A machine's memory that counts, apart from the card's."""

    def __init__(self) -> None:
        self.sent: list[int] = []
        self.fetched: list[int] = []

    def away(self, bytes_n: Tensor) -> Tensor:
        assert bytes_n.dtype == torch.uint8 and bytes_n.ndim == 1
        self.sent.append(bytes_n.numel())
        return to_host(bytes_n)

    def back(self, kept: Tensor, part: slice, device: torch.device) -> Tensor:
        self.fetched.append(part.stop - part.start)
        return from_host(kept, part, device)

    def of(self, model: nn.Module, least: int = 1) -> HostActivations:
        return HostActivations(model, CPU, away=self.away, back=self.back, least=least)


@pytest.fixture
def elsewhere() -> Iterator[Elsewhere]:
    yield Elsewhere()


def gradients(model: nn.Module, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad]))


def test_every_byte_comes_back(elsewhere: Elsewhere) -> None:
    """Policies of several kinds, on every path: losses and gradients bit for bit."""
    batch = collate([make_tree([1, 2, 3, 4], [5, 6, 7, 8, 9], [5, 9]), make_tree([2, 7], [3, 4])])
    for family, path, checkpointing, adapter in (
        ("llama", "tree", False, False),
        ("llama", "padded", True, False),
        ("gemma3", "padded", False, False),
        ("qwen3", "tree", True, True),
    ):
        model: Any = tiny_model(family)
        if adapter:
            from peft import LoraConfig, get_peft_model

            model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
        policy = Policy(model, path, activation_checkpointing=checkpointing)  # type: ignore[arg-type]
        before = policy(batch, path=path).logprobs_N.sum()  # type: ignore[arg-type]
        expected = gradients(model, before)
        policy.activations = elsewhere.of(model)
        elsewhere.sent.clear()
        after = policy(batch, path=path).logprobs_N.sum()  # type: ignore[arg-type]
        assert torch.equal(before, after) and elsewhere.sent, family
        for ours, theirs in zip(gradients(model, after), expected, strict=True):
            assert torch.equal(ours, theirs), family


def test_checkpointing_moves_the_inputs_of_layers_and_little_else(elsewhere: Elsewhere) -> None:
    batch = collate([make_tree([1, 2, 3, 4], [5, 6, 7, 8, 9, 10])])
    totals = []
    for checkpointing in (False, True):
        policy = Policy(tiny_model(), "tree", activation_checkpointing=checkpointing)
        policy.activations = elsewhere.of(policy.model)
        policy.prove([make_tree([1, 2], [3])])
        elsewhere.sent.clear()
        policy(batch, path="tree")
        totals.append(sum(elsewhere.sent))
    assert totals[1] < totals[0] / 3


def test_weights_stay_and_their_views_do(elsewhere: Elsewhere) -> None:
    model = nn.Linear(8, 8)
    frozen = nn.Linear(8, 8).requires_grad_(False)
    x = torch.randn(4, 8, requires_grad=True)
    with elsewhere.of(model).away():
        # `frozen` stands for a layer that FSDP gathered: nobody listed it, and its transposed view is what is saved.
        y = frozen(model(x)) @ frozen.weight.t() + (model.weight.data * x[:1].sum(dim=1)).sum()
    assert elsewhere.sent == [4 * 8 * 4]  # x
    y.sum().backward()
    assert model.weight.grad is not None


def test_one_storage_goes_once_and_a_view_fetches_its_part(elsewhere: Elsewhere) -> None:
    model = nn.Linear(1, 1)
    x = torch.randn(6, 4, requires_grad=True)
    expected = torch.autograd.grad((x.sin() ** 2).sum() + (x[:2] ** 3).sum() + (x.t()[1:3] ** 3).sum(), x)[0]
    with elsewhere.of(model).away():
        value = (x.sin() ** 2).sum() + (x[:2] ** 3).sum() + (x.t()[1:3] ** 3).sum()
    assert elsewhere.sent == [96, 96]  # x, three times, and sin x
    assert torch.equal(torch.autograd.grad(value, x)[0], expected)
    # Two rows of four; columns 1 and 2 from their first number to their last, in the memory of the whole.
    assert sorted(elsewhere.fetched) == [32, (5 * 4 + 2) * 4, 96, 96]


def test_what_is_changed_in_place_goes_as_it_was(elsewhere: Elsewhere) -> None:
    x = torch.ones(4, requires_grad=True)
    held = x * 2
    with elsewhere.of(nn.Linear(1, 1)).away():
        first = (held**2).sum()
        held.mul_(10)
        second = (held**2).sum()
    assert elsewhere.sent == [16, 16]
    # d/dx of (2x)^2 is 8x, of (20x)^2 is 800x.
    assert torch.autograd.grad(first + second, x)[0].tolist() == [808.0] * 4


def test_memory_that_is_used_again_is_not_taken_for_what_lay_there(elsewhere: Elsewhere) -> None:
    """Where a storage moved, its place on the card is free for the next one: the same address, other bytes."""
    x = torch.arange(1.0, 1001.0, requires_grad=True)
    with elsewhere.of(nn.Linear(1, 1)).away():
        value = x.sum() * 0
        for factor in range(1, 9):
            value = value + ((x * factor) ** 2).sum()
    expected = 2 * x.detach() * sum(factor**2 for factor in range(1, 9))
    torch.testing.assert_close(torch.autograd.grad(value, x)[0], expected)
    assert len(elsewhere.sent) == 8


def test_small_tensors_and_those_of_another_device_stay(elsewhere: Elsewhere) -> None:
    x = torch.randn(8, requires_grad=True)
    with elsewhere.of(nn.Linear(1, 1), least=33).away():
        (x**2).sum()
    with HostActivations(nn.Linear(1, 1), torch.device("cuda"), away=elsewhere.away, least=1).away():
        (x**2).sum()
    assert not elsewhere.sent


def test_without_gradients_nothing_moves(elsewhere: Elsewhere) -> None:
    policy = Policy(tiny_model(), "padded")
    policy.activations = elsewhere.of(policy.model)
    with torch.no_grad():
        policy(collate([make_tree([1, 2], [3])]), path="padded")
    assert not elsewhere.sent


def test_on_a_cpu_there_is_nothing_to_move() -> None:
    assert Policy(tiny_model(), offload_activations=True).activations is None
