"""What is pushed, what never is, and what the hub must hold afterwards; against a hub in memory."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from posttrain.cli.app import app
from posttrain.errors import ConfigError, ModelError
from posttrain.models.folders.manifest import verify_manifest, write_manifest
from posttrain.models.folders.push import push_folder, refuse_secrets, require_repository, stage_model, stage_rows
from tests.fake_run import Plan, write_fake_run


@dataclass
class File:
    rfilename: str
    size: int


@dataclass
class Repository:
    private: bool
    siblings: list[File] = field(default_factory=list)


class Hub:
    """`HfApi` as far as it is used."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.loses: str | None = None
        self.fails = False

    def create_repo(self, name: str, *, private: bool, exist_ok: bool, repo_type: str) -> str:
        if self.fails:
            raise OSError("403 Forbidden\nlong story")
        assert exist_ok
        self.repositories.setdefault((repo_type, name), Repository(private))
        return f"https://huggingface.co/{name}"

    def repo_info(self, name: str, *, repo_type: str, files_metadata: bool = False) -> Repository:
        return self.repositories[repo_type, name]

    def upload_folder(self, *, folder_path: Path, repo_id: str, repo_type: str, commit_message: str) -> None:
        files = [path for path in Path(folder_path).rglob("*") if path.is_file()]
        named = [File(path.relative_to(folder_path).as_posix(), path.stat().st_size) for path in files]
        self.repositories[repo_type, repo_id].siblings = [file for file in named if file.rfilename != self.loses]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    found = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: found)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_x")
    return found


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"w": np.zeros(4, dtype=np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "_name_or_path": "/home/ada/base"}))
    (folder / "tokenizer.json").write_text('{"vocab": ["hf_' + "a" * 34 + '"]}')
    write_manifest(folder, {"kind": "model", "weights_fingerprint": "9f", "base": {"name": "/home/ada/base"}})
    return folder


def test_only_what_a_loader_reads_is_taken(tmp_path: Path, model: Path) -> None:
    for name in ("optimizer.pt", "rows.jsonl", "notes.txt", ".env"):
        (model / name).write_text("x")
    (model / "checkpoints").mkdir()
    staged = stage_model(model, tmp_path / "staged", "card")
    assert staged.files == (
        "README.md",
        "config.json",
        "model.safetensors",
        "posttrain_manifest.json",
        "tokenizer.json",
    )
    assert staged.left_out == (".env", "checkpoints/", "notes.txt", "optimizer.pt", "rows.jsonl")
    text = "".join((staged.folder / name).read_text(errors="replace") for name in staged.files)
    assert "/home/ada" not in text and (staged.folder / "README.md").read_text() == "card"
    manifest = verify_manifest(staged.folder)
    assert manifest is not None and manifest["weights_fingerprint"] == "9f"
    assert verify_manifest(model) is not None  # the folder itself stays as it is


def test_pickles_and_altered_folders_are_refused(tmp_path: Path, model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"altered")
    with pytest.raises(ModelError, match="not what was saved"):
        stage_model(model, tmp_path / "a", "card")
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match="no weights"):
        stage_model(pickled, tmp_path / "b", "card")
    save_file({"w": np.zeros(4, dtype=np.float32)}, pickled / "model.safetensors")  # both, in a folder of others
    assert stage_model(pickled, tmp_path / "d", "card").left_out == ("pytorch_model.bin",)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "mine").write_text("x")
    with pytest.raises(ModelError, match="something else"):
        stage_rows([], tmp_path / "c", "card")


