"""What can be merged beside plain folders: each input gives the weights that every other verb would load from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from typer.testing import CliRunner

from posttrain.cli.app import app
from posttrain.config import SFT, stage_yaml
from posttrain.config.adapters import IA3, AdapterSettings, Bottleneck, LoRA
from posttrain.config.merging import merge_settings
from posttrain.errors import ConfigError
from posttrain.models.adapters.folding import merged_copy
from posttrain.models.folders.loading import load
from posttrain.models.merging.run import merge_models, planned
from posttrain.models.merging.tensors import entries_of, read_tensor
from posttrain.parallel.world import world
from posttrain.runs.checkpoints import FILES, MANIFEST, file_identity, read, whole_checkpoints
from posttrain.runs.folder import StageFolder
from posttrain.runs.records.stage import StartModel
from posttrain.training import checkpoint
from posttrain.training.optimizer import Optimizer
from posttrain.training.sharded_checkpoint import begin
from tests.adapters import disturb, save_alone
from tests.fixtures import bpe_tokenizer, byte_tokenizer, tiny_model
from tests.ranks import ranks
from tests.read_back import read_in_process
from tests.unit.models.folders.test_catalogue import MERGES, write_gguf

TOKENIZER = byte_tokenizer("CHATML", pad=None)
State = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def faults(monkeypatch: pytest.MonkeyPatch) -> Any:
    yield from read_in_process(monkeypatch)


def save(folder: Path, seed: int, tokenizer: Any = TOKENIZER) -> Path:
    tiny_model(vocab=len(tokenizer), seed=seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save(tmp_path / "base", 3)


def weights(folder: Path) -> State:
    return {name: read_tensor(entry) for name, entry in entries_of(folder).items()}


def merged(folder: Path, kind: str, models: list[Any], **options: Any) -> State:
    merge_models(merge_settings(kind, models, **options), folder)
    return weights(folder)


def close(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.allclose(tensor, expected[name], atol=1e-6), name


def test_a_gguf_file(tmp_path: Path) -> None:
    tokenizer = bpe_tokenizer(MERGES, "CHATML", specials=("<|file|>",))
    one, two = save(tmp_path / "one", 1, tokenizer), save(tmp_path / "two", 2, tokenizer)
    write_gguf(tmp_path / "one.gguf", load(one).model, tokenizer)
    found = merged(tmp_path / "out", "linear", [tmp_path / "one.gguf", {"model": tmp_path / "one.gguf", "weight": 3}])
    close(found, weights(one))
    # With a folder of the same model, whose template is written otherwise in the two.
    also = merged(tmp_path / "also", "linear", [tmp_path / "one.gguf", two], tokens="union", template="first")
    assert torch.allclose(
        also["model.norm.weight"], (weights(one)["model.norm.weight"] + weights(two)["model.norm.weight"]) / 2
    )
    assert not [path for path in tmp_path.iterdir() if "inputs" in path.name]


def test_a_name_of_the_catalogue(tmp_path: Path) -> None:
    found = merged(tmp_path / "out", "linear", ["embedded", {"model": "embedded", "weight": 2}])
    loaded = load("embedded").model.state_dict()
    assert all(torch.allclose(found[name].float(), loaded[name], atol=1e-2) for name in found)


def test_several_adapters_of_one_base_by_their_names(base: Path, tmp_path: Path) -> None:
    folders = []
    for name, size in (("one", 0.1), ("two", 0.2)):
        model = disturb(load(base, adapter=LoRA(rank=2)).model, size)
        folders.append(save_alone(model, tmp_path / name, base, TOKENIZER))
    wholes = [merged_copy(load(folder).model).state_dict() for folder in folders]
    found = merged(tmp_path / "out", "linear", folders)
    close(found, {name: (wholes[0][name] + wholes[1][name]) / 2 for name in found})


def test_the_base_that_manifests_name(base: Path, tmp_path: Path) -> None:
    """As a merge writes it: its folder names its base, and so a merge of merges finds it."""
    for name, seed in (("a", 1), ("b", 2)):
        model = save(tmp_path / name, seed)
        merged(tmp_path / f"{name}2", "task_arithmetic", [model], base=base, weight=0.5)
    found = merged(tmp_path / "out", "task_arithmetic", [tmp_path / "a2", tmp_path / "b2"])
    start, a, b = weights(base), weights(tmp_path / "a"), weights(tmp_path / "b")
    close(found, {name: start[name] + 0.5 * (a[name] - start[name]) + 0.5 * (b[name] - start[name]) for name in found})
    other = save(tmp_path / "other", 4)
    merged(tmp_path / "c2", "task_arithmetic", [tmp_path / "a"], base=other)
    settings = merge_settings("ties", [tmp_path / "a2", tmp_path / "c2"])
    with pytest.raises(ConfigError, match="were trained from different models"), planned(settings, tmp_path / "no"):
        pass


def test_posttrain_generate_answers_from_a_merge_of_a_merge(base: Path, tmp_path: Path) -> None:
    once = save(tmp_path / "a", 1)
    merged(tmp_path / "first", "linear", [once, base])
    merged(tmp_path / "second", "slerp", [tmp_path / "first", base], t=0.5)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "2 + 2?"}\n')
    arguments = [str(tmp_path / "second"), "--prompts", str(tmp_path / "prompts.jsonl"), "--max-new-tokens", "4"]
    result = CliRunner().invoke(app, ["generate", *arguments])
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout.splitlines()[-1])
    assert answer["prompt"] == "2 + 2?" and answer["completion"] and answer["tokens"] == 4


# ---------------------------------------------------------------- checkpoints


def stage_of(folder: Path, start: Path, adapter: AdapterSettings | None, steps: int = 3) -> list[State]:
    """A stage's folder as training leaves it behind; gives the whole weights after each of its steps."""
    stage = SFT(data="rows.jsonl", adapter=adapter)
    folder.mkdir()
    record = StageFolder(folder)
    record.write_config(stage_yaml(stage, seed=0))
    record.write_stage(status="done", start_model=StartModel("base", str(start), "f"))
    model = load(start, adapter=adapter).model
    for parameter in model.parameters() if adapter is None else ():
        parameter.requires_grad_(True)
    optimizer = Optimizer(model, stage.optimizer, learning_rate=0.1, schedule=stage.schedule, steps=4)
    states = []
    for step in range(1, steps + 1):
        disturb(model, 0.05)
        checkpoint.save(record.checkpoints, step=step, model=model, optimizer=optimizer, state={}, keep=9)
        whole = merged_copy(model).state_dict() if adapter is None or adapter.kind != "bottleneck" else {}
        states.append({name: tensor.clone() for name, tensor in whole.items()})
    return states


