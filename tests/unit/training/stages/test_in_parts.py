"""The models of a stage whose ranks share them, and what a mesh refuses before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import torch

from posttrain.errors import ConfigError
from tests.fixtures import byte_tokenizer, tiny_model
from tests.ranks import ranks
from tests.unit.models.sharding.scenes import stage_in_parts


def test_a_second_stage_takes_what_the_first_has_trained(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tiny_model(vocab=len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    alone = stage_in_parts(tmp_path, "lora")
    assert not torch.allclose(alone[0], alone[1])
    for found in ranks(2).run(stage_in_parts, tmp_path, "lora"):
        for own, wanted in zip(found, alone, strict=True):
            torch.testing.assert_close(own, wanted, rtol=0, atol=1e-4)


def test_adalora_is_refused_in_parts(tmp_path: Path) -> None:
    for error in ranks(2).outcomes(stage_in_parts, tmp_path / "nothing is read", "adalora"):
        assert isinstance(error, ConfigError) and "AdaLoRA cannot be trained in parts" in str(error)
