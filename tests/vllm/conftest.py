"""A real vLLM on the CPU: its servers run in an environment of their own, `.venv-vllm`; these tests in the project's.

    make test-vllm

One server starts for the whole session, on a random model of two layers; starting one takes half a minute.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from posttrain.config.engines import LaunchSettings
from posttrain.rollout.vllm_install import Needs, cache_bytes
from posttrain.rollout.vllm_launch import LaunchedServers
from posttrain.rollout.vllm_served import ServedEngine
from posttrain.rollout.weight_folder import write_whole
from tests.fixtures import tiny_model

ROOT = Path(__file__).resolve().parents[2]
PYTHON = str(ROOT / os.environ.get("POSTTRAIN_VLLM_PYTHON", ".venv-vllm/bin/python"))
VOCABULARY = 97
POSITIONS = 512


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.vllm)


def served_model(**overrides: Any) -> Any:
    """Small, with heads as wide as vLLM's attention on a CPU asks for."""
    size = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
    return tiny_model(max_position_embeddings=POSITIONS, **{**size, **overrides})


def save_served(model: Any, folder: Path) -> Path:
    """With a tokenizer of a character for each id, from "!" on: `tests.fake_vllm.letters`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    write_whole(model, folder)
    words = Tokenizer(models.WordLevel({chr(33 + number): number for number in range(VOCABULARY)}, unk_token="!"))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    words.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=words, clean_up_tokenization_spaces=False).save_pretrained(folder)
    return folder


def needs_of(model: Any) -> Needs:
    return Needs(longest=POSITIONS, dtype="float32", cache_bytes=cache_bytes(model.config))


@pytest.fixture(scope="session")
def model() -> Any:
    """The trainer's."""
    return served_model()


@pytest.fixture(scope="session")
def servers(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LaunchedServers]:
    """One server, on a folder whose generation_config.json would rule a careless engine."""
    folder = save_served(model, tmp_path_factory.mktemp("vllm") / "model")
    (folder / "generation_config.json").write_text(
        '{"do_sample": true, "repetition_penalty": 1.1, "temperature": 0.1, "top_k": 1, "eos_token_id": [11]}'
    )
    settings = LaunchSettings(python=PYTHON)
    running = LaunchedServers(settings, folder, folder.parent / "logs", needs_of(model))
    running.start()
    yield running
    running.close()


@pytest.fixture
def served(servers: LaunchedServers, model: Any) -> Iterator[ServedEngine]:
    """An engine that has just been given the model's weights."""
    engine = ServedEngine(servers.urls[0], patience=5.0)
    engine.update_weights(model, 0)
    yield engine
    engine.close()