@pytest.mark.parametrize("adapter", [None, LoRA(rank=2), LoRA(rank=2, dora=True), IA3()], ids=str)
def test_checkpoints_of_a_stage(adapter: AdapterSettings | None, base: Path, tmp_path: Path) -> None:
    states = stage_of(tmp_path / "stage", base, adapter)
    source = {"model": str(tmp_path / "stage"), "checkpoints": 2}
    found = merged(tmp_path / "out", "linear", [source])
    close(found, {name: (states[1][name] + states[2][name]) / 2 for name in found})
    shares = {"last": 3, "average": "ema", "decay": 0.5}
    found = merged(tmp_path / "ema", "linear", [{**source, "checkpoints": shares}])
    close(found, {name: 0.25 * states[0][name] + 0.25 * states[1][name] + 0.5 * states[2][name] for name in found})


def in_parts(folder: Path) -> None:
    """Every checkpoint of a stage again, as ranks that share the model would have written it."""
    mesh = init_device_mesh("cpu", (world().size,))
    for path in whole_checkpoints(folder / "checkpoints"):
        whole = {name: tensor for file in FILES[:2] for name, tensor in load_file(path / file).items()}
        tensors = {
            name: distribute_tensor(tensor, mesh, [Shard(0)]) if tensor.ndim else tensor
            for name, tensor in whole.items()
        }
        found = read(path)
        begin(folder / "checkpoints", found.step, tensors, found.state, keep=9).result()


@pytest.mark.parametrize("adapter", [None, LoRA(rank=2)], ids=str)
def test_checkpoints_of_ranks_that_shared_the_model(
    adapter: AdapterSettings | None, base: Path, tmp_path: Path
) -> None:
    states = stage_of(tmp_path / "stage", base, adapter)
    ranks(2).run(in_parts, tmp_path / "stage")
    paths = whole_checkpoints(tmp_path / "stage" / "checkpoints")
    assert len(paths) == 3 and all(not (path / FILES[0]).exists() for path in paths)
    found = merged(tmp_path / "out", "linear", [{"model": str(tmp_path / "stage"), "checkpoints": 2}])
    close(found, {name: (states[1][name] + states[2][name]) / 2 for name in found})


