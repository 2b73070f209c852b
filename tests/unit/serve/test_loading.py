"""Names and folders become what is served: a base, its adapters by name, or a reward model."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.config.adapters import IA3, LoRA
from posttrain.errors import ConfigError, ModelError
from posttrain.models import load
from posttrain.models.adapters.kinds import add_adapter
from posttrain.models.folders.manifest import write_manifest
from posttrain.serve.loading import load_served
from tests.adapters import disturb
from tests.fixtures import byte_tokenizer, tiny_model
from tests.unit.serve.kit import HI, client_of

LORA = LoRA(rank=2)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "base"
    tokenizer = byte_tokenizer("CHATML", eos="<|im_end|>", pad_is_eos=True)
    tiny_model(vocab=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text('{"temperature": 0.01, "top_k": 1, "eos_token_id": 9}')
    return folder


def adapter(start: Path, out: Path, kind: Any = LORA, size: float = 0.3, **manifest: Any) -> Path:
    model = add_adapter(load(start).model, kind, seed=0)
    disturb(model, size).save_pretrained(out)
    if manifest:
        write_manifest(out, {"kind": "adapter", **manifest})
    return out


def ids(client: Any, model: str, seed: int = 3) -> list[int]:
    body = {"model": model, "messages": HI, "max_tokens": 12, "seed": seed, "return_token_ids": True}
    body["temperature"] = 0.5
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    result: list[int] = answer.json()["choices"][0]["token_ids"]
    return result


def test_adapters_by_name_beside_their_base(base: Path, tmp_path: Path) -> None:
    folders = {"a": adapter(base, tmp_path / "a"), "b": adapter(base, tmp_path / "b", size=0.6)}
    served = load_served(str(base), adapters={name: str(path) for name, path in folders.items()})
    with client_of(served) as client:
        models = client.get("/v1/models").json()["data"]
        assert [(model["id"], model["parent"]) for model in models] == [("base", None), ("a", "base"), ("b", "base")]
        together = {name: ids(client, name) for name in ("a", "base", "b")}
        assert client.get("/v1/models/a").json()["id"] == "a"
        assert client.get("/v1/models/c").status_code == 404
    # Each is what it is when it is served alone.
    alone = {"base": str(base), **{name: str(path) for name, path in folders.items()}}
    for name, folder in alone.items():
        with client_of(load_served(folder, name=name)) as client:
            assert ids(client, name) == together[name]
    assert len({tuple(sampled) for sampled in together.values()}) == 3


def test_requests_to_several_adapters_at_the_same_time_are_each_their_own(base: Path, tmp_path: Path) -> None:
    """They share one model, whose adapter is another one at each step of the engines' thread."""
    folders = {"a": adapter(base, tmp_path / "a"), "b": adapter(base, tmp_path / "b", size=0.6)}
    keys = [(name, seed) for seed in range(3) for name in ("a", "base", "b")]
    with client_of(load_served(str(base), adapters={name: str(path) for name, path in folders.items()})) as client:
        alone = [ids(client, *key) for key in keys]
        with ThreadPoolExecutor(len(keys)) as pool:
            assert list(pool.map(lambda key: ids(client, *key), keys)) == alone


def test_a_folders_generation_config_changes_nothing_but_where_answers_end(base: Path) -> None:
    (policy,) = load_served(str(base)).policies.values()
    assert 9 in policy.encoder.stop_ids
    with client_of(load_served(str(base))) as client:
        sampled = {tuple(ids(client, "base")) for _ in range(1)}
        body = {"messages": HI, "max_tokens": 12, "return_token_ids": True}
        sampled |= {
            tuple(client.post("/v1/chat/completions", json=body).json()["choices"][0]["token_ids"]) for _ in range(4)
        }
    assert len(sampled) > 2, "at the folder's temperature they would all be alike"


def test_an_adapter_of_another_base_is_refused(base: Path, tmp_path: Path) -> None:
    other = {"dtype": "torch.float32", "fingerprint": "0" * 64, "name": "other"}
    folder = adapter(base, tmp_path / "a", base=other)
    with pytest.raises(ModelError, match="trained on other base weights"):
        load_served(str(base), adapters={"a": str(folder)})
    wide = tmp_path / "wide"
    tokenizer = byte_tokenizer("CHATML")
    tiny_model(vocab=len(tokenizer), hidden_size=64, head_dim=16).save_pretrained(wide)
    tokenizer.save_pretrained(wide)
    with pytest.raises(ModelError, match="does not fit its base"):
        load_served(str(base), adapters={"a": str(adapter(wide, tmp_path / "b"))})


def test_kinds_that_do_not_share_a_model_are_refused(base: Path, tmp_path: Path) -> None:
    folders = {"a": str(adapter(base, tmp_path / "a")), "b": str(adapter(base, tmp_path / "b", IA3()))}
    with pytest.raises(ConfigError, match="several kinds") as told:
        load_served(str(base), adapters=folders)
    assert "a (lora), b (ia3)" in str(told.value)


def test_names_that_cannot_be_told_apart(base: Path, tmp_path: Path) -> None:
    folder = str(adapter(base, tmp_path / "a"))
    with pytest.raises(ConfigError, match="have the same name"):
        load_served(str(base), adapters={"base": folder})
    with pytest.raises(ConfigError, match="put on a whole language model"):
        load_served(folder, adapters={"b": folder})
    with pytest.raises(ModelError, match="holds no adapter"):
        load_served(str(base), adapters={"b": str(base)})


def test_a_folder_is_called_by_the_part_of_its_path_that_says_something(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "dpo" / "model"
    folder.parent.mkdir()
    base_copy = load(base)
    base_copy.model.save_pretrained(folder)
    base_copy.tokenizer.save_pretrained(folder)
    served = load_served(str(folder))
    assert served.names == ["dpo"] and str(folder) in served.hidden
    assert load_served(str(folder), name="mine").names == ["mine"]
    assert torch.is_grad_enabled()
