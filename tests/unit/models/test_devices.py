"""The words of `device` to a device: what there is, what there is not, and in whose words."""

from __future__ import annotations

import pytest
import torch

from posttrain.errors import ConfigError
from posttrain.models.devices import device_of


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A machine whose number of CUDA cards the test says."""
    count = [0]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count[0] > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count[0])
    return count


def test_auto_takes_what_there_is(cards: list[int]) -> None:
    assert device_of() == torch.device("cpu")
    cards[0] = 2
    assert device_of("auto") == torch.device("cuda")
    assert device_of("cuda:1") == torch.device("cuda:1")
    assert device_of("cpu") == torch.device("cpu")
    assert device_of(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize("asked", ["cuda", "cuda:0"])
def test_cuda_without_a_card_is_refused_with_the_remedy(asked: str, cards: list[int]) -> None:
    with pytest.raises(ConfigError) as error:
        device_of(asked)
    assert "there is none here" in error.value.problem
    assert "`device: auto`" in error.value.remedy


def test_a_card_that_is_not_there_is_refused(cards: list[int]) -> None:
    cards[0] = 2
    with pytest.raises(ConfigError, match="no device 'cuda:2'") as error:
        device_of("cuda:2")
    assert error.value.found == "2 CUDA devices"


def test_a_word_that_is_no_device_is_refused() -> None:
    with pytest.raises(ConfigError, match="no device 'gpu'") as error:
        device_of("gpu")
    assert error.value.expected == "auto, cpu, cuda, cuda:N or mps"


def test_an_apple_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="no Apple GPU"):
        device_of("mps")