def test_the_mean_of_products_is_not_the_product_of_means(base: Path, tmp_path: Path) -> None:
    """What averaging the factors would give is another model."""
    stage_of(tmp_path / "stage", base, LoRA(rank=2))
    found = merged(tmp_path / "out", "linear", [{"model": str(tmp_path / "stage"), "checkpoints": 3}])
    files = sorted((tmp_path / "stage" / "checkpoints").glob("step-*/" + FILES[0]))
    model = load(base, adapter=LoRA(rank=2)).model
    factors = [load_file(path) for path in files]
    model.load_state_dict({name: sum(one[name] for one in factors) / 3 for name in factors[0]}, strict=False)
    wrong = merged_copy(model).state_dict()
    assert any(not torch.allclose(found[name], wrong[name], atol=1e-4) for name in found)


def test_what_was_frozen_stays_to_the_last_bit(base: Path, tmp_path: Path) -> None:
    stage_of(tmp_path / "stage", base, LoRA(rank=2, targets=("q_proj",)))
    found = merged(tmp_path / "out", "linear", [{"model": str(tmp_path / "stage"), "checkpoints": 3}])
    start = weights(base)
    moved = {name for name in found if not torch.equal(found[name], start[name])}
    assert moved == {name for name in found if "q_proj" in name}


def test_checkpoints_are_spoken_to_as_their_stage_was(base: Path, tmp_path: Path) -> None:
    stage_of(tmp_path / "stage", base, None)
    other = byte_tokenizer("CHATML", pad=None)
    other.chat_template = "{% for m in messages %}Q: {{ m.content }}\n{% endfor %}A:"
    (tmp_path / "stage" / "model").mkdir()
    load(base).model.save_pretrained(tmp_path / "stage" / "model")
    other.save_pretrained(tmp_path / "stage" / "model")
    merged(tmp_path / "out", "linear", [{"model": str(tmp_path / "stage"), "checkpoints": 2}])
    assert load(tmp_path / "out").tokenizer.chat_template == other.chat_template


def test_a_value_model_beside_the_policy_is_left_out(base: Path, tmp_path: Path) -> None:
    for name, adapter in (("whole", None), ("lora", LoRA(rank=2))):
        states = stage_of(tmp_path / name, base, adapter, steps=1)
        path = next((tmp_path / name / "checkpoints").glob("step-*"))
        with_value = {**load_file(path / FILES[0]), "value::head.weight": torch.ones(2)}
        save_file(with_value, path / FILES[0])
        said = json.loads((path / MANIFEST).read_text())
        (path / MANIFEST).write_text(json.dumps({**said, FILES[0]: file_identity(path / FILES[0])}))
        found = merged(tmp_path / f"{name} out", "linear", [{"model": str(tmp_path / name), "checkpoints": 1}])
        close(found, {key: states[0][key] for key in found})


def test_checkpoints_of_an_adapter_that_is_no_change_of_weights(base: Path, tmp_path: Path) -> None:
    stage_of(tmp_path / "stage", base, Bottleneck(size=4))
    settings = merge_settings("linear", [{"model": str(tmp_path / "stage"), "checkpoints": 2}])
    with (
        pytest.raises(ConfigError, match="an adapter of kind bottleneck cannot be folded") as caught,
        planned(settings, tmp_path / "out"),
    ):
        pass
    assert "lora" in str(caught.value.expected)


def test_a_config_that_names_another_adapter_is_noticed(base: Path, tmp_path: Path) -> None:
    stage_of(tmp_path / "stage", base, LoRA(rank=2))
    text = stage_yaml(SFT(data="rows.jsonl", adapter=LoRA(rank=2, targets=("q_proj",))), seed=0)
    StageFolder(tmp_path / "stage").write_config(text)
    settings = merge_settings("linear", [{"model": str(tmp_path / "stage"), "checkpoints": 2}])
    with (
        pytest.raises(ConfigError, match="holds parameters that the stage's adapter has not"),
        planned(settings, tmp_path / "out"),
    ):
        pass