def test_an_adapter_names_a_base_that_others_have(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_file({"w": np.zeros(4, dtype=np.float32)}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "base"), "r": 4}))
    with pytest.raises(ModelError, match="--base owner/name"):
        stage_model(folder, tmp_path / "a", "card")
    staged = stage_model(folder, tmp_path / "b", "card", base="ada/base")
    assert json.loads((staged.folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "ada/base"


def test_secrets_are_refused_by_file_and_line_and_never_shown(tmp_path: Path) -> None:
    for number, secret in enumerate(
        (
            "hf_" + "A" * 34,
            "sk-proj-" + "b" * 30,
            "ghp_" + "c" * 36,
            "AKIA" + "D" * 16,
            "xoxb-1234567890-abc",
            "-----BEGIN RSA PRIVATE KEY-----",
            "https://ada:hunter22@host/v1",
            "https://hooks.slack.com/services/T0/B0/x",
        )
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "data.jsonl").write_text('{"a": 1}\n' + json.dumps({"text": f"mine: {secret}"}) + "\n")
        with pytest.raises(ConfigError, match=r"data\.jsonl, line 2") as refused:
            refuse_secrets(folder)
        assert secret not in str(refused.value)
    (tmp_path / "0" / "data.jsonl").write_text('{"text": "sk-short, hf_short, https://host/v1?page=3, ada@host.org"}\n')
    refuse_secrets(tmp_path / "0")


def test_a_push_is_private_and_read_back(tmp_path: Path, model: Path, hub: Hub) -> None:
    staged = stage_model(model, tmp_path / "staged", "card")
    pushed = push_folder(staged, "ada/mine")
    assert pushed.private and pushed.files == 5 and pushed.bytes == staged.bytes
    assert hub.repositories["model", "ada/mine"].private
    assert not push_folder(staged, "ada/open", public=True).private
    with pytest.raises(ConfigError, match="public, and nothing was pushed"):
        hub.repositories["model", "ada/open"].siblings = []
        push_folder(staged, "ada/open")
    assert hub.repositories["model", "ada/open"].siblings == []
    hub.loses = "config.json"
    with pytest.raises(ModelError, match=r"config\.json"):
        push_folder(staged, "ada/mine")
    hub.fails = True
    with pytest.raises(ModelError, match="403 Forbidden"):
        push_folder(staged, "ada/mine")


def test_nobody_is_asked_without_a_token(
    tmp_path: Path, model: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(ConfigError, match="hf auth login"):
        push_folder(stage_model(model, tmp_path / "staged", "card"), "ada/mine")
    assert hub.repositories == {}
    for wrong in ("mine", "ada/mine/x", "https://huggingface.co/ada/mine", "a/" + "b" * 200):
        with pytest.raises(ConfigError):
            require_repository(wrong)


def test_the_verb_pushes_a_runs_last_model_with_its_card(tmp_path: Path, model: Path, hub: Hub) -> None:
    run = write_fake_run(tmp_path / "mine", Plan(steps=6, pairs=4, prompts=4))
    shutil.rmtree(run / "dpo" / "model", ignore_errors=True)
    model.rename(run / "dpo" / "model")

    def invoke(*words: object) -> Any:
        return CliRunner().invoke(app, ["push", *map(str, words)])

    for place in (run, run / "dpo", run / "dpo" / "model"):
        dry = tmp_path / f"dry-{place.name}"
        answer = invoke(place, "ada/mine", "--dry-run", dry, "--license", "mit")
        assert answer.exit_code == 0, answer.output
        card = (dry / "README.md").read_text()
        assert 'license: "mit"' in card and "identity, match" in card and "nothing was pushed" in answer.output
    assert hub.repositories == {}
    answer = invoke(run, "ada/mine")
    assert answer.exit_code == 0 and "(private)" in answer.output and list(hub.repositories) == [("model", "ada/mine")]
    rows = invoke(run / "pairs", "ada/rows", "--dataset")
    assert rows.exit_code == 0, rows.output
    assert {file.rfilename for file in hub.repositories["dataset", "ada/rows"].siblings} == {
        "README.md",
        "data/data.jsonl",
    }
    for wrong in (
        (run, "ada/mine", "--stage", "sft"),
        (run, "mine"),
        (run / "none", "ada/mine"),
        (run, "ada/x", "--dataset"),
    ):
        assert invoke(*wrong).exit_code == 2, wrong
